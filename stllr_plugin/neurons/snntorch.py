"""Adapter for snnTorch 1.x neurons.

u is the argument of the neuron's own ``fire`` method, tapped on the instance: exact for every reset mechanism, delay
and quantisation, and it works for user subclasses that call ``self.fire``. (``spike_grad`` cannot be tapped: it runs
twice per step.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch
import torch
from torch import Tensor, nn

from stllr_plugin.neurons.base import (
    AttributeTap,
    MembraneTap,
    NeuronAdapter,
    NeuronStep,
    map_tensors,
    register_adapter,
    register_refusal,
)
from stllr_plugin.synapses import Synapse, register_synapse

_STATES: dict[type, tuple[str, ...]] = {
    snntorch.Leaky: ("mem",),
    snntorch.RLeaky: ("spk", "mem"),
    snntorch.Synaptic: ("syn", "mem"),
    snntorch.RSynaptic: ("spk", "syn", "mem"),
    snntorch.Lapicque: ("mem",),
}

# Neurons of snnTorch without a form of the rule: why, and what to use.
_REFUSED: dict[str, str] = {
    "Alpha": "its membrane does not depend on the input of the same time step (du[t]/dI[t] = 0), so no learning signal "
    "could reach the layers below; use snntorch.Synaptic",
    "DeltaLeaky": "its spikes compare changes of the membrane, which is not supported yet; use snntorch.Leaky",
    "SLSTM": "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
    "SConv2dLSTM": "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
    "LeakyParallel": "it runs all time steps in one call, not one at a time; use nn.Linear and snntorch.Leaky",
    "StateLeaky": "it runs all time steps in one call, not one at a time; use snntorch.Leaky",
    "LinearLeaky": "it runs all time steps in one call, not one at a time; use nn.Linear and snntorch.Leaky",
    "AssociativeLeaky": "it runs all time steps in one call, not one at a time; use snntorch.Leaky",
}


@register_adapter
class SnnTorchAdapter(NeuronAdapter):
    """Leaky, RLeaky, Synaptic, RSynaptic and Lapicque, with hidden or explicit states."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, tuple(_STATES)) and _refusal(module) is None

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        found = []
        neuron: Any = module
        if neuron.inhibition:
            found.append("inhibition=True (winner takes all) is not supported yet; use inhibition=False")
        if neuron.state_quant:
            found.append("state_quant is not supported yet; train without it")
        factor = neuron.graded_spikes_factor
        if isinstance(factor, nn.Parameter) or not bool((factor == 1).all()):
            found.append(
                "graded_spikes_factor other than 1 is not supported yet; scale the spikes outside of the neuron"
            )
        if isinstance(module, snntorch.RSynaptic) and not neuron.reset_delay:
            found.append("reset_delay=False is ignored or raises in snnTorch's RSynaptic; use reset_delay=True")
        return found

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        return AttributeTap(module, "fire")

    def state_buffers(self, module: nn.Module) -> tuple[str, ...]:
        """See the base class."""
        return next(names for kind, names in _STATES.items() if isinstance(module, kind))

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class."""
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
        (membrane,) = tap.calls[-1]
        return NeuronStep(membrane, membrane - module.threshold, spikes)

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class."""
        for name in self.state_buffers(module):
            module._buffers[name] = change(module._buffers[name])  # type: ignore[arg-type]
        return map_tensors(output, change)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class; snnTorch keeps the membrane in the module, also where it returns it."""
        return module._buffers["mem"]

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
                rows = mask.to(state.device).view(-1, *[1] * (state.dim() - 1))
                module._buffers[name] = torch.where(rows, torch.zeros_like(state), state.detach())


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _refusal(module: nn.Module) -> str | None:
    """The reason for a class of snnTorch in :data:`_REFUSED`; some of them inherit from neurons that are supported."""
    for kind in type(module).__mro__:
        if kind.__name__ in _REFUSED and kind.__module__.startswith("snntorch."):
            return _REFUSED[kind.__name__]
    return None


@register_refusal
def _refuse(module: nn.Module) -> str | None:
    reason = _refusal(module)
    if reason is not None:
        return reason
    if not isinstance(module, snntorch.SpikingNeuron) or isinstance(module, tuple(_STATES)):
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
