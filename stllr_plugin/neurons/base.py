"""The interface between the learner and a neuron library.

An adapter is stateless and serves all modules of its types. It answers five questions about one call of a neuron, that
is about one time step: which states came in, what membrane u was compared with the threshold, which output holds the
spikes, which tensors are states, and what the neuron's own surrogate derivative is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_ADAPTERS: list[NeuronAdapter] = []
_REFUSALS: list[Callable[[nn.Module], str | None]] = []


def register_adapter(cls: type[NeuronAdapter]) -> type[NeuronAdapter]:
    """Class decorator that makes an adapter known. The newest is asked first, so that users can override ours."""
    _ADAPTERS.insert(0, cls())
    return cls


def registered_adapters() -> list[NeuronAdapter]:
    """All adapters loaded so far."""
    return _ADAPTERS


def register_refusal(reason: Callable[[nn.Module], str | None]) -> Callable[[nn.Module], str | None]:
    """Decorator for a function that says why a neuron cannot be trained (found, then what to do), or None."""
    _REFUSALS.append(reason)
    return reason


def registered_refusals() -> list[Callable[[nn.Module], str | None]]:
    """All refusals loaded so far."""
    return _REFUSALS


@dataclass(slots=True)
class NeuronStep:
    """What one call of a neuron did.

    Attributes:
        membrane: u, compared with the threshold in this step, before any reset; of a readout without spikes: the
            membrane that it returns. None where the neuron did not get that far.
        threshold_distance: v = u - threshold, still in the autograd graph; None for readouts without spikes.
        spikes: The spike output (a tensor of what the module returned, by identity); None for readouts.
    """

    membrane: Tensor | None
    threshold_distance: Tensor | None
    spikes: Tensor | None


class MembraneTap:
    """Sits where a neuron decides about its spikes and keeps what it saw during one call.

    Attributes:
        calls: Arguments of each decision since :meth:`clear`.
        currents: Outputs of the module's own weights (:attr:`NeuronAdapter.weight_names`) in the order of use.
    """

    def __init__(self) -> None:
        """Starts closed: nothing is kept until the learner opens it."""
        self.open = False
        self.calls: list[tuple[Any, ...]] = []
        self.currents: list[Tensor] = []

    def clear(self) -> None:
        """Forgets what was seen, and with it the graph of that step."""
        self.open = False
        self.calls.clear()
        self.currents.clear()


@dataclass(slots=True)
class Installation:
    """What an adapter put into a module, and how to take it out again."""

    tap: MembraneTap
    uninstall: Callable[[], None] = field(default=lambda: None)


class NeuronAdapter(ABC):
    """Everything the learner knows about one family of neurons.

    Attributes:
        spiking: False for leaky-integrator readouts.
        weight_names: Attributes of the module that are synaptic weights used through ``torch.nn.functional.linear``.
    """

    spiking: ClassVar[bool] = True
    weight_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether this adapter serves the module."""

    def problems(self, module: nn.Module) -> list[str]:
        """Reasons why this module cannot be trained (found, then what to do); empty if it can."""
        return []

    @abstractmethod
    def install(self, module: nn.Module) -> Installation:
        """Puts a :class:`MembraneTap` where the module decides about spikes, on this instance only."""

    @abstractmethod
    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """Cuts all incoming states off the graph of earlier steps.

        Returns:
            The new positional and keyword arguments, and the incoming membrane (None where a new sequence is evident).
        """

    @abstractmethod
    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """What the call that just ended did."""

    @abstractmethod
    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Applies ``change`` to each tensor of the output and each state that the module keeps; returns the output."""

    def surrogate_derivative(self, module: nn.Module, v: Tensor) -> Tensor:
        """Derivative of the neuron's own surrogate at v = u - threshold, element by element."""
        with torch.enable_grad():
            leaf = v.detach().requires_grad_()
            spikes = self.spike_function(module)(leaf)
            if not spikes.requires_grad:
                return torch.zeros_like(v)
            (derivative,) = torch.autograd.grad(spikes.sum(), leaf)
        return derivative.detach()

    @abstractmethod
    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The module's own differentiable spike function of v = u - threshold."""

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """Resets the states that the module keeps (by default none); with a mask [B], those samples only."""
        return

    def state_buffers(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the buffers of this module that hold states."""
        return ()


def surrogate_problem(spike_function: Callable[[Tensor], Tensor]) -> str | None:
    """What makes a spike function useless as psi or for carrying a learning signal, or None if it serves.

    The derivative is probed on v in [-4, 4]: it must exist, be finite, not negative, and not vanish everywhere.
    """
    probe = torch.linspace(-4.0, 4.0, 33)
    try:
        with torch.enable_grad():
            leaf = probe.clone().requires_grad_()
            spikes = spike_function(leaf)
            if not spikes.requires_grad:
                return "its spike function has no surrogate derivative"
            (derivative,) = torch.autograd.grad(spikes.sum(), leaf)
    except Exception as error:  # the library's own surrogates raise errors of any kind
        return f"its surrogate raises {type(error).__name__}: {error}"
    if not derivative.isfinite().all():
        where = probe[~derivative.isfinite()]
        return f"its surrogate derivative is not finite at v = {where[0].item():g}"
    if (derivative < 0).any():
        return f"its surrogate derivative is negative at v = {probe[derivative < 0][0].item():g}"
    if not derivative.any():
        return "its surrogate derivative is zero everywhere near the threshold"
    return None
