"""Adapter for SpikingJelly 2.x neurons in single-step mode.

SpikingJelly computes a whole step in one operator and keeps only the membrane after the reset, so u is computed again
from the input and the incoming states with the node's own charging equation. Both are seen by wrapping the instance's
``single_step_functional_forward``, which every node calls once per step whatever kernel runs behind it; nodes derived
from ``SimpleBaseNode`` hold u in ``v`` when they call ``neuronal_fire``.

States are SpikingJelly's memories: values that the module keeps itself, plain numbers before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import Tensor, nn

from stllr_plugin.errors import AttachmentError, SequenceInputError
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
    reset_rows,
)

if not hasattr(neuron.BaseNode, "single_step_functional_forward"):
    raise AttachmentError(
        ["this model has modules of a SpikingJelly older than 2.0, whose nodes work differently; install 2.0 or newer."]
    )

_SUPPORTED = (
    "IFNode, LIFNode, ParametricLIFNode, QIFNode, EIFNode, IzhikevichNode, KLIFNode, CUBALIFNode, "
    "ComplementaryLIFNode, HalfThresholdIFNode, SimpleIFNode, SimpleLIFNode and other nodes derived from SimpleBaseNode"
)
_PACKAGE = "spikingjelly.activation_based."

# The membrane that is compared with the threshold, from the node, its input and its incoming states (v first).
Charge = Callable[[Any, Tensor, tuple[Any, ...]], Tensor]


def _leak(node: Any, x: Tensor, v: Tensor, rate: Any) -> Tensor:
    """One step towards rest at a rate; ``decay_input`` says whether the input is multiplied by it as well."""
    distance = v - (0.0 if node.v_reset is None else node.v_reset)
    membrane: Tensor = v + (x - distance) * rate if node.decay_input else v - distance * rate + x
    return membrane


def _if(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    membrane: Tensor = states[0] + x
    return membrane


def _lif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    return _leak(node, x, states[0], 1.0 / node.tau)


def _plif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    return _leak(node, x, states[0], node.w.sigmoid())


def _klif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    return torch.relu(node.k * _lif(node, x, states))


def _qif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    v = states[0]
    membrane: Tensor = v + (x + node.a0 * (v - node.v_rest) * (v - node.v_c)) / node.tau
    return membrane


def _izhikevich(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    return _qif(node, x - states[-1], states)


def _eif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    v = states[0]
    rise = node.delta_T * torch.exp((v - node.theta_rh) / node.delta_T)
    membrane: Tensor = v + (x + node.v_rest - v + rise) / node.tau
    return membrane


def _cuba_lif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    v, current = states
    membrane: Tensor = v * node.v_decay + (current * node.c_decay + x)
    return membrane


def _complementary_lif(node: Any, x: Tensor, states: tuple[Any, ...]) -> Tensor:
    v = states[0]
    membrane: Tensor = v - v / node.tau + x
    return membrane


_CHARGE: dict[type, Charge] = {
    neuron.IFNode: _if,
    neuron.HalfThresholdIFNode: _if,
    neuron.LIFNode: _lif,
    neuron.ParametricLIFNode: _plif,
    neuron.KLIFNode: _klif,
    neuron.QIFNode: _qif,
    neuron.EIFNode: _eif,
    neuron.IzhikevichNode: _izhikevich,
    neuron.CUBALIFNode: _cuba_lif,
    neuron.ComplementaryLIFNode: _complementary_lif,
}

# Why others have no form of the rule, by class name.
_OWN_ONLINE = "it brings an online rule of its own, which would act on top of this one; use"
_ALL_AT_ONCE = "it computes all time steps in one call; use LIFNode"
_RATE = "its gradient is that of a rate over the whole sequence; use IFNode or LIFNode"
_FEW = "made for converted networks, it spreads one value over several steps; use IFNode"
_POPULATION = "made for decoding populations in reinforcement learning, it takes all time steps in one call; use"
_NOISY = "made for exploration in reinforcement learning, it draws noise for all time steps of one call; use"
_SILENT = "it takes all time steps in one call; for a readout use LIFNode with a threshold that it never reaches"
_REFUSED: dict[str, str] = {
    "OTTTLIFNode": f'{_OWN_ONLINE} LIFNode with the same settings and rule="ottt" (lambda_pre = 1 - 1/tau)',
    "SLTTLIFNode": f'{_OWN_ONLINE} LIFNode with the same settings and rule="sltt"',
    "OTTTSequential": f'{_OWN_ONLINE} nn.Sequential, LIFNode and rule="ottt"',
    "GradwithTrace": f'{_OWN_ONLINE} the layer itself and rule="ottt"',
    "SpikeTraceOp": f'{_OWN_ONLINE} the layer itself and rule="ottt"',
    "RAFNode": "its membrane does not depend on the input of the same time step (du[t]/dI[t] = 0), so no learning "
    "signal could reach the layers below; use LIFNode",
    "LIAFNode": "it gives out a function of the membrane in place of spikes; use LIFNode",
    "ILIFNode": "it gives out spike counts, not spikes; use LIFNode",
    "TernaryIFNode": "it has two thresholds, the rule knows one; use IFNode",
    "TernaryLIFNode": "it has two thresholds, the rule knows one; use LIFNode",
    "ActivationAwareIFNode": "it is made for converted networks; use IFNode",
    "MPBNLIFNode": "it normalises the membrane over the batch between charging and firing; use LIFNode and a norm "
    "layer before it",
    "PSN": _ALL_AT_ONCE,
    "MaskedPSN": "its membrane is a learned sum over past inputs, whose weights have no eligibility; use LIFNode",
    "SlidingPSN": "its membrane is a learned sum over past inputs, whose weights have no eligibility; use LIFNode",
    "GatedLIFNode": _ALL_AT_ONCE,
    "DSRIFNode": _RATE,
    "DSRLIFNode": _RATE,
    "FewSpikeNode": _FEW,
    "HGNode": _FEW,
    "OutlierAwareThresholdNode": _FEW,
    "STBIFNode": "made for converted networks, it fires in both directions; use IFNode",
    "FlexSN": "its step is any function, whose membrane is not known; derive from SimpleBaseNode",
    "ILCIFNode": f"{_POPULATION} IFNode",
    "ILCLIFNode": f"{_POPULATION} LIFNode",
    "ILCCUBALIFNode": f"{_POPULATION} CUBALIFNode",
    "NoisyCUBALIFNode": f"{_NOISY} CUBALIFNode",
    "NoisyILCCUBALIFNode": f"{_NOISY} CUBALIFNode",
    "NoisyNonSpikingIFNode": f"{_NOISY} IFNode",
    "NonSpikingBaseNode": _SILENT,
    "NonSpikingIFNode": _SILENT,
    "NonSpikingLIFNode": _SILENT,
    "DropConnectLinear": "its weight is drawn anew for each sequence; use nn.Linear, with layer.Dropout before it",
    "WSLinear": "it standardises its weight within the call; use nn.Linear with torch.nn.utils.parametrizations",
    "WSConv2d": "it standardises its weight within the call; use nn.Conv2d with torch.nn.utils.parametrizations",
}


class _Memories(StateKeeper):
    """States that SpikingJelly modules keep: neurons, recurrent containers, filters, dropout masks."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, base.MemoryModule)

    def change(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """See the base class."""
        memories: dict[str, Any] = module._memories  # type: ignore[assignment]
        for name, value in memories.items():
            memories[name] = map_tensors(value, change)

    def reset(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class."""
        if mask is None:
            module.reset()  # type: ignore[operator]
            return
        if isinstance(module, layer.Dropout):
            return  # one mask serves all samples until the next sequence
        memories: dict[str, Any] = module._memories  # type: ignore[assignment]
        for name, value in memories.items():
            start = module._memories_rv[name]  # type: ignore[index]
            start = torch.as_tensor(start if isinstance(start, (int, float, Tensor)) else 0.0)
            memories[name] = map_tensors(value, partial(_restarted, mask=mask, start=start))

    def save(self, module: nn.Module) -> Any:
        """See the base class."""
        return map_tensors(dict(module._memories), copied)  # type: ignore[arg-type]

    def restore(self, module: nn.Module, saved: Any) -> None:
        """See the base class."""
        module._memories.update(saved)  # type: ignore[operator, union-attr]


def _restarted(state: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    if state.dim() == 0 or state.shape[0] != mask.shape[0]:
        return state
    return reset_rows(state, mask, start)


# Layers of SpikingJelly with weights derive from these.
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

_MEMORIES = _Memories()
register_keeper(_MEMORIES)


class _FireTap(AttributeTap):
    """Notes the membrane that a ``SimpleBaseNode`` holds when it fires."""

    def __call__(self, *args: Any) -> Any:
        """Calls the plain method; notes ``v`` while open."""
        if self.open:
            self.calls.append((self.module.v,))
        return self._plain(*args)


@register_adapter
class SpikingJellyAdapter(NeuronAdapter):
    """Nodes that know their charging equation (:data:`_CHARGE`), and those derived from ``SimpleBaseNode``."""

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, (neuron.SimpleBaseNode, *_CHARGE)) and _refusal(module) is None

    def leak(self, module: nn.Module) -> float | None:
        """See the base class."""
        node: Any = module
        if isinstance(module, neuron.ParametricLIFNode):
            return 1.0 - float(node.w.detach().sigmoid())
        if isinstance(module, (neuron.IFNode, neuron.SimpleIFNode, neuron.HalfThresholdIFNode)):
            return 1.0
        if isinstance(module, neuron.CUBALIFNode):
            return one_number(node.v_decay)
        if isinstance(module, (neuron.LIFNode, neuron.SimpleLIFNode, neuron.ComplementaryLIFNode)):
            tau = one_number(node.tau)
            return None if tau is None else 1.0 - 1.0 / tau
        return None

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        node: Any = module
        found = []
        if node.step_mode != "s":
            found.append(
                f"step_mode={node.step_mode!r} runs all time steps in one call, and an online rule needs one at a "
                'time; call functional.set_step_mode(model, "s") and the model on x[t], step by step'
            )
        if getattr(node, "store_v_seq", False):
            found.append("store_v_seq=True keeps the graph of every step; set it to False and read `v` at each step")
        if getattr(node, "store_state_seqs", False):
            found.append("store_state_seqs=True keeps the graph of every step; set it to False")
        if not getattr(node.surrogate_function, "spiking", True):
            found.append("its surrogate has spiking=False, so that it gives out no spikes; use spiking=True")
        return found

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        if isinstance(module, neuron.SimpleBaseNode):
            return _FireTap(module, "neuronal_fire")
        return AttributeTap(module, "single_step_functional_forward")

    def keeps_state(self, module: nn.Module) -> bool:
        """See the base class: always."""
        return True

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class. Before the first step, and after ``functional.reset_net``, ``v`` is a plain number."""
        _MEMORIES.change(module, Tensor.detach)
        membrane = module.v
        return args, kwargs, membrane if isinstance(membrane, Tensor) and membrane.dim() > 0 else None

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class."""
        node: Any = module
        if node.step_mode != "s" or len(tap.calls) > 1:
            raise SequenceInputError(
                f"{type(module).__name__} ran in multi-step mode. An online rule needs one time step per call: "
                'functional.set_step_mode(model, "s"), then feed x[t].'
            )
        if not tap.calls:
            return NeuronStep(None, None, output)
        if isinstance(module, neuron.SimpleBaseNode):
            (membrane,) = tap.calls[0]
        else:
            inputs, states = tap.calls[0]
            membrane = _charge(module)(node, inputs[0], states)
        return NeuronStep(membrane, membrane - node.v_threshold, output)

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class."""
        _MEMORIES.change(module, change)
        return map_tensors(output, change)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class; SpikingJelly keeps the membrane in the module."""
        return module.v  # type: ignore[return-value]

    def left_membrane(self, module: nn.Module) -> Any:
        """See the base class. Each reset puts one number object in place; another object of that value shows it."""
        if isinstance(module.v, float):
            module.v = module.v * 1.0  # type: ignore[assignment]
        return module.v

    def release_states(self, module: nn.Module) -> None:
        """See the base class."""
        _MEMORIES.change(module, Tensor.detach)

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        return module.surrogate_function  # type: ignore[return-value]

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class."""
        _MEMORIES.reset(module, mask)


def _known(module: nn.Module) -> type | None:
    """The class of :data:`_CHARGE` that a node is of."""
    return next((kind for kind in type(module).__mro__ if kind in _CHARGE), None)


def _charge(module: nn.Module) -> Charge:
    kind = _known(module)
    assert kind is not None
    return _CHARGE[kind]


def _refusal(module: nn.Module) -> str | None:
    """Why a node cannot be trained although it may inherit from one that can."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith(_PACKAGE) and kind.__name__ in _REFUSED:
            return _REFUSED[kind.__name__]
    step: Any
    if isinstance(module, neuron.SimpleBaseNode):
        step, own = "neuronal_fire", neuron.SimpleBaseNode
    else:
        step, own = "single_step_functional_forward", _known(module)
    if own is not None and getattr(type(module), step) is not getattr(own, step):
        return (
            f"it overrides {step} of {own.__name__}, so that its membrane is not known; derive from SimpleBaseNode and "
            "override neuronal_charge"
        )
    return None


@register_refusal
def _refuse(module: nn.Module) -> str | None:
    reason = _refusal(module)
    if reason is not None:
        return reason
    if isinstance(module, _LAYERS) and getattr(module, "step_mode", "s") == "m":
        return 'it is in multi-step mode; call functional.set_step_mode(model, "s") and feed one time step per call'
    origins = [kind.__module__ for kind in type(module).__mro__]
    if isinstance(module, nn.Module) and any(origin.startswith(f"{_PACKAGE}neuron.") for origin in origins):
        return f"this node is not supported; supported: {_SUPPORTED}"
    return None
