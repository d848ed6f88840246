"""What lies between a neuron and the synapses that feed it: batch norm, pooling, sums, hooks of the user's.

Gradients of one step of one neuron are pulled back through it apart from the backward pass that runs. The nodes are
called here one by one, so that the user's hooks on them, which belong to the backward pass, are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from stllr_plugin.arrivals import Arrivals, Doubts, between_at, watch
from stllr_plugin.calls import SynapseCall, bypassed
from stllr_plugin.marks import Quiet, mark_of, nested
from stllr_plugin.walk import Found, is_outside

# Functions in Python that are identities; all others are left to autograd's engine.
_IDENTITIES = ("BackwardHookFunctionBackward", "EntryBackward")

Edges = Sequence[tuple["Node | None", int]]


def _onward(node: Node) -> Edges:
    """The edges along which the way to synapses goes on: behind a synapse, what its input was made from."""
    mark = mark_of(node)
    if mark is None:
        return node.next_functions
    if mark.ends:
        return ()
    if mark.call is None:
        return node.next_functions
    return () if mark.call.apart else node.next_functions[:1]


def on_the_way(roots: Iterable[Node], is_target: Callable[[Node], bool]) -> dict[Node, Edges]:
    """The nodes between the roots and the targets, both included, each before those that it leads to; with its edges.

    The dictionary is empty if no target is reached.
    """
    leads: dict[Node, bool] = {}
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            if is_target(node) or any(following is not None and leads[following] for following, _ in _onward(node)):
                leads[node] = True
                order.append(node)
        elif node not in leads:
            leads[node] = False
            if is_outside(node, leads):
                continue
            stack.append((node, True))
            stack += [(following, False) for following, _ in _onward(node) if following is not None]
    return {node: _onward(node) for node in reversed(order)}


def pull_back(roots: Sequence[tuple[GradientEdge, Tensor]], targets: Sequence[Node]) -> list[Tensor | None]:
    """Carries gradients from the roots to the outputs of the targets, without a hook of anybody's being called."""
    wanted = set(targets)
    nodes = on_the_way([edge.node for edge, _ in roots], wanted.__contains__)
    if not all(_can_be_called(node, wanted) for node in nodes):
        return _by_the_engine(roots, targets, nodes)
    waiting: dict[Node, dict[int, Tensor]] = {node: {} for node in nodes}
    for edge, gradient in roots:
        if edge.node in waiting:
            _arrive(waiting[edge.node], edge.node, edge.output_nr, gradient)
    reached: dict[Node, Tensor] = {}
    with torch.no_grad():
        for node, edges in nodes.items():
            arrived = waiting.pop(node)
            if node in wanted and 0 in arrived:
                reached[node] = arrived[0]
            if not arrived or not any(following in waiting for following, _ in edges):
                continue
            for (following, number), sent in zip(edges, _called(node, arrived), strict=False):
                if sent is not None and following is not None and following in waiting:
                    _arrive(waiting[following], following, number, sent)
    return [reached.get(node) for node in targets]


def _can_be_called(node: Node, wanted: set[Node]) -> bool:
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return True
    mark = mark_of(node)
    return node in wanted or type(node).__name__ in _IDENTITIES or (mark is not None and mark.call is not None)


def _called(node: Node, arrived: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """What a node makes of gradients of its outputs."""
    count = len(node._input_metadata)
    gradients = [arrived.get(number) for number in range(count)]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return gradients
    found = node(*gradients)  # type: ignore[operator]
    return found if isinstance(found, tuple) else (found,)


def _arrive(place: dict[int, Tensor], node: Node, number: int, gradient: Tensor) -> None:
    """Adds a gradient to those of a node, in the shape and dtype that it expects, as autograd's engine does."""
    like = node._input_metadata[number]
    shape, dtype = tuple(like.shape), like.dtype
    if gradient.shape != shape:
        gradient = gradient.sum_to_size(shape)
    gradient = gradient.to(dtype)
    before = place.get(number)
    place[number] = gradient if before is None else before + gradient


def _by_the_engine(
    roots: Sequence[tuple[GradientEdge, Tensor]], targets: Sequence[Node], nodes: Iterable[Node]
) -> list[Tensor | None]:
    quiet: list[Quiet] = []
    for node in nodes:
        quiet += [one for one in (mark_of(node), between_at(node)) if one is not None]
    with nested(quiet):
        return list(
            torch.autograd.grad(
                [edge for edge, _ in roots],
                [GradientEdge(node, 0) for node in targets],
                [gradient for _, gradient in roots],
                retain_graph=True,
                allow_unused=True,
            )
        )


def guard(current: Tensor, found: Sequence[Found], doubts: Doubts) -> Arrivals | None:
    """Guards the way from a neuron's input to the synapses that feed it.

    Args:
        current: The neuron's input.
        found: What the walk has found.
        doubts: Where those go that cannot be settled at once.

    Returns:
        Whom to tell what the neuron sends back to its input; None if no synapse is there.
    """
    root = current.grad_fn
    if root is None:
        return None
    if len(found) == 1 and found[0][0] is root:
        return _of_call(found[0][1])
    calls = {node: call for node, call, _ in found}
    nodes = on_the_way([root], calls.__contains__)
    if not nodes:
        return None
    message = partial(bypassed, [call for node, call in calls.items() if node in nodes])

    def place(node: Node, number: int) -> Arrivals:
        call = calls.get(node)
        return watch(node, message, doubts).arrivals(number) if call is None else _of_call(call)

    for node, edges in nodes.items():
        outs = [
            (position, place(following, number))
            for position, (following, number) in enumerate(edges)
            if following is not None and following in nodes
        ]
        call = calls.get(node)
        if call is None:
            watch(node, message, doubts).leads_to(outs)
        else:
            call.onward = outs[0][1] if outs else None
    return place(root, current.output_nr)


def _of_call(call: SynapseCall) -> Arrivals:
    if call.arrivals is None:
        call.arrivals = Arrivals()
    return call.arrivals
