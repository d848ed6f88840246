"""Adapters for Norse 1.1 cells and sequence modules.

Norse returns the membrane after the reset, so u is computed again from the input and the incoming state with the cell's
own update formula. Both are seen by wrapping the instance's ``activation`` attribute, which every cell and sequence
module calls once per step. A sequence module (``LIF``, ``LIFRecurrent``, ...) is served where a call holds one step,
``x[t : t + 1]``, as ``learner.stream`` feeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import norse.torch as norse
import torch
from norse.torch.functional.threshold import threshold
from norse.torch.module import conv, snn
from torch import Tensor, nn

from stllr_plugin.errors import SequenceInputError
from stllr_plugin.neurons.base import (
    AttributeTap,
    MembraneTap,
    NeuronAdapter,
    NeuronStep,
    StateKeeper,
    copied,
    map_tensors,
    one_number,
    register_adapter,
    register_keeper,
    register_refusal,
    without_tap,
)
from stllr_plugin.neurons.compared import worth
from stllr_plugin.synapses import Synapse, register_synapse


def _lif(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + dt * p.tau_mem_inv * ((p.v_leak - state.v) + (state.i + current))
    return membrane


def _lif_box(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + dt * p.tau_mem_inv * (current + p.v_leak - state.v)
    return membrane


def _iaf(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    membrane: Tensor = state.v + current
    return membrane


def _lif_ex(current: Tensor, state: Any, p: Any, dt: float, adaptation: Tensor | float = 0.0) -> Tensor:
    leak = p.v_leak - state.v
    growth = p.delta_T * torch.exp((state.v - p.v_th) / p.delta_T)
    membrane: Tensor = state.v + dt * p.tau_mem_inv * (leak + growth + (state.i + current) - adaptation)
    return membrane


def _lif_adex(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    return _lif_ex(current, state, p, dt, state.a)


def _izhikevich(current: Tensor, state: Any, p: Any, dt: float) -> Tensor:
    change = p.sq * state.v**2 + p.mn * state.v + p.bias - state.u + current
    membrane: Tensor = state.v + p.tau_inv * dt * change
    return membrane


@dataclass(frozen=True)
class _Dynamics:
    """How one family of neurons reaches its spike decision.

    Attributes:
        membrane: u from the input current, the incoming state, the parameters and dt.
        part: Name of the inner neuron within states and parameters, for neurons with a refractory time around it.
    """

    membrane: Callable[[Tensor, Any, Any, float], Tensor]
    part: str | None = None

    def inner(self, value: Any) -> Any:
        """The state or the parameters of the neuron that decides about spikes."""
        return value if self.part is None else getattr(value, self.part)


_FAMILIES: dict[_Dynamics, tuple[str, ...]] = {
    _Dynamics(_lif): ("LIFCell", "LIF", "LIFRecurrentCell", "LIFRecurrent"),
    _Dynamics(_lif_box): ("LIFBoxCell",),
    _Dynamics(_iaf): ("IAFCell", "IAF"),
    _Dynamics(_lif_ex): ("LIFExCell", "LIFEx", "LIFExRecurrentCell", "LIFExRecurrent"),
    _Dynamics(_lif_adex): ("LIFAdExCell", "LIFAdEx", "LIFAdExRecurrentCell", "LIFAdExRecurrent"),
    _Dynamics(_izhikevich): ("IzhikevichCell", "Izhikevich", "IzhikevichRecurrentCell", "IzhikevichRecurrent"),
    _Dynamics(_lif, "lif"): ("LIFRefracCell", "LIFRefracRecurrentCell", "LIFRefracRecurrent"),
    _Dynamics(_lif_adex, "lif_adex"): ("LIFAdExRefracCell", "LIFAdExRefracRecurrentCell", "LIFAdExRefracRecurrent"),
}
_DYNAMICS: dict[type, _Dynamics] = {
    getattr(norse, name): dynamics for dynamics, names in _FAMILIES.items() for name in names
}
_DELAYED = (norse.LSNNRecurrentCell, norse.LSNNRecurrent)
_READOUTS = (norse.LICell, norse.LI, norse.LIBoxCell)
_RECURRENT_BASES = (snn.SNNRecurrentCell, snn.SNNRecurrent)

_SUPPORTED = (
    ", ".join(name for names in _FAMILIES.values() for name in names)
    + "; with weights of their own LSNNRecurrentCell and LSNNRecurrent; for readouts LICell, LI, LIBoxCell and "
    "LILinearCell"
)

# Neurons of Norse without a form of the rule: why, and what to use.
_REFUSED: dict[str, str] = {
    "CobaLIFCell": "its input has no effect on its state in Norse 1.1 (the conductances are overwritten); use LIFCell",
    "LIFCorrelation": "its weights are arguments of each call, not parameters; use LIFRecurrentCell",
    "LIFMCRecurrentCell": "its membrane is coupled between compartments after the spike decision; use LIFRecurrentCell",
    "LIFMCRefracRecurrentCell": "its input is added after the spike decision, so no signal reaches the layers below; "
    "use LIFRefracRecurrentCell",
    "LSNNCell": "its input reaches the membrane one step later, so no signal reaches the layers below and the weights "
    "before it; use LSNNRecurrentCell, whose own weights can be trained, or LIFAdExCell",
    "LSNN": "its input reaches the membrane one step later, so no signal reaches the layers below and the weights "
    "before it; use LSNNRecurrent, whose own weights can be trained, or LIFAdEx",
}


class _NorseAdapter(NeuronAdapter):
    """What all Norse neurons share: states go in and out as named tuples."""

    def inner(self, module: nn.Module, value: Any) -> Any:
        """Of a state or of the parameters: the part that holds the membrane."""
        return value

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        if getattr(module, "record_states", False):
            return ["record_states=True changes the shape of the state that comes back; use record_states=False"]
        return []

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
        return args, kwargs, self.inner(module, state).v

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class."""
        membrane: Tensor = self.inner(module, output[1]).v
        return membrane

    def leak(self, module: nn.Module) -> float | None:
        """See the base class; that of the membrane, where there is a synaptic current as well."""
        p: Any = self.inner(module, module.p)
        if isinstance(module, (norse.IAFCell, norse.IAF)):
            return 1.0
        rate, dt = one_number(getattr(p, "tau_mem_inv", None)), one_number(module.dt)
        return None if rate is None or dt is None else 1.0 - dt * rate

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        p: Any = self.inner(module, module.p)
        return lambda v: threshold(v, p.method, p.alpha)

    def is_sequence(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, (snn.SNN, snn.SNNRecurrent))

    def stream_hooks(self, module: nn.Module, memory: dict[str, Any]) -> list[Any]:
        """See the base class; called without a state, as in ``nn.Sequential`` or ``Lift``, it goes on from its last."""

        def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = args[1] if len(args) > 1 else kwargs.get("state")
            if state is not None or "state" not in memory:
                return None
            return (args[0] if args else kwargs["input_tensor"], memory["state"]), {}

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            memory["state"] = output[1]

        # Before the learner's own hook, which would take a missing state for the start of a sequence.
        first = module.register_forward_pre_hook(give, with_kwargs=True, prepend=True)
        return [first, module.register_forward_hook(keep)]


