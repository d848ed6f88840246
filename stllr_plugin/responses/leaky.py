"""snnTorch's Leaky and RLeaky by heart.

The numbers of a window are those of the modules, operation by operation. Since u depends on the input through a sum,
nothing needs a graph: a gradient of u is a gradient of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stllr_plugin.calls import SynapseCall, SynapseSite
from stllr_plugin.neuron import Neuron
from stllr_plugin.neurons.base import NeuronStep
from stllr_plugin.responses.base import InnerSynapse
from stllr_plugin.responses.known import (
    Knowledge,
    KnownResponse,
    OfLeaf,
    fires_above_zero,
    spike_dtype,
    spike_product,
    spikes_first,
)
from stllr_plugin.synapses import ConvSynapse, LinearSynapse

# Methods that a user may have replaced on one neuron, which then does something else than is known here.
_OWN_METHODS = frozenset({"mem_reset", "_base_state_function", "_base_sub", "_base_zero", "_base_int"})


class LeakyKnowledge(Knowledge):
    """Leaky and RLeaky as the library makes them, with numbers that are not trained."""

    def serves(self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """See the base class."""
        module: Any = neuron.module
        if kwargs or not current.is_floating_point() or not neuron.known(_is_plain):
            return False
        if args and len(args) != len(neuron.adapter.state_buffers(module)):
            return False
        if not hasattr(module, "recurrent"):
            return True
        return current.dim() > 1 and neuron.known(_Recurrence.of) is not None

    def of_step(self, neuron: Neuron, step: NeuronStep, output: Any, states: list[Tensor]) -> KnownResponse:
        """See the base class; the only state besides the spikes is the membrane."""
        assert step.threshold_distance is not None
        module: Any = neuron.module
        inner, bias = [], []
        if hasattr(module, "recurrent"):
            recurrence = neuron.known(_Recurrence.of)
            assert recurrence is not None
            inner, bias = recurrence.calls(recurrence.passed()), recurrence.trained_bias()
        leaves, spikes = spikes_first(step, states)
        return _response(neuron, output, leaves, step.threshold_distance.unsqueeze(0), inner, bias)

    def step(
        self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, NeuronStep, Callable[[], KnownResponse]] | None:
        """See the base class; the operations are those of the module, without its surrogate and its reset's graph."""
        module: Any = neuron.module
        buffers = module._buffers
        recurrence = None
        given = [state for state in args if state is not None]
        if given and module.init_hidden:
            return None  # the module refuses it
        if "recurrent" in module._modules:
            spk = buffers["spk"] if not args or args[0] is None else args[0]
            mem = buffers["mem"] if len(args) < 2 or args[1] is None else args[1]
            recurrence = neuron.known(_Recurrence.of)
            if recurrence is None:
                return None
        else:
            mem = given[0] if given else buffers["mem"]
        with torch.no_grad():
            if mem.shape != current.shape:
                mem = torch.zeros_like(current)
            numbers = _numbers(neuron)
            threshold, how = numbers.threshold, numbers.how
            fired = spike_dtype(module.spike_grad, current.dtype)
            reset = _above(mem, threshold, fired)
            # One after the other and rounded as in the module, so that its spikes are the same to the last bit.
            u = torch.mul(mem if how != 1 else (1 - reset) * mem, numbers.beta)
            u = u.add_(current) if u.dtype == current.dtype else u + current
            if recurrence is not None:
                if spk.shape != current.shape:
                    spk = torch.zeros_like(current)
                u = u + recurrence.step(spk)
            if how == 0:
                u = _without(u, reset, threshold)
            v = u - threshold
            spikes = _above(u, threshold, fired)
            kept = u
            if not numbers.delayed and how != 2:
                kept = u - (spikes - reset) * threshold
        buffers["mem"] = kept
        if recurrence is not None:
            buffers["spk"] = spikes
        _set(module, "reset", reset)
        output = (spikes, kept) if module.output or not module.init_hidden else spikes

        def response() -> KnownResponse:
            inner = [] if recurrence is None else recurrence.calls(recurrence.passed())
            bias = [] if recurrence is None else recurrence.trained_bias()
            return _response(neuron, output, [spikes, kept], v.unsqueeze(0), inner, bias)

        return output, NeuronStep(u, v, spikes), response

    def scan(
        self, neuron: Neuron, num_steps: int, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> KnownResponse | None:
        """See the base class."""
        module: Any = neuron.module
        recurrent = _Recurrence.of(neuron) if hasattr(module, "recurrent") else None
        inputs = current.detach().reshape(num_steps, -1, *current.shape[1:])
        names = neuron.adapter.state_buffers(module)
        states = {name: module._buffers[name] for name in names}
        states.update({name: state for name, state in zip(names, args, strict=False) if state is not None})
        start = {
            name: state.detach()
            if state is not None and state.shape == inputs.shape[1:]
            else torch.zeros_like(inputs[0])
            for name, state in states.items()
        }
        returns_membrane = module.output or not module.init_hidden
        with torch.no_grad():
            v, spikes, returned, last = _run(
                module, inputs, start["mem"], start.get("spk"), recurrent, returns_membrane
            )
        module.mem = last
        if "spk" in names:
            module.spk = spikes[-1].clone()
        leaves = [spikes.flatten(0, 1)]
        if returned is not None:
            leaves.append(returned.flatten(0, 1))
        inner, bias = [], []
        if recurrent is not None:
            inner = recurrent.calls(torch.cat([start["spk"].unsqueeze(0), spikes[:-1]]))
            bias = recurrent.trained_bias()
        output = leaves[0] if len(leaves) == 1 else tuple(leaves)
        return _response(neuron, output, leaves, v, inner, bias)


def _response(
    neuron: Neuron, output: Any, leaves: list[Tensor], v: Tensor, inner: list[InnerSynapse], bias: list[Tensor]
) -> KnownResponse:
    undone = _undone(neuron.module)
    return KnownResponse(
        output=output,
        leaves=leaves,
        spikes=0,
        v=v,
        shape=v.shape,
        direct=True,
        inner=inner,
        parameters=bias,
        neuron=neuron,
        of_leaves={} if undone is None else dict.fromkeys(range(1, len(leaves)), undone),
        needs_distance=undone is not None,
    )


def _run(
    module: Any, inputs: Tensor, mem: Tensor, spk: Tensor | None, recurrent: _Recurrence | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The K steps: v = u - threshold and spikes, each [K, B, ...]; returned membranes, if to be kept; the last one."""
    beta, threshold = module.beta.clamp(0, 1), module.threshold
    how = module.reset_mechanism_val  # 0 subtracts the threshold, 1 sets to zero, 2 leaves the membrane
    at_once = not module.reset_delay and how != 2
    # Under autocast currents come in half precision; what they make with float32 spikes or membranes is float32.
    fired = spike_dtype(module.spike_grad, inputs.dtype)
    dtype = torch.promote_types(inputs.dtype, mem.dtype)
    dtype = dtype if how == 2 else torch.promote_types(dtype, fired)
    mem = mem.to(dtype)
    # As snnTorch decides: u - threshold > 0, also for the reset that is due from the step before.
    reset = torch.gt(mem - threshold, 0).to(fired)
    distances, spikes = torch.empty_like(inputs, dtype=dtype), torch.empty_like(inputs, dtype=fired)
    returned = torch.empty_like(distances) if keep else None
    buffer = torch.empty_like(distances[0])
    memory = [buffer] * len(inputs) if returned is None else returned.unbind(0)
    for x, v, y, u in zip(inputs.unbind(0), distances.unbind(0), spikes.unbind(0), memory, strict=True):
        if how == 1:
            torch.mul(1 - reset, mem, out=u)
            u.mul_(beta)
        else:
            torch.mul(mem, beta, out=u)
        u.add_(x)
        if recurrent is not None:
            assert spk is not None
            u.add_(recurrent(spk))
        if how == 0:
            u.addcmul_(reset, threshold, value=-1)
        torch.sub(u, threshold, out=v)
        torch.gt(v, 0, out=y)
        if at_once:
            u.addcmul_(y - reset, threshold, value=-1)
            reset = torch.gt(u - threshold, 0).to(fired)
        else:
            reset = y
        mem, spk = u, y
    return distances, spikes, returned, mem if returned is None else mem.clone()


@dataclass(slots=True)
class _Numbers:
    """Of one neuron, as a step needs them.

    Attributes:
        found: What they were read from.
        state: In which state that was.
        beta: Between 0 and 1; a number where reading it does not wait for a device.
        threshold: The same.
        how: 0 subtracts the threshold, 1 sets to zero, 2 leaves the membrane.
        delayed: Whether the reset comes at the next step.
    """

    found: tuple[Tensor, Tensor]
    state: tuple[Any, ...]
    beta: Any
    threshold: Any
    how: int
    delayed: bool


_NUMBERS: WeakKeyDictionary[Any, _Numbers] = WeakKeyDictionary()


def _numbers(neuron: Neuron) -> _Numbers:
    """The neuron's numbers, read again where somebody has changed them."""
    module: Any = neuron.module
    buffers = module._buffers
    beta, threshold, how = buffers["beta"], buffers["threshold"], buffers["reset_mechanism_val"]
    number = neuron.session.sequence.number  # read once per sequence in any case
    state = (number, beta._version, threshold._version, how._version, module.reset_delay)
    known = _NUMBERS.get(module)
    if known is None or known.state != state or known.found[0] is not beta or known.found[1] is not threshold:
        delayed = bool(module.reset_delay)
        numbers = _as_number(beta.clamp(0, 1)), _as_number(threshold)
        known = _NUMBERS[module] = _Numbers((beta, threshold), state, *numbers, int(how), delayed)
    return known


def _as_number(tensor: Tensor) -> Any:
    return tensor.item() if tensor.dim() == 0 and tensor.device.type == "cpu" else tensor


def _above(membrane: Tensor, threshold: Any, dtype: torch.dtype) -> Tensor:
    """Where the membrane is above the threshold, as numbers, in one pass; the same as where the difference is > 0."""
    if membrane.dtype not in (torch.float32, torch.float64):  # in which the threshold may be another number
        membrane, threshold = membrane - threshold, 0
    above = torch.empty_like(membrane, dtype=dtype)
    torch.gt(membrane, threshold, out=above)
    return above


def _without(u: Tensor, reset: Tensor, threshold: Any) -> Tensor:
    """``u - reset * threshold``; a product with 0 or 1 is not rounded, so it may be fused."""
    if isinstance(threshold, float) and u.dtype == reset.dtype:
        u.sub_(reset, alpha=threshold)
        return u
    left: Tensor = u - reset * threshold
    return left


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Sets a plain attribute or a buffer, as ``setattr`` does, without its search."""
    place = module._buffers if name in module._buffers else module.__dict__
    place[name] = value


def _undone(module: Any) -> OfLeaf | None:
    """A gradient of a membrane that is reset within the step as one of u; None where it is the same."""
    if module.reset_delay or module.reset_mechanism_val == 2:
        return None
    threshold = module.threshold
    return lambda response, gradient: gradient * (1 - response.derivative() * threshold)


def _is_plain(neuron: Neuron) -> bool:
    """Whether the neuron is a Leaky or RLeaky as the library makes them, and nothing of it but synapses is trained."""
    if type(neuron.module).__module__.partition(".")[0] != "snntorch":
        return False
    from snntorch import Leaky, RLeaky

    from stllr_plugin.neurons.snntorch import spike_gain

    module: Any = neuron.module
    kind: Any = type(module)
    return (
        kind in (Leaky, RLeaky)
        and {"beta", "threshold", "reset_mechanism_val"} <= module._buffers.keys()
        and getattr(neuron.tap, "own", None) is None  # a `fire` of the user's on this instance
        and _OWN_METHODS.isdisjoint(module.__dict__)
        and getattr(module.state_function, "__func__", None) in (kind._base_sub, kind._base_zero, kind._base_int)
        and not module.inhibition
        and not module.state_quant
        # With a reset to zero du/d(input) is not 1 in an RLeaky, nor is d(mem)/du where it comes within the step.
        and not (module.reset_mechanism_val == 1 and (kind is RLeaky or not module.reset_delay))
        and not any(isinstance(value, nn.Parameter) for value in (module.beta, module.threshold))
        and not module.graded_spikes_factor.requires_grad
        and spike_gain(module.graded_spikes_factor) is None
        and fires_above_zero(module.spike_grad)
    )


class _Recurrence:
    """The recurrent layer of an RLeaky, run without the learner's hooks or with hooks that stand aside."""

    def __init__(self, site: SynapseSite, module: nn.Module) -> None:
        self.site: Any = site
        self.module = module
        self._forward = type(module).forward
        self._parts: list[list[Tensor]] = []

    @classmethod
    def of(cls, neuron: Neuron) -> _Recurrence | None:
        """The recurrence, if it is a plain layer without hooks of the user's."""
        module: Any = neuron.module.recurrent
        ours: Any = next((site for site in neuron.inner_sites if getattr(site, "module", None) is module), None)
        plain = (
            ours is not None
            and isinstance(ours.synapse, (LinearSynapse, ConvSynapse))
            and type(module) in (nn.Linear, nn.Conv2d)
            and not ours.has_own_forward
            and not parametrize.is_parametrized(module)
            and len(module._forward_hooks) == 1
            and len(module._forward_pre_hooks) == 1
            and "weight" in module._parameters
        )
        return cls(ours, module) if plain else None

    def __call__(self, spikes: Tensor) -> Tensor:
        """The current that last step's spikes [B, ...] make."""
        if type(self.module) is nn.Linear:
            product = spike_product(spikes, self.module.weight, self._parts)
            if product is not None:
                return product if self.module.bias is None else product.add_(self.module.bias)
        return self._forward(self.module, spikes)  # type: ignore[no-any-return]

    def step(self, spikes: Tensor) -> Tensor:
        """The current that last step's spikes make, at a step that is attached: the layer's own product."""
        self.site.passed = spikes
        return self._forward(self.module, spikes)  # type: ignore[no-any-return]

    def passed(self) -> Tensor:
        """What the layer was called on in the step that has just run, [1, B, ...]."""
        x: Tensor = self.site.passed
        return x.detach().unsqueeze(0)

    def trained_bias(self) -> list[Tensor]:
        """Its bias, in a list, if it has one that is trained."""
        bias = self.module._parameters.get("bias")
        return [bias] if bias is not None and bias.requires_grad else []

    def calls(self, x: Tensor) -> list[InnerSynapse]:
        """Its calls on inputs [K, B, ...], in a list, if its weight is trained."""
        weight: Any = self.module.weight
        if not weight.requires_grad:
            return []
        call = SynapseCall(self.site, x[0], x._version, weight, self.site.session.next_order())
        return [InnerSynapse(call, x)]
