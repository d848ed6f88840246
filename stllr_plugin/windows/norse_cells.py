"""Norse's LIFCell, LIFRecurrentCell, LIFBoxCell, LICell and LIBoxCell over a window.

The numbers are those of the cells, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from stllr_plugin.graft import SynapseCall
from stllr_plugin.sparse import SparseLinear, SparseMatrix
from stllr_plugin.windows.fused import FusedScan, spike_product
from stllr_plugin.windows.scan import InnerSynapse, Scan

if TYPE_CHECKING:
    from stllr_plugin.sites import NeuronSite
    from stllr_plugin.windows.window import Window

# The cells, and the function that does the step of each.
_SPIKING = {
    "LIFCell": "lif_feed_forward_step",
    "LIFRecurrentCell": "lif_step",
    "LIFBoxCell": "lif_box_feed_forward_step",
}
_READOUTS = {"LICell": "li_feed_forward_step", "LIBoxCell": "li_box_feed_forward_step"}
# Norse's surrogates: all are a step at 0 in the forward pass, with no spike at 0 itself.
_METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


def scan_norse(
    site: NeuronSite, window: Window, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Scan | None:
    """Runs the neuron, if it is one of these in a form that is known here; else returns None.

    Args:
        site: The neuron.
        window: The window.
        current: Its input, [K * B, ...].
        args: Further arguments of the first step: the state, [B, ...].
        kwargs: The same by keyword.
    """
    if not _is_plain(site) or set(kwargs) - {"state"} or len(args) + len(kwargs) > 1:
        return None
    if not current.is_floating_point() or current.is_sparse:
        return None
    recurrent = type(site.module).__name__ == "LIFRecurrentCell"
    if recurrent and current.dim() != 2:
        return None
    with torch.no_grad():
        given = next(iter((*args, *kwargs.values())), None)
        first = current.detach()[: window.batch]
        state = site.module.state_fallback(first) if given is None else given  # type: ignore[operator]
        if type(site.module).__name__ in _READOUTS:
            return _integrate(site, window, current.detach(), state)
        return _spiking(site, window, current.detach(), state, recurrent, current.requires_grad)


def _is_plain(site: NeuronSite) -> bool:
    """Whether the neuron is one of these as the library makes them, with numbers that are not trained."""
    module: Any = site.module
    name = type(module).__name__
    known = (_SPIKING | _READOUTS).get(name)
    if known is None or not type(module).__module__.startswith("norse.torch.module."):
        return False
    step = getattr(site.tap, "own", None) or module.activation  # behind the learner's tap
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


def _integrate(site: NeuronSite, window: Window, current: Tensor, state: Any) -> FusedScan:
    """LICell and LIBoxCell."""
    module: Any = site.module
    p, dt = module.p, module.dt
    inputs = current.reshape(window.num_steps, window.batch, *current.shape[1:])
    membranes = torch.empty_like(inputs, dtype=_dtype(inputs, state))
    v = _start(state.v, membranes[0])
    boxed = not hasattr(state, "i")
    currents = None if boxed else torch.empty_like(membranes)
    i = None if boxed else _start(state.i, membranes[0])
    rate, lost = dt * p.tau_mem_inv, 0.0 if boxed else -dt * p.tau_syn_inv
    for t, x in enumerate(inputs.unbind(0)):
        jump = x if i is None else i + x
        change = (p.v_leak - v).add_(jump).mul_(rate)
        v = torch.add(v, change, out=membranes[t])
        if currents is not None:
            i = torch.mul(jump, lost, out=currents[t]).add_(jump)
    shown = membranes.flatten(0, 1)
    leaves = [shown] if currents is None else [shown, currents.flatten(0, 1)]
    returned = state._replace(v=shown) if currents is None else state._replace(v=shown, i=leaves[1])
    return FusedScan(
        output=(shown, returned),
        leaves=leaves,
        spikes=None,
        v=None,
        shape=membranes.shape,
        direct=True,
        slope=rate,
        site=site,
        of_leaves={} if boxed else {1: _of_current(rate, lost)},
    )


def _spiking(site: NeuronSite, window: Window, current: Tensor, state: Any, recurrent: bool, below: bool) -> FusedScan:
    """LIFCell, LIFRecurrentCell and LIFBoxCell."""
    module: Any = site.module
    p, dt = module.p, module.dt
    steps, batch = window.num_steps, window.batch
    inputs = _projected(current, module.input_weights.detach()) if recurrent else current
    inputs = inputs.reshape(steps, batch, *inputs.shape[1:])
    boxed = not hasattr(state, "i")
    distances, spikes, membranes = (torch.empty_like(inputs, dtype=_dtype(inputs, state)) for _ in range(3))
    v = _start(state.v, membranes[0])
    i = None if boxed else _start(state.i, membranes[0])
    z = _start(state.z, membranes[0]) if recurrent else None
    before, parts = z, []  # type: ignore[var-annotated]
    currents = None if boxed else torch.empty_like(membranes)
    rate, lost = dt * p.tau_mem_inv, 0.0 if boxed else -dt * p.tau_syn_inv
    for t, x in enumerate(inputs.unbind(0)):
        if i is None:
            u = (x + p.v_leak).sub_(v).mul_(rate).add_(v)
        else:
            jump = i + x
            if z is not None:
                weight = module.recurrent_weights.detach()
                product = spike_product(z, weight, parts)
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
    leaves = [spikes.flatten(0, 1), membranes.flatten(0, 1)]
    returned = state._replace(v=leaves[1])
    if currents is not None:
        leaves.append(currents.flatten(0, 1))
        returned = returned._replace(i=leaves[2])
    inner: list[InnerSynapse] = []
    if recurrent:
        assert before is not None
        returned = returned._replace(z=leaves[0])
        shifted = torch.cat([before.unsqueeze(0), spikes[:-1]])
        inner = _inner(site, current.reshape(steps, batch, *current.shape[1:]), shifted)
    of_leaves: dict[int, Callable[[FusedScan, Tensor], Tensor]] = {1: _of_membrane}
    if not boxed:
        of_leaves[2] = _of_current(rate, lost)
    return FusedScan(
        output=(leaves[0], returned),
        leaves=leaves,
        spikes=0,
        v=distances,
        shape=distances.shape,
        direct=True,
        slope=rate,
        projects=recurrent,
        inner=inner,
        site=site,
        of_leaves=of_leaves,
        needs_distance=True,
        before=_before(module, below) if recurrent else None,
    )


def _projected(x: Tensor, weight: Tensor) -> Tensor:
    """The currents that all inputs of a window make."""
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    found = SparseMatrix.of(x, len(weight)) if exact else None
    product: Tensor = functional.linear(x, weight) if found is None else SparseLinear.apply(x, found, weight, None)
    return product


def _before(module: Any, needed: bool) -> Callable[[Tensor], Tensor]:
    weight: Tensor = module.input_weights.detach()
    return lambda gradient: gradient @ weight if needed else gradient


def _inner(site: NeuronSite, x: Tensor, spikes: Tensor) -> list[InnerSynapse]:
    """The calls of the cell's own weights that are trained, in the order in which the cell uses them."""
    found = []
    for own, inputs in zip(site.own_weights, (x, spikes), strict=True):
        weight: Tensor = getattr(site.module, own.weight_name)
        if weight.requires_grad:
            order = site.learner.next_order()
            found.append(InnerSynapse(SynapseCall(own, inputs[0], inputs._version, weight, order), inputs))
    return found


def _of_current(rate: Tensor, lost: Any) -> Callable[[FusedScan, Tensor], Tensor]:
    """A gradient of the synaptic current that is left, as one of u: both follow from the input through a factor."""
    return lambda scan, gradient: (gradient + gradient * lost) / rate


def _of_membrane(scan: FusedScan, gradient: Tensor) -> Tensor:
    """A gradient of the membrane after the reset as one of u; in recurrent cells no gradient runs through the reset."""
    assert scan.site is not None and scan.v is not None
    p: Any = scan.site.module.p
    with torch.enable_grad():
        v = scan.v.detach().requires_grad_()
        z = scan.site.adapter.spike_function(scan.site.module)(v)
        u = v + p.v_th
        if type(scan.site.module).__name__ == "LIFBoxCell":
            after = p.reset_method(z, u, p.v_reset, p.v_th)
        else:
            z = z.detach() if scan.inner or scan.before is not None else z
            after = (1 - z) * u + z * p.v_reset
        (found,) = torch.autograd.grad(after, v, gradient)
    return found
