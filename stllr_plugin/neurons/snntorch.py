"""Adapters for snnTorch 1.x neurons.

u is the argument of the neuron's own ``fire`` (or ``fire_inhibition``) method, tapped on the instance: exact for every
reset mechanism, delay and quantisation, and it works for user subclasses that call ``self.fire``. (``spike_grad``
cannot be tapped in general: it runs twice per step.)
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import snntorch
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from stllr_plugin.errors import SequenceInputError, StateError
from stllr_plugin.neurons.base import (
    AttributeTap,
    MembraneTap,
    NeuronAdapter,
    NeuronStep,
    map_tensors,
    one_number,
    register_adapter,
    register_refusal,
    reset_rows,
    without_tap,
)
from stllr_plugin.neurons.compared import FireTap, OwnFireTap, fire_tap, step_of_own_fire, worth
from stllr_plugin.synapses import Synapse, register_synapse

_STATES: dict[type, tuple[str, ...]] = {
    snntorch.Leaky: ("mem",),
    snntorch.RLeaky: ("spk", "mem"),
    snntorch.Synaptic: ("syn", "mem"),
    snntorch.RSynaptic: ("spk", "syn", "mem"),
    snntorch.Lapicque: ("mem",),
}

_DeltaLeaky = snntorch.DeltaLeaky

# Neurons of snnTorch without a form of the rule: why, and what to use.
_REFUSED: dict[str, str] = {
    "Alpha": "its membrane does not depend on the input of the same time step (du[t]/dI[t] = 0), so no learning signal "
    "could reach the layers below; use snntorch.Synaptic",
    "SLSTM": "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
    "SConv2dLSTM": "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
    "LeakyParallel": "it hides all time steps, and its weights, in one torch.nn.RNN; use nn.Linear and snntorch.Leaky",
    "AssociativeLeaky": "its state is an outer product of its inputs, so its weights have no eligibility psi * trace; "
    "use snntorch.Leaky",
}


@register_adapter
class SnnTorchAdapter(NeuronAdapter):
    """Leaky, RLeaky, Synaptic, RSynaptic and Lapicque, with hidden or explicit states."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        known = isinstance(module, tuple(_STATES)) and not isinstance(module, _DeltaLeaky)
        return known and _refusal(module) is None

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        if isinstance(module, snntorch.RSynaptic) and not module.reset_delay:
            return ["reset_delay=False is ignored or raises in snnTorch's RSynaptic; use reset_delay=True"]
        return []

    def attached(self, module: nn.Module) -> None:
        """See the base class."""
        _hold(module, weakly=True)

    def detached(self, module: nn.Module) -> None:
        """See the base class."""
        _hold(module, weakly=False)

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        name = "fire_inhibition" if module.inhibition else "fire"
        return fire_tap(module, name, getattr(SpikingNeuron, name))

    def state_buffers(self, module: nn.Module) -> tuple[str, ...]:
        """See the base class."""
        return next(names for kind, names in _STATES.items() if isinstance(module, kind))

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class."""
        if module.inhibition:
            shape = next(iter((*args, *kwargs.values()))).shape
            if len(shape) != 2:
                raise StateError(
                    f"A neuron with inhibition=True received an input of shape {tuple(shape)}. snnTorch finds the "
                    "winner among the units of [batch, units] only: flatten the input, or use inhibition=False."
                )
        names = self.state_buffers(module)
        states: dict[str, Any] = {name: module._buffers.get(name) for name in names}
        if len(args) > 1 or len(kwargs) > 1 or (kwargs and "input_" not in kwargs):
            args = (*args[:1], *(_detached(state) for state in args[1:]))
            kwargs = {name: value if name == "input_" else _detached(value) for name, value in kwargs.items()}
            given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
            states.update({name: value for name, value in given.items() if value is not None and name in states})
        for name in names:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.requires_grad:
                module._buffers[name] = buffer.detach()
        membrane = states["mem"]
        started = (
            isinstance(membrane, Tensor) and membrane.numel() > 0
        )  # snnTorch's states are empty before the first step
        return args, kwargs, membrane if started else None

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        spikes = output[0] if isinstance(output, tuple) else output
        if not tap.calls:
            return NeuronStep(None, None, spikes)
        assert isinstance(tap, FireTap) and tap.distance is not None
        if isinstance(tap, OwnFireTap):
            return step_of_own_fire(module, tap, spikes)
        *_, membrane = tap.calls[-1]
        neuron: Any = module
        v = tap.distance
        # The code of a subclass, or a hook, may have changed them since.
        changed = worth(module, spikes, tap.fired[-1])
        if neuron.inhibition:  # only the largest v of each sample may spike; the graded factor is not applied
            winner = v.detach().argmax(1, keepdim=True)
            return NeuronStep(membrane, v, spikes, gate=torch.zeros_like(v).scatter_(1, winner, 1.0), gain=changed)
        gain = spike_gain(neuron.graded_spikes_factor)
        gain = changed if gain is None else gain if changed is None else gain * changed
        return NeuronStep(membrane, v, spikes, gain=gain)

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class."""
        for name in self.state_buffers(module):
            module._buffers[name] = change(module._buffers[name])  # type: ignore[arg-type]
        return map_tensors(output, change)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class; snnTorch keeps the membrane in the module, also where it returns it."""
        return module._buffers["mem"]

    def leak(self, module: nn.Module) -> float | None:
        """See the base class."""
        neuron: Any = module
        if isinstance(module, snntorch.Lapicque):
            resistance, capacity = one_number(neuron.R), one_number(neuron.C)
            dt = one_number(neuron.time_step)
            known = resistance is not None and capacity is not None and dt is not None
            return 1.0 - dt / (resistance * capacity) if known else None  # type: ignore[operator]
        beta = one_number(neuron.beta)
        return None if beta is None else min(max(beta, 0.0), 1.0)

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        return module.spike_grad  # type: ignore[return-value]

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class."""
        if mask is None:
            module.reset_mem()  # type: ignore[operator]
            return
        for name in self.state_buffers(module):
            state = module._buffers[name]
            if state is not None and state.dim() > 0 and state.shape[0] == mask.shape[0]:
                module._buffers[name] = reset_rows(state, mask)


