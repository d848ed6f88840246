"""Adapters for Norse 1.1 cells.

Norse returns the membrane after the reset, so u is computed again from the input and the incoming state with the cell's
own update formula. Both are seen by wrapping the instance's ``activation`` attribute, which every cell and sequence
module calls once per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import norse.torch as norse
import torch
from norse.torch.functional.threshold import threshold
from norse.torch.module import lift, snn
from torch import Tensor, nn

from stllr_plugin.errors import SequenceInputError
from stllr_plugin.neurons.base import (
    AttributeTap,
    MembraneTap,
    NeuronAdapter,
    NeuronStep,
    map_tensors,
    register_adapter,
    register_refusal,
)

_SUPPORTED = "LIFCell, LIFRecurrentCell, LIFBoxCell, IAFCell and, for readouts, LICell, LIBoxCell and LILinearCell"

# Cells of Norse without a form of the rule, and why.
_REFUSED: dict[str, str] = {
    "CobaLIFCell": "its input has no effect on its state in Norse 1.1 (the conductances are overwritten)",
    "LIFCorrelation": "its weights are arguments of each call, not parameters",
    "LIFMCRecurrentCell": "its membrane is coupled between compartments after the spike decision",
    "LIFMCRefracRecurrentCell": "its input is added after the spike decision, so no signal reaches the layers below",
    "LSNNCell": "its input reaches the membrane one step later, so no signal reaches the layers below",
    "LSNNRecurrentCell": "its input reaches the membrane one step later, so no signal reaches the layers below",
}


def _lif(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + dt * p.tau_mem_inv * ((p.v_leak - state.v) + (state.i + current))
    return membrane


def _lif_box(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + dt * p.tau_mem_inv * (current + p.v_leak - state.v)
    return membrane


def _iaf(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + current
    return membrane


# The membrane that is compared with the threshold, from the input current and the incoming state.
_MEMBRANE: dict[type, Callable[[Tensor, Any, Any, float], Tensor]] = {
    norse.LIFCell: _lif,
    norse.LIF: _lif,
    norse.LIFBoxCell: _lif_box,
    norse.IAFCell: _iaf,
    norse.LIFRecurrentCell: _lif,
}
_RECURRENT = (norse.LIFRecurrentCell,)


class _NorseAdapter(NeuronAdapter):
    """What all Norse cells share: states go in and out as named tuples."""

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class."""
        state = args[1] if len(args) > 1 else kwargs.get("state")
        if state is None:
            return args, kwargs, None
        state = map_tensors(state, torch.Tensor.detach)
        if len(args) > 1:
            args = (args[0], state, *args[2:])
        else:
            kwargs = {**kwargs, "state": state}
        return args, kwargs, state.v

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class."""
        membrane: Tensor = output[1].v
        return membrane

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        p: Any = module.p
        return lambda v: threshold(v, p.method, p.alpha)


@register_adapter
class NorseSpikingAdapter(_NorseAdapter):
    """LIFCell, LIFBoxCell, IAFCell, and the sequence module LIF fed with one step per call."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, tuple(_MEMBRANE)) and not isinstance(module, _RECURRENT)

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        if module.p.method == "adjoint":  # type: ignore[union-attr]
            return ['method="adjoint" replaces the whole step by its own backward; use another method, e.g. "super"']
        return []

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        return AttributeTap(module, "activation")

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        spikes = output[0]
        if len(tap.calls) > 1:
            raise SequenceInputError(
                f"{type(module).__name__} received {len(tap.calls)} time steps in one call. An online rule needs one: "
                "feed slices x[t : t + 1] and carry the state, or use the cell version of this neuron."
            )
        if not tap.calls:
            return NeuronStep(None, None, spikes)
        current, state, *_ = tap.calls[0]
        p: Any = module.p
        dt: Any = module.dt
        if tap.currents:
            current = sum(tap.currents[1:], tap.currents[0])
        formula = next(f for kind, f in _MEMBRANE.items() if isinstance(module, kind))
        membrane = formula(current, state, p, dt)
        if membrane.dim() < spikes.dim():  # a sequence module: its one step keeps the time dimension
            membrane = membrane.unsqueeze(0)
        return NeuronStep(membrane, membrane - p.v_th, spikes)


@register_adapter
class NorseRecurrentAdapter(NorseSpikingAdapter):
    """LIFRecurrentCell, which owns its input and recurrent weights."""

    weight_names: ClassVar[tuple[str, ...]] = ("input_weights", "recurrent_weights")

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, _RECURRENT)


@register_adapter
class NorseReadoutAdapter(_NorseAdapter):
    """LICell and LIBoxCell: leaky integrators that never spike."""

    spiking: ClassVar[bool] = False

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, (norse.LICell, norse.LIBoxCell))

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class; the membrane is the output, so there is nothing to tap."""
        return MembraneTap()

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        return NeuronStep(output[0], None, None)


@register_adapter
class NorseLinearReadoutAdapter(NorseReadoutAdapter):
    """LILinearCell, a leaky integrator that owns its input weights."""

    weight_names: ClassVar[tuple[str, ...]] = ("input_weights",)

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, norse.LILinearCell)


@register_refusal
def _refuse(module: nn.Module) -> str | None:
    names = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("norse.")]
    for name in names:
        if name in _REFUSED:
            return f"{_REFUSED[name]}; supported: {_SUPPORTED}"
    if isinstance(module, (snn.SNN, snn.SNNRecurrent)):
        return f"it runs all time steps in one call; use its cell, one step at a time. Supported: {_SUPPORTED}"
    if isinstance(module, (snn.SNNCell, snn.SNNRecurrentCell)):
        return f"this neuron is not supported yet; supported: {_SUPPORTED}"
    return None


def lifted_steps(module: nn.Module, x: Tensor) -> int | None:
    """Number of time steps that a ``norse.torch.Lift`` is about to run, or None for another module."""
    return x.shape[0] if isinstance(module, lift.Lift) else None
