"""Norse's LIFCell, LIFRecurrentCell, LIFBoxCell, LICell and LIBoxCell by heart.

The numbers of a window are those of the cells, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from stllr_plugin.calls import SynapseCall
from stllr_plugin.neuron import Neuron
from stllr_plugin.neurons.base import NeuronStep
from stllr_plugin.responses.base import InnerSynapse
from stllr_plugin.responses.known import Knowledge, KnownResponse, OfLeaf, spike_product, spikes_first
from stllr_plugin.sparse import SparseLinear, SparseMatrix

# The cells, and the function that does the step of each.
_SPIKING = {
    "LIFCell": "lif_feed_forward_step",
    "LIFRecurrentCell": "lif_step",
    "LIFBoxCell": "lif_box_feed_forward_step",
}
_READOUTS = {"LICell": "li_feed_forward_step", "LIBoxCell": "li_box_feed_forward_step"}
# Norse's surrogates: all are a step at 0 in the forward pass, with no spike at 0 itself.
_METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


class CellKnowledge(Knowledge):
    """These cells as the library makes them, with numbers that are not trained."""

    def serves(self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """See the base class."""
        if set(kwargs) - {"state"} or len(args) + len(kwargs) > 1 or not neuron.known(_is_plain):
            return False
        if not current.is_floating_point() or current.is_sparse:
            return False
        return not _is_recurrent(neuron) or current.dim() == 2

    def of_step(self, neuron: Neuron, step: NeuronStep, output: Any, states: list[Tensor]) -> KnownResponse:
        """See the base class."""
        module: Any = neuron.module
        leaves, spikes = spikes_first(step, states)
        state = output[1]
        boxed = not hasattr(state, "i")
        rate, lost = _rates(module, boxed)
        of_leaves: dict[int, OfLeaf] = {}
        for place, leaf in enumerate(leaves):
            if not boxed and leaf is state.i:
                of_leaves[place] = _of_current(rate, lost)
            elif spikes is not None and leaf is state.v:
                of_leaves[place] = _of_membrane
        v = step.threshold_distance
        shown = leaves[0] if v is None else v
        response = KnownResponse(
            output=output,
            leaves=leaves,
            spikes=spikes,
            v=None if v is None else v.unsqueeze(0),
            shape=shown.unsqueeze(0).shape,
            direct=True,
            slope=rate,
            neuron=neuron,
            of_leaves=of_leaves,
            needs_distance=True,
        )
        if _is_recurrent(neuron):
            passed = {site: x.detach().unsqueeze(0) for site, x in neuron.passed}
            response.inner = _inner(neuron, *(passed[site] for site in neuron.own_weights))
            response.projects = True
            response.before = _before(module)
        return response

    def step(
        self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, NeuronStep, Callable[[], KnownResponse]] | None:
        """See the base class: a window of one step."""
        given = next(iter((*args, *kwargs.values())), None)
        if current.dim() < 2 or (given is not None and not _fits(neuron, current, given)):
            return None
        response = self.scan(neuron, 1, current, args, kwargs)
        shown = response.leaves[0]
        v = None if response.v is None else response.v[0]
        return response.output, NeuronStep(shown, v, None if v is None else shown), lambda: response

    def scan(
        self, neuron: Neuron, num_steps: int, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> KnownResponse:
        """See the base class."""
        with torch.no_grad():
            given = next(iter((*args, *kwargs.values())), None)
            first = current.detach()[: len(current) // num_steps]
            state = neuron.module.state_fallback(first) if given is None else given  # type: ignore[operator]
            if type(neuron.module).__name__ in _READOUTS:
                return _integrate(neuron, num_steps, current.detach(), state)
            return _spiking(neuron, num_steps, current.detach(), state)


def _fits(neuron: Neuron, current: Tensor, state: Any) -> bool:
    """Whether a state is one of this batch; what becomes of another one only the cell can tell."""
    shape = (len(current), neuron.module.hidden_size) if _is_recurrent(neuron) else tuple(current.shape)
    return all(value.dim() == 0 or tuple(value.shape) == shape for value in state)


def _is_recurrent(neuron: Neuron) -> bool:
    return type(neuron.module).__name__ == "LIFRecurrentCell"


def _rates(module: Any, boxed: bool) -> tuple[Any, Any]:
    """How much of the current enters the membrane in a step, and how much of it is lost (below 0)."""
    p, dt = module.p, module.dt
    return dt * p.tau_mem_inv, 0.0 if boxed else -dt * p.tau_syn_inv


def _is_plain(neuron: Neuron) -> bool:
    """Whether the neuron is one of these as the library makes them, with numbers that are not trained."""
    module: Any = neuron.module
    name = type(module).__name__
    known = (_SPIKING | _READOUTS).get(name)
    if known is None or not type(module).__module__.startswith("norse.torch.module."):
        return False
    step = getattr(neuron.tap, "own", None) or module.activation  # behind the learner's tap
    if getattr(step, "__name__", "") != known or not step.__module__.startswith("norse."):
        return False
    if not isinstance(module.p, tuple):
        return False
    numbers = [value for value in module.p if isinstance(value, Tensor)]
    return (
        all(number.numel() == 1 and not number.requires_grad for number in numbers)
        and getattr(module.p, "method", "super") in _METHODS
        and not parametrize.is_parametrized(module)
        and isinstance(module.dt, (int, float))
    )


def _dtype(inputs: Tensor, state: Any) -> torch.dtype:
    """Of the membranes: under autocast inputs come in half precision, but most states begin in float32."""
    dtype = inputs.dtype
    for value in state:
        if value.dim() > 0:
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def _start(value: Tensor, like: Tensor) -> Tensor:
    """A state as a tensor of the shape and dtype of the neurons; Norse begins with a single number."""
    return value.detach().to(like.dtype).expand_as(like)


def _integrate(neuron: Neuron, num_steps: int, current: Tensor, state: Any) -> KnownResponse:
    """LICell and LIBoxCell."""
    module: Any = neuron.module
    p = module.p
    inputs = current.reshape(num_steps, -1, *current.shape[1:])
    membranes = torch.empty_like(inputs, dtype=_dtype(inputs, state))
    v = _start(state.v, membranes[0])
    boxed = not hasattr(state, "i")
    currents = None if boxed else torch.empty_like(membranes)
    i = None if boxed else _start(state.i, membranes[0])
    rate, lost = _rates(module, boxed)
    for t, x in enumerate(inputs.unbind(0)):
        jump = x if i is None else i + x
        change = (p.v_leak - v).add_(jump).mul_(rate)
        v = torch.add(v, change, out=membranes[t])
        if currents is not None:
            i = torch.mul(jump, lost, out=currents[t]).add_(jump)
    shown = membranes.flatten(0, 1)
    leaves = [shown] if currents is None else [shown, currents.flatten(0, 1)]
    returned = state._replace(v=shown) if currents is None else state._replace(v=shown, i=leaves[1])
    return KnownResponse(
        output=(shown, returned),
        leaves=leaves,
        spikes=None,
        v=None,
        shape=membranes.shape,
        direct=True,
        slope=rate,
        neuron=neuron,
        of_leaves={} if boxed else {1: _of_current(rate, lost)},
    )


def _spiking(neuron: Neuron, num_steps: int, current: Tensor, state: Any) -> KnownResponse:
    """LIFCell, LIFRecurrentCell and LIFBoxCell."""
    module: Any = neuron.module
    p, recurrent = module.p, _is_recurrent(neuron)
    inputs = _projected(current, module.input_weights.detach(), num_steps > 1) if recurrent else current
    inputs = inputs.reshape(num_steps, -1, *inputs.shape[1:])
    boxed = not hasattr(state, "i")
    distances, spikes, membranes = (torch.empty_like(inputs, dtype=_dtype(inputs, state)) for _ in range(3))
    v = _start(state.v, membranes[0])
    i = None if boxed else _start(state.i, membranes[0])
    z = _start(state.z, membranes[0]) if recurrent else None
    before, parts = z, []  # type: ignore[var-annotated]
    currents = None if boxed else torch.empty_like(membranes)
    rate, lost = _rates(module, boxed)
    for t, x in enumerate(inputs.unbind(0)):
        if i is None:
            u = (x + p.v_leak).sub_(v).mul_(rate).add_(v)
        else:
            jump = i + x
            if z is not None:
                weight = module.recurrent_weights.detach()
                product = spike_product(z, weight, parts) if num_steps > 1 else None
                jump.add_(functional.linear(z, weight) if product is None else product)
            u = (p.v_leak - v).add_(jump).mul_(rate).add_(v)
            assert currents is not None
            i = torch.mul(jump, lost, out=currents[t]).add_(jump)
        z_new = torch.gt(torch.sub(u, p.v_th, out=distances[t]), 0, out=spikes[t])
        if boxed:
            v = membranes[t].copy_(p.reset_method(z_new, u, p.v_reset, p.v_th))
        else:
            v = torch.sub(1, z_new, out=membranes[t]).mul_(u).add_(z_new * p.v_reset)
        z = z_new if recurrent else None
    leaves, returned = _given_out(spikes, membranes, currents, state)
    inner: list[InnerSynapse] = []
    if recurrent:
        assert before is not None
        shifted = torch.cat([before.unsqueeze(0), spikes[:-1]])
        inner = _inner(neuron, current.reshape(num_steps, -1, *current.shape[1:]), shifted)
    of_leaves: dict[int, OfLeaf] = {1: _of_membrane}
    if not boxed:
        of_leaves[2] = _of_current(rate, lost)
    return KnownResponse(
        output=(leaves[0], returned),
        leaves=leaves,
        spikes=0,
        v=distances,
        shape=distances.shape,
        direct=True,
        slope=rate,
        projects=recurrent,
        inner=inner,
        neuron=neuron,
        of_leaves=of_leaves,
        needs_distance=True,
        before=_before(module) if recurrent else None,
    )


def _given_out(spikes: Tensor, membranes: Tensor, currents: Tensor | None, state: Any) -> tuple[list[Tensor], Any]:
    """What the cell gives out over all steps [K * B, ...]: its tensors, and the states in the form that it has."""
    leaves = [spikes.flatten(0, 1), membranes.flatten(0, 1)]
    returned = state._replace(v=leaves[1])
    if currents is not None:
        leaves.append(currents.flatten(0, 1))
        returned = returned._replace(i=leaves[2])
    return leaves, returned._replace(z=leaves[0]) if hasattr(state, "z") else returned


def _projected(x: Tensor, weight: Tensor, sparse: bool) -> Tensor:
    """The currents that inputs make; if allowed from sparse products, whose rounding is another one."""
    exact = sparse and weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    found = SparseMatrix.of(x, len(weight)) if exact else None
    product: Tensor = functional.linear(x, weight) if found is None else SparseLinear.apply(x, found, weight, None)
    return product


def _before(module: Any) -> Callable[[Tensor], Tensor]:
    weight: Tensor = module.input_weights.detach()
    return lambda gradient: gradient @ weight


def _inner(neuron: Neuron, x: Tensor, spikes: Tensor) -> list[InnerSynapse]:
    """The calls of the cell's own weights that are trained, in the order in which the cell uses them."""
    found = []
    for own, inputs in zip(neuron.own_weights, (x, spikes), strict=True):
        weight: Tensor = getattr(neuron.module, own.weight_name)
        if weight.requires_grad:
            order = neuron.session.next_order()
            found.append(InnerSynapse(SynapseCall(own, inputs[0], inputs._version, weight, order), inputs))
    return found


def _of_current(rate: Tensor, lost: Any) -> OfLeaf:
    """A gradient of the synaptic current that is left, as one of u: both follow from the input through a factor."""
    return lambda response, gradient: (gradient + gradient * lost) / rate


def _of_membrane(response: KnownResponse, gradient: Tensor) -> Tensor:
    """A gradient of the membrane after the reset as one of u; in recurrent cells no gradient runs through the reset."""
    assert response.neuron is not None and response.v is not None
    p: Any = response.neuron.module.p
    with torch.enable_grad():
        v = response.v.detach().requires_grad_()
        z = response.neuron.adapter.spike_function(response.neuron.module)(v)
        u = v + p.v_th
        if type(response.neuron.module).__name__ == "LIFBoxCell":
            after = p.reset_method(z, u, p.v_reset, p.v_th)
        else:
            z = z.detach() if response.inner or response.before is not None else z
            after = (1 - z) * u + z * p.v_reset
        (found,) = torch.autograd.grad(after, v, gradient)
    return found