def _hold(module: nn.Module, *, weakly: bool) -> None:
    """How snnTorch's list of all neurons holds one of them.

    Its class methods (``detach_hidden``, ``reset_hidden``) go through that list. It keeps every neuron for good, and
    with the learner's hooks that would be the whole model, its learner and its optimizer. A proxy serves them as well.
    """
    instances: list[Any] = getattr(SpikingNeuron, "instances", [])
    for place, held in enumerate(instances):
        if isinstance(held, weakref.ProxyTypes):
            if not weakly and held.__repr__.__self__ is module:
                instances[place] = module
        elif weakly and held is module:
            instances[place] = weakref.proxy(module, _forget)


def _forget(proxy: Any) -> None:
    instances: list[Any] = getattr(SpikingNeuron, "instances", [])
    instances[:] = [held for held in instances if held is not proxy]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


# Whether a factor of graded spikes is the constant 1, by tensor: (its version, the answer). Reading a value waits for
# the device, so it is done again only after the tensor has changed.
_IS_ONE = WeakTensorKeyDictionary()


def spike_gain(factor: Tensor) -> Tensor | None:
    """The factor of graded spikes, None where it is the constant 1."""
    if factor.requires_grad:
        return factor
    known = _IS_ONE.get(factor)
    if known is None or known[0] != factor._version:
        known = _IS_ONE[factor] = (factor._version, bool((factor == 1).all()))
    return None if known[1] else factor