@register_adapter
class NorseSpikingAdapter(_NorseAdapter):
    """Neurons without weights of their own; sequence modules where a call holds one step."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, tuple(_DYNAMICS)) and not isinstance(module, _RECURRENT_BASES)

    def dynamics(self, module: nn.Module) -> _Dynamics:
        """The formulas of this neuron."""
        return next(dynamics for kind, dynamics in _DYNAMICS.items() if isinstance(module, kind))

    def inner(self, module: nn.Module, value: Any) -> Any:
        """See the base class."""
        return self.dynamics(module).inner(value)

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        found = super().problems(module)
        activation: Any = without_tap(module.activation)
        while isinstance(activation, partial):
            activation = activation.func
        if not str(getattr(activation, "__module__", "")).startswith("norse."):
            found.append(
                f"its activation is not Norse's own ({getattr(activation, '__name__', type(activation).__name__)}), so "
                "what it compares with the threshold is not known; leave the activation as it is, or make the neuron "
                "known with an adapter (stllr_plugin.neurons.own.FiringAdapter)"
            )
        method = self.inner(module, module.p).method
        if method == "adjoint" or "adjoint" in getattr(activation, "__name__", ""):
            found.append(
                'method="adjoint" replaces the whole step by its own backward; use another method, e.g. "super"'
            )
        return found

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        return AttributeTap(module, "activation")

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        spikes = output[0]
        if len(tap.calls) > 1:
            raise SequenceInputError(
                f"{type(module).__name__} received {len(tap.calls)} time steps in one call. An online rule needs one: "
                "loop with `for output in learner.stream(x)`, feed slices x[t : t + 1] and carry the state, or use the "
                "cell version of this neuron."
            )
        if not tap.calls:
            return NeuronStep(None, None, spikes)
        current, state, *_ = tap.calls[0]
        if tap.currents:
            current = sum(tap.currents[1:], tap.currents[0])
        membrane, v, gate = self.decide(module, current, state)
        if membrane.dim() < spikes.dim():  # a sequence module: its one step keeps the time dimension
            membrane, v = membrane.unsqueeze(0), v.unsqueeze(0)
            gate = None if gate is None else gate.unsqueeze(0)
            return NeuronStep(membrane, v, spikes, gate)
        return NeuronStep(membrane, v, spikes, gate, gain=worth(module, spikes, tap.fired[0][0]))

    def decide(self, module: nn.Module, current: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """u, u - threshold and the gate of one step."""
        dynamics = self.dynamics(module)
        p = dynamics.inner(module.p)
        membrane = dynamics.membrane(current, dynamics.inner(state), p, module.dt)  # type: ignore[arg-type]
        # While the counter rho runs a neuron is refractory: its spikes are blocked, whatever its membrane.
        gate = None if dynamics.part is None else (state.rho <= 0).to(membrane.dtype)
        return membrane, membrane - p.v_th, gate


@register_adapter
class NorseRecurrentAdapter(NorseSpikingAdapter):
    """Neurons that own their input and recurrent weights."""

    weight_names: ClassVar[tuple[str, ...]] = ("input_weights", "recurrent_weights")

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, tuple(_DYNAMICS)) and isinstance(module, _RECURRENT_BASES)


@register_adapter
class NorseDelayedAdapter(NorseRecurrentAdapter):
    """LSNNRecurrentCell and LSNNRecurrent: what comes in at a step reaches the membrane at the next one.

    Their threshold adapts. Nothing flows to the layers below them, since no path leads there within a time step.
    """

    delayed: ClassVar[bool] = True

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, _DELAYED)

    def inner(self, module: nn.Module, value: Any) -> Any:
        """See the base class."""
        return value

    def decide(self, module: nn.Module, current: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """See the base class; the current of this step plays no part."""
        p: Any = module.p
        dt: Any = module.dt
        membrane: Tensor = state.v + dt * p.tau_mem_inv * ((p.v_leak - state.v) + state.i)
        adapted = state.b + dt * p.tau_adapt_inv * (p.v_th - state.b)
        return membrane, membrane - adapted, None

    def delay(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        mark: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See the base class; the synaptic current i is what carries the input of the step before."""
        x = args[0] if args else kwargs["input_tensor"]
        state = args[1] if len(args) > 1 else kwargs.get("state")
        if state is None:
            state = map_tensors(module.state_fallback(x), torch.Tensor.detach)  # type: ignore[operator]
        first = x[0] if self.is_sequence(module) else x
        state = state._replace(i=mark(state.i, (first, state.z)))
        return (x, state), {}


