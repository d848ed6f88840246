"""What a neuron compared with its threshold, and what became of the spikes, where its code is the user's own.

A subclass may override ``fire`` (another threshold, noise, scaling) or do something with the spikes afterwards. What
its spike function was given is then v, and what a spike is worth follows from the graph between it and the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.neurons.base import AttributeTap, NeuronStep

# What a spike may go through on its way to the output, unit by unit: products with a constant and changes of dtype.
_UNIT_BY_UNIT = frozenset({"MulBackward0", "DivBackward0", "ToCopyBackward0", "CloneBackward0", "AliasBackward0"})


class FireTap(AttributeTap):
    """Keeps v as it was when snnTorch's ``fire`` was called: the membrane minus the threshold then in force.

    Args:
        module: The neuron.
        name: ``fire`` or ``fire_inhibition``.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """See the class."""
        super().__init__(module, name)
        self.distance: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the base class."""
        if self.open:
            *_, membrane = (*args, *kwargs.values())
            self.distance = membrane - self.module.threshold  # now: the code of a subclass may change it later
        return super().__call__(*args, **kwargs)

    def clear(self) -> None:
        """See the base class."""
        super().clear()
        self.distance = None


class OwnFireTap(FireTap):
    """For a ``fire`` that is not the library's: keeps what the spike function was given and gave while it ran."""

    def __init__(self, module: nn.Module, name: str) -> None:
        """See the class."""
        super().__init__(module, name)
        self.compared: list[tuple[Tensor, Tensor]] = []
        self._spikes = _SpikeTap(module, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the base class."""
        self._spikes.open = self.open
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._spikes.open = False

    def install(self) -> None:
        """See the base class."""
        super().install()
        self._spikes.install()

    def uninstall(self) -> None:
        """See the base class."""
        self._spikes.uninstall()
        super().uninstall()

    def clear(self) -> None:
        """See the base class."""
        super().clear()
        self.compared.clear()


class _SpikeTap(AttributeTap):
    """Stands in for the neuron's spike function, and notes what it is given and gives while ``fire`` runs."""

    def __init__(self, module: nn.Module, fire: OwnFireTap) -> None:
        super().__init__(module, "spike_grad")
        self.fire = fire

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._plain(*args, **kwargs)
        if self.open:
            self.fire.compared.append((args[0], result))
        return result


def fire_tap(module: nn.Module, name: str, plain: Callable[..., Any]) -> FireTap:
    """The tap for a neuron.

    Args:
        module: The neuron.
        name: The method that decides about its spikes.
        plain: The library's own.
    """
    found = module.__dict__.get(name, getattr(type(module), name, None))
    return FireTap(module, name) if found is plain else OwnFireTap(module, name)


def step_of_own_fire(module: nn.Module, tap: OwnFireTap, spikes: Tensor) -> NeuronStep:
    """What a neuron with a ``fire`` of its own did.

    Raises:
        StateError: If that cannot be told.
    """
    if len(tap.compared) != 1:
        raise StateError(
            f"{type(module).__name__}.{tap.name} is not snnTorch's own and called self.spike_grad {len(tap.compared)} "
            "times, so the learner cannot tell what was compared with the threshold. Call self.spike_grad(v) once, "
            "with the spike function given as spike_grad=, or make the neuron known with a FiringAdapter "
            "(stllr_plugin.neurons.own)."
        )
    ((v, fired),) = tap.compared
    factor = getattr(module, "graded_spikes_factor", None)
    if isinstance(factor, Tensor) and factor.requires_grad and _is_product(spikes, fired, learned=True):
        return NeuronStep(v, v, spikes, gain=factor)
    return NeuronStep(v, v, spikes, gain=worth(module, spikes, fired))


def worth(module: nn.Module, spikes: Tensor, fired: Tensor) -> Tensor | None:
    """What a spike is worth in the output, None for 1.

    Args:
        module: The neuron.
        spikes: The output.
        fired: What the spike function, or ``fire``, gave.

    Raises:
        StateError: If the output is something else than the spikes, unit by unit, times a number.
    """
    if spikes is fired:
        return None
    if not _is_product(spikes, fired, learned=False):
        raise StateError(
            f"What {type(module).__name__} gives out is not what its spike function gave, nor that times a constant, "
            "so the rule does not apply to it. Return the spikes themselves and do the rest in a module behind the "
            "neuron, or make the neuron known with an adapter (stllr_plugin.neurons.own.FiringAdapter)."
        )
    if spikes.grad_fn is None:
        return None  # nothing of this step is in a graph
    (gain,) = torch.autograd.grad(spikes, fired, torch.ones_like(spikes), retain_graph=True)
    return gain


def _is_product(spikes: Tensor, fired: Tensor, learned: bool) -> bool:
    """Whether a tensor is another one times constants; with ``learned``, one of them may be a parameter."""
    if spikes.shape != fired.shape:
        return False
    if spikes.grad_fn is None or fired.grad_fn is None:
        return spikes.grad_fn is fired.grad_fn
    node = spikes.grad_fn
    while node is not fired.grad_fn:
        if type(node).__name__ not in _UNIT_BY_UNIT:
            return False
        inputs = [following for following, _ in node.next_functions if following is not None]
        ends = [following for following in inputs if type(following).__name__ == "AccumulateGrad"]
        onward = [following for following in inputs if type(following).__name__ != "AccumulateGrad"]
        if len(onward) != 1 or len(ends) > int(learned):
            return False
        (node,) = onward
    return True