@register_adapter
class DeltaLeakyAdapter(SnnTorchAdapter):
    """DeltaLeaky, which compares the change of its membrane: u = abs(mem[t] - mem[t-1]).

    Threshold, reset, inhibition, quantisation and graded spikes, whose arguments it takes from Leaky, play no part in
    its forward pass.
    """

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, _DeltaLeaky)

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        return []

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class; this neuron has no ``fire``, and calls ``spike_grad`` once."""
        return AttributeTap(module, "spike_grad")

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class; the state is a pair (membrane, membrane before), either of which may be None."""
        neuron: Any = module
        given = args[1] if len(args) > 1 else kwargs.get("mem")
        if given is None:
            neuron.mem, neuron.mem_prev = _detached(neuron.mem), _detached(neuron.mem_prev)
            return args, kwargs, neuron.mem
        given = tuple(_detached(state) for state in given)
        if len(args) > 1:
            return (args[0], given, *args[2:]), kwargs, given[0]
        return args, {**kwargs, "mem": given}, given[0]

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class; u - delta_threshold is what ``spike_grad`` is given."""
        if not tap.calls:
            return NeuronStep(None, None, output[0])
        (v,) = tap.calls[-1]
        return NeuronStep(v, v, output[0])

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class."""
        neuron: Any = module
        neuron.mem, neuron.mem_prev = change(neuron.mem), change(neuron.mem_prev)
        return map_tensors(output, change)

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class."""
        neuron: Any = module
        if mask is None:
            neuron.reset_mem()
        elif isinstance(neuron.mem, Tensor):
            neuron.mem, neuron.mem_prev = reset_rows(neuron.mem, mask), reset_rows(neuron.mem_prev, mask)


def _refusal(module: nn.Module) -> str | None:
    """The reason for a class of snnTorch in :data:`_REFUSED`; some of them inherit from neurons that are supported."""
    for kind in type(module).__mro__:
        if kind.__name__ in _REFUSED and kind.__module__.startswith("snntorch."):
            return _REFUSED[kind.__name__]
    return None


@register_adapter
class StateLeakyAdapter(NeuronAdapter):
    """StateLeaky and LinearLeaky, which compute all membranes [T, B, C] of a sequence at once, without a reset.

    Run by ``learner.stream``, one time step per call, they go on from the membrane of the step before: it is added to
    the input, decayed by exp(-1 / tau). That is what their convolution over time computes.
    """

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, snntorch.StateLeaky) and module.output

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        fire = without_tap(module.__dict__.get("fire", getattr(type(module), "fire", None)))
        if getattr(fire, "__func__", fire) is not SpikingNeuron.fire:
            return [
                "its `fire` is not snnTorch's own, so what it compares with the threshold is not known; leave it as it "
                "is, or make the neuron known with an adapter (stllr_plugin.neurons.base.NeuronAdapter)"
            ]
        if module.kernel_truncation_steps is not None:
            return [
                "kernel_truncation_steps forgets inputs of long ago, which a running membrane cannot; use "
                "kernel_truncation_steps=None"
            ]
        return []

    def is_sequence(self, module: nn.Module) -> bool:
        """See the base class."""
        return True

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        return AttributeTap(module, "fire")

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class; there is no state, so nothing tells that a sequence begins, but the stream does."""
        return args, kwargs, args[0] if args else kwargs["input_"]

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class; the factor of graded spikes is applied twice, in ``fire`` and after it."""
        spikes, membrane = output
        if spikes.shape[0] > 1 or not tap.streaming:
            raise SequenceInputError(
                f"{type(module).__name__} keeps no state from call to call, and an online rule needs one time step per "
                "call. Loop with `for output in learner.stream(x)`, which carries the membrane."
            )
        if not tap.calls:
            return NeuronStep(None, None, spikes)
        (membrane,) = tap.calls[-1]
        neuron: Any = module
        factor = spike_gain(neuron.graded_spikes_factor)
        gain = None if factor is None else factor * factor
        return NeuronStep(membrane, membrane - neuron.threshold, spikes, gain=gain)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class."""
        return None

    def leak(self, module: nn.Module) -> float | None:
        """See the base class."""
        tau = one_number(module.tau)
        return None if tau is None else math.exp(-1.0 / tau)

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        return module.spike_grad  # type: ignore[return-value]

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class; what the module keeps of the step is for show, and must not hold its graph."""
        for name in ("spk", "mem"):
            kept = module.__dict__.get(name)
            if isinstance(kept, Tensor):
                module.__dict__[name] = kept.detach()
        return map_tensors(output, change)

    def stream_hooks(self, module: nn.Module, memory: dict[str, Any]) -> list[Any]:
        """See the base class."""
        neuron: Any = module

        def go_on(current: Tensor) -> Tensor:
            if "membrane" in memory:
                current = current + torch.exp(-1.0 / neuron.tau) * memory["membrane"].reshape(current.shape)
            memory["membrane"] = current.detach()
            return current

        if isinstance(module, snntorch.LinearLeaky):
            return [neuron.linear.register_forward_hook(lambda _, args, output: go_on(output))]
        return [module.register_forward_pre_hook(lambda _, args: (go_on(args[0]),))]


@register_adapter
class StateLeakyReadoutAdapter(StateLeakyAdapter):
    """StateLeaky and LinearLeaky with output=False, which return their membrane and never spike."""

    spiking: ClassVar[bool] = False

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, snntorch.StateLeaky) and not module.output

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        super().read_step(module, tap, (output, output))
        return NeuronStep(output, None, None)


@register_refusal
def _refuse(module: nn.Module) -> str | None:
    reason = _refusal(module)
    if reason is not None:
        return reason
    if not isinstance(module, snntorch.SpikingNeuron) or isinstance(module, (*_STATES, snntorch.StateLeaky)):
        return None
    return f"this neuron is not known; supported: {', '.join(kind.__name__ for kind in _STATES)} and their subclasses"


class _OneToOne(Synapse):
    """snnTorch's one-to-one recurrence: ``y[t-1] * V`` with V a scalar or one value per unit."""

    weight_name = "V"
    input_name = "x"

    def problem(self, module: nn.Module) -> str | None:
        """None: a V that is not learned is a plain tensor, and simply gets no gradient."""
        return None

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """See the base class; summed over the batch, and over the units that share a value."""
        return (g * x).sum_to_size(weight.shape)


def _register_one_to_one() -> None:
    from snntorch._neurons import rleaky, rsynaptic

    register_synapse(rleaky.RecurrentOneToOne, rsynaptic.RecurrentOneToOne)(_OneToOne)


_register_one_to_one()