@register_adapter
class NorseReadoutAdapter(_NorseAdapter):
    """LICell, LI and LIBoxCell: leaky integrators that never spike."""

    spiking: ClassVar[bool] = False

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, _READOUTS)

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class; the membrane is the output, so there is nothing to tap."""
        return MembraneTap()

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        if self.is_sequence(module) and output[0].shape[0] > 1:
            raise SequenceInputError(
                f"{type(module).__name__} received {output[0].shape[0]} time steps in one call. An online rule needs "
                "one: loop with `for output in learner.stream(x)`, or feed slices x[t : t + 1] and carry the state."
            )
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
            return f"{_REFUSED[name]}. Supported: {_SUPPORTED}"
    if isinstance(module, (snn.SNN, snn.SNNCell, *_RECURRENT_BASES)):
        return f"this neuron is not known; supported: {_SUPPORTED}, and their subclasses"
    return None


class _Regularization(StateKeeper):
    """RegularizationCell, which sums something (spikes, membranes) over the steps for a term in the loss."""

    accumulates: ClassVar[bool] = True

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, norse.RegularizationCell)

    def change(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """See the base class."""
        cell: Any = module
        cell.state = map_tensors(cell.state, change)

    def reset(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class; a sum over the batch cannot be reset for some samples, and goes on."""
        if mask is None:
            module.state = None  # type: ignore[assignment]

    def save(self, module: nn.Module) -> Any:
        """See the base class."""
        return map_tensors(module.state, copied)

    def restore(self, module: nn.Module, saved: Any) -> None:
        """See the base class."""
        module.state = saved


register_keeper(_Regularization())


@register_synapse(conv.LConv2d)
class LConv2dSynapse(Synapse):
    """A 2-d convolution [T, B, C, H, W] that Norse computes as a 3-d one with time as its last dimension."""

    input_name = "input_tensor"

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """See the base class."""
        layer: Any = module
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g.permute(1, 2, 3, 4, 0),
            x.permute(1, 2, 3, 4, 0),
            weight,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            (0, 0, 0),
            layer.groups,
            (False, True, False),
        )[1]
        return gradient
