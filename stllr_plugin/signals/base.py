"""The learning signal "bp", and the interface of all others."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from stllr_plugin.errors import RuleError
from stllr_plugin.registry import register_signal
from stllr_plugin.session import Session

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class SignalSetup:
    """What a learning signal is built from.

    Attributes:
        session: What all parts of the learner share.
        name: The signal's name.
        output_name: Name of the module whose output the loss sees; "" if the model has none.
        output: That module.
        hidden: Names of the hidden spiking neurons.
        seed: Seed of the feedback matrices.
        with_time: Names of the neurons that take and return [time, batch, ...], one time step per call.
        output_named: Whether the user has named the output; else it is a guess.
    """

    session: Session
    name: str
    output_name: str
    output: nn.Module | None
    hidden: list[str]
    seed: int
    with_time: frozenset[str] = frozenset()
    output_named: bool = True


class SignalCost(NamedTuple):
    """What it costs to make the signal of one hidden layer at one step: operations for each sample, numbers or [B]."""

    additions: Tensor | float
    macs: Tensor | float


class LearningSignal:
    """Where delta = dL/dy of each neuron comes from. By default through the layers above.

    A kind of signal is a subclass with :func:`~stllr_plugin.registry.register_signal`. Neurons are known to it by their
    names.

    Attributes:
        session: What all parts of the learner share.
        name: Its name, as in ``STLLRLearner(learning_signal=...)``.
        needs_target: Whether ``set_target`` must be called before each sequence.
        needs_optimizer: Whether it has parameters of its own, which an optimizer like the user's trains.
        reaches_layers: Whether each layer is meant to get a gradient from a loss.
        at_each_step: Whether it is made at each time step, so that steps can neither run nor be multiplied together.
        direct: Whether it comes to each hidden layer from the error or the target, by matrices, so that there must be
            such layers; else the layers above pass it down.
    """

    needs_target: ClassVar[bool] = False
    needs_optimizer: ClassVar[bool] = False
    reaches_layers: ClassVar[bool] = True
    at_each_step: ClassVar[bool] = True
    direct: ClassVar[bool] = False

    def __init__(self, setup: SignalSetup) -> None:
        """See the class."""
        self.session = setup.session
        self.name = setup.name

    # At each step.

    def hidden(self, name: str, spikes: Tensor) -> Tensor:
        """Called with each neuron's grafted spikes; returns what the layers above see."""
        return spikes

    def passed_over(self, name: str) -> None:
        """Called with each neuron at a step that is not supervised."""

    def reaches(self, name: str) -> bool:
        """Whether the signal comes to this neuron directly, so that nothing may reach it through other layers."""
        return False

    # Sequences and updates.

    def attach(self) -> list[Any]:
        """Registers what the signal needs; returns handles."""
        return []

    def begins_anew(self) -> None:
        """Called where a neuron shows that a new sequence has begun without a reset."""

    def restart(self, *, keep_target: bool = False) -> None:
        """Forgets the running sequence."""

    def check_delivered(self) -> None:
        """Called by ``step()``: raises if the signal had somewhere to go and did not get there."""

    def zero_grad(self) -> None:
        """Clears the gradients of parameters that belong to the signal."""

    def step(self, inner: Optimizer) -> None:
        """Updates parameters that belong to the signal, as the inner optimizer updates the model's."""

    # What some of them have; the others refuse.

    def set_target(self, target: Tensor, scale: float | Tensor, loss_scale: float) -> None:
        """See ``STLLRLearner.set_target``."""
        raise RuleError(f'learning_signal="{self.name}" uses no target; leave set_target() out.')

    def reinforce(self, reward: float | Tensor) -> int:
        """See ``STLLRLearner.reinforce``; returns how many weights got a gradient."""
        raise RuleError(
            f"reinforce() is for learning_signal='one'; this learner has {self.name!r}, which learns from "
            "loss.backward()."
        )

    def use_plasticity(self, plasticity: Any) -> None:
        """Takes the learner's ``plasticity``; None where none was given."""
        if plasticity is not None:
            raise RuleError(f'plasticity is for learning_signal="one"; this learner has {self.name!r}.')

    @property
    def feedback(self) -> MutableMapping[str, Tensor]:
        """Feedback matrices by neuron module name."""
        raise RuleError(f'learning_signal="{self.name}" uses no feedback matrices.')

    def memory(self) -> dict[str, int]:
        """Bytes held between time steps, by what they are for."""
        return {}

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost | None:
        """What it costs to make the signal of one hidden layer at one step, for comparisons; None if nobody has said.

        Args:
            name: The signal's name.
            spikes: Those of the layer, [B, *neuron shape].
            outputs: Number of outputs.
        """
        return None

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; empty if nothing."""
        return {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises RuleError if what :meth:`state_dict` gave does not fit; nothing has been loaded yet."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave."""


@register_signal("bp")
class Backpropagation(LearningSignal):
    """The signal "bp": it reaches hidden layers through the layers above, at the same time step."""

    at_each_step = False

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost:
        """Nothing: what takes it down is a product of the layer above."""
        return SignalCost(0, 0)
