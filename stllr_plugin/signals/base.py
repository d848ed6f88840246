"""The learning signal "bp", and the interface of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from stllr_plugin.sites import NeuronSite

if TYPE_CHECKING:
    from torch.optim import Optimizer


class LearningSignal:
    """The signal "bp": it reaches hidden layers through the layers above, at the same time step.

    Attributes:
        name: Its name, as in ``STLLRLearner(learning_signal=...)``.
        needs_target: Whether ``set_target`` must be called before each sequence.
    """

    name = "bp"
    needs_target = False

    def hidden(self, site: NeuronSite, spikes: Tensor) -> Tensor:
        """Called with each neuron's grafted spikes; returns what the layers above see."""
        return spikes

    def passed_over(self, site: NeuronSite) -> None:
        """Called with each neuron at a step that is not supervised."""

    def begins_anew(self) -> None:
        """Called where a neuron shows that a new sequence has begun without a reset."""

    def check_delivered(self) -> None:
        """Called by ``step()``: raises if the signal had somewhere to go and did not get there."""

    def reaches(self, site: NeuronSite) -> bool:
        """Whether the signal comes to this neuron directly, so that nothing may reach it through other layers."""
        return False

    def attach(self) -> list[Any]:
        """Registers what the signal needs; returns handles."""
        return []

    def restart(self, *, keep_target: bool = False) -> None:
        """Forgets the running sequence."""

    def zero_grad(self) -> None:
        """Clears the gradients of parameters that belong to the signal."""

    def step(self, inner: Optimizer) -> None:
        """Updates parameters that belong to the signal, as the inner optimizer updates the model's."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; empty if nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave."""
