"""How the rule gets into autograd.

:class:`Graft` stands in the graph between a neuron and what it gave out. It receives the learning signal delta = dL/dy
as its ordinary ``grad_output``, and dL/d(membrane) of losses on membranes, and returns the S-TLLR gradient as the
autograd gradient of every weight that feeds this neuron. Since gradients arrive through autograd, clipping, gradient
hooks, DDP and gradient scaling work as always.

No Function here holds a tensor that lies downstream of it, so the graph of a step is freed as soon as nobody can reach
it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stllr_plugin.calls import changed_in_place
from stllr_plugin.errors import StateError
from stllr_plugin.marks import Mark
from stllr_plugin.precision import without_autocast
from stllr_plugin.record import Record


class Graft(Function):
    """Identity on what a neuron gave out in K steps; delivers S-TLLR gradients to the weights that feed it."""

    @staticmethod
    def forward(ctx: Any, record: Record, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Args: the record, then its response's links, the weights of its inputs, the response's parameters."""
        ctx.stllr = Mark(record=record, ends=True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*record.give_up())
        leaves = tuple(leaf.detach() for leaf in record.response.leaves)
        ctx.mark_non_differentiable(*(leaf for leaf in leaves if not leaf.is_floating_point()))
        return leaves

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, ...]:
        """See the class."""
        mark: Mark = ctx.stllr
        nothing = (None,) * len(ctx.needs_input_grad)
        if mark.nested:
            return nothing
        record: Record = mark.record  # type: ignore[assignment]
        record.use()
        shown = [None if delta is None else record.span.mask(delta) for delta in deltas]
        some = next((delta for delta in shown if delta is not None), None)
        if some is None:
            return nothing
        try:
            record.take_back(ctx.saved_tensors)
        except RuntimeError as error:  # torch looks whether they were changed in place; so does `check_input`
            if "inplace" not in str(error):
                raise
            names = " or ".join(repr(synaptic.call.site.name) for synaptic in record.inputs)
            raise StateError(changed_in_place(names)) from error
        try:
            with without_autocast(some):
                links, weights, parameters = record.gradients(shown)
        finally:
            record.give_up()
        if record.inputs:
            record.session.count_capture()
        found = (None, *links, *weights, *parameters)
        return tuple(gradient if needed else None for gradient, needed in zip(found, ctx.needs_input_grad, strict=True))


def graft(record: Record) -> list[Tensor]:
    """The leaves of the record's response, with the rule in the graph between them and the neuron."""
    response = record.response
    weights = [synaptic.weight() for synaptic in record.inputs]
    outputs = Graft.apply(record, *response.links, *weights, *response.parameters)
    response.let_go()  # only what comes after has a use for its tensors
    return list(outputs)
