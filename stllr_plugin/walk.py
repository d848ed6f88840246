"""The walk over the graph of a step: from a membrane back to the synapse calls that feed it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from stllr_plugin.calls import SynapseCall, SynapseSite
from stllr_plugin.errors import StateError
from stllr_plugin.marks import Mark, StepsTaken, mark_of
from stllr_plugin.unknown_spikes import refuse_spike_functions, spike_function_at
from stllr_plugin.uses import use_at

# A tag that was reached: its node, its call, and whether the root depends on it through additions alone.
Found = tuple[Node, SynapseCall, bool]


# A graph in front of the learner's part or beside it, such as that of a recurrent network trained through time, grows
# from step to step. What has been walked through once and holds nothing of the learner's is marked, and not walked
# through again.
_OUTSIDE = "stllr outside"
_RETURNED = "stllr returned"  # in which of its calls the model returned what was made here
_FEW = 16  # nodes, before it pays to ask for the mark
_MANY = 32  # nodes, before it pays to tell those with something of the learner's from those without


def notes_of(node: Node) -> dict[Any, Any]:
    """What one may note on a node of autograd; it goes with the node."""
    notes: Any = node.metadata
    return notes  # type: ignore[no-any-return]


def is_outside(node: Node, seen: Sized, few: int = _FEW) -> bool:
    """Whether a node, and all that it was made from, has nothing of the learner's; asked for after a few nodes only."""
    return len(seen) >= few and _OUTSIDE in notes_of(node)


def _mark_outside(seen: Collection[Node], ours: Collection[Node], few: int = _FEW) -> bool:
    """Marks those nodes of a walk that have nothing of the learner's behind them.

    Args:
        seen: The nodes that were walked through; the walk went on from each of them, other than from ``ours``.
        ours: Those that are the learner's own, or lead to something of its.
        few: How many nodes are not worth it, where nothing is the learner's.

    Returns:
        Whether it was worth it.
    """
    if len(seen) < (_MANY if ours else few):
        return False
    leads = set(ours)
    if ours:
        above: dict[Node, list[Node]] = {}
        for node in seen:
            for following, _ in node.next_functions:
                if following is not None:
                    above.setdefault(following, []).append(node)
        todo = list(ours)
        while todo:
            for node in above.get(todo.pop(), ()):
                if node not in leads:
                    leads.add(node)
                    todo.append(node)
    for node in seen:
        if node not in leads and type(node).__name__ != "AccumulateGrad":  # which outlives the graph
            notes_of(node)[_OUTSIDE] = True
    return True


class Behind(NamedTuple):
    """What a tensor was made from.

    Attributes:
        records: The steps of neurons.
        parameters: Whether parameters took part on the way.
        ours: Whether anything of the learner's did.
        marked: Whether a graph with nothing of the learner's was found and marked.
    """

    records: list[StepsTaken]
    parameters: bool
    ours: bool
    marked: bool


def find_calls(
    root: Node,
    output_shape: torch.Size,
    weights: Mapping[int, SynapseSite] | None = None,
    behind: Mapping[int, SynapseSite] | None = None,
    number: int = 0,
) -> tuple[list[Found], list[Mark]]:
    """Walks the graph of one step from the membrane (or a neuron's input) back to the synapse calls that feed it.

    Args:
        root: Graph node of the membrane.
        output_shape: The membrane's shape.
        weights: By id of a parameter, the synapse whose weight it makes. None of them may be reached other than through
            a tag, or a product that counts as a call.
        behind: In place of ``weights`` where the root is what the model returned: they may be reached in any way, and
            what it has returned before is not walked through again (it may be a running sum).
        number: Number of the model's call, where it returned the root.

    Returns:
        For each tag that was reached: its node, its call, and whether the membrane depends on it through additions
        alone (so that du/d(output) is the identity). The walk goes on behind a synapse, for layers without a neuron in
        between; it ends at the outputs of other neurons. Second, the marks of the nodes at which it ended.

    Raises:
        StateError: If there is a spike function on the way, of a neuron that the learner does not know; or a weight.
    """
    found: list[Found] = []
    boundaries: list[Mark] = []
    seen: set[Node] = set()
    ours: list[Node] = []
    tangled = False
    strange: list[str] = []
    stack: list[tuple[Node, bool]] = [(root, True)]
    while stack:
        node, identity = stack.pop()
        if node in seen:
            tangled = True  # two paths lead here: their sum is not the identity
            continue
        if is_outside(node, seen):
            continue
        if behind is not None and len(seen) >= _FEW and notes_of(node).get(_RETURNED, number) != number:
            continue
        seen.add(node)
        mark = mark_of(node)
        if mark is not None:
            ours.append(node)
            call: SynapseCall | None = mark.call
            if call is not None:
                found.append((node, call, identity and call.output_shape == output_shape))
                maker = node.next_functions[0][0]  # what made the output; the others made the weight
                if maker is not None and not call.apart:
                    stack.append((maker, False))  # a synapse behind this one reaches the membrane through its weight
                continue
            if mark.ends:
                boundaries.append(mark)
                continue
        elif weights and (use := use_at(node, weights)) is not None:
            ours.append(node)
            found.append((node, use[0], identity and use[0].output_shape == output_shape))
            if use[1] is not None and type(use[1]).__name__ != "AccumulateGrad":
                stack.append((use[1], False))
            continue
        elif (spikes := spike_function_at(node)) is not None:
            strange.append(spikes)
        for position, (following, _) in enumerate(node.next_functions):
            if following is None:
                continue
            if type(following).__name__ == "AccumulateGrad":
                if mark is None and weights and id(following.variable) in weights:  # type: ignore[attr-defined]
                    _refuse_use(weights[id(following.variable)].name)  # type: ignore[attr-defined]
                if behind and id(following.variable) in behind:  # type: ignore[attr-defined]
                    ours.append(node)
                continue
            stack.append((following, identity and _adds(node, position)))
    if strange:
        names = sorted({repr(call.site.name) for _, call, _ in found})
        refuse_spike_functions(strange, f"behind {' and '.join(names) or 'other layers'}")
    if weights is not None or behind is not None:
        _mark_outside(seen, ours)
    if behind is not None and len(seen) >= _MANY:
        for node in seen:
            notes_of(node)[_RETURNED] = number
    if tangled:
        found = [(node, call, False) for node, call, _ in found]
    found.sort(key=lambda item: item[1].order)
    return found, boundaries


def directly_fed(
    root: Node, output_shape: torch.Size, weights: Mapping[int, SynapseSite]
) -> tuple[list[Found], list[Mark]] | None:
    """What :func:`find_calls` finds where a neuron's input is a synapse's output, and that made from a neuron's alone.

    That is the usual case, which a look at two nodes tells; None in other cases.
    """
    mark = mark_of(root)
    call: SynapseCall | None = None if mark is None else mark.call
    if call is None or call.output_shape != output_shape:
        return None
    boundaries: list[Mark] = []
    behind = None if call.apart else root.next_functions[0][0]
    if behind is not None:
        if isinstance(behind, torch.autograd.function.BackwardCFunction):
            return None
        for following, _ in behind.next_functions:
            if following is None:
                continue
            reached = mark_of(following)
            if reached is not None and reached.ends:
                boundaries.append(reached)
            elif type(following).__name__ != "AccumulateGrad" or id(following.variable) in weights:  # type: ignore[attr-defined]
                return None
    return [(root, call, True)], boundaries


def _refuse_use(name: str) -> None:
    raise StateError(
        f"The weight of layer {name!r} reaches a neuron other than through a call of the layer, where it would learn "
        f"by other gradients: a function such as F.linear(x, layer.weight), or a forward of the layer's own that uses "
        "its weight in a way that is no product with its input. Call the layer itself. If its weight is changed before "
        "use, make that a parametrization (torch.nn.utils.parametrize.register_parametrization). To train it with "
        f"ordinary gradients, name it in exclude=[{name!r}]."
    )


def _adds(node: Node, position: int) -> bool:
    """Whether a node adds one of its inputs, unchanged, to something."""
    name = type(node).__name__  # not node.name(): a user's Function may have an attribute of that name
    if name in ("BackwardHookFunctionBackward", "EntryBackward"):  # torch's, where a module has backward hooks; ours
        return len(node.next_functions) == 1
    if name == "AddBackward0":
        return position == 0 or node._saved_alpha == 1  # type: ignore[attr-defined]
    return name == "SubBackward0" and position == 0


def summed_calls(tensor: Tensor) -> list[SynapseCall]:
    """The synapse calls of whose outputs a tensor is the plain sum, together with others; a call may come twice."""
    found: list[SynapseCall] = []
    stack = [] if tensor.grad_fn is None else [tensor.grad_fn]
    count = 0
    while stack:
        node = stack.pop()
        count += 1
        if count >= _FEW and _OUTSIDE in notes_of(node):
            continue
        mark = mark_of(node)
        if mark is not None:
            if mark.call is not None and mark.call.output_shape == tensor.shape:
                found.append(mark.call)
            continue
        for position, (following, _) in enumerate(node.next_functions):
            if following is not None and _adds(node, position):
                stack.append(following)
    return found


def made_without_neuron(root: Node) -> tuple[bool, list[SynapseCall]]:
    """What may be the spikes of a neuron that the learner does not know, since it was made from a synapse's output.

    Returns:
        Whether the root may be: something other than sums lies between it and a synapse. And the calls of synapses
        whose inputs may be, as nothing but such things lies between them and another synapse.
    """
    itself = False
    calls: dict[int, SynapseCall] = {}
    seen: set[Node] = set()
    stack: list[tuple[Node, SynapseCall | None, bool]] = [(root, None, True)]
    while stack:
        node, behind, plain = stack.pop()
        if node in seen or is_outside(node, seen):
            continue
        seen.add(node)
        mark = mark_of(node)
        if mark is not None and mark.ends:
            continue
        if mark is not None and mark.call is not None:
            if not plain and behind is None:
                itself = True
            elif not plain and behind is not None:
                calls[id(behind)] = behind
            behind, plain = mark.call, True
            following = node.next_functions[0][0]
            if following is not None and not mark.call.apart:
                stack.append((following, behind, True))
            continue
        for position, (following, _) in enumerate(node.next_functions):
            if following is not None and type(following).__name__ != "AccumulateGrad":
                stack.append((following, behind, plain and (mark is not None or _adds(node, position))))
    return itself, list(calls.values())


def records_behind(root: Node, weights: Mapping[int, SynapseSite] | None = None, ask: bool = False) -> Behind:
    """The steps of neurons whose outputs a tensor was made from.

    Args:
        root: The tensor's node.
        weights: By id of a parameter, the synapse whose weight it makes.
        ask: Whether a graph with nothing of the learner's is to be expected, as at the step before.

    Raises:
        StateError: If there is a spike function on the way, of a neuron that the learner does not know.
    """
    records: list[StepsTaken] = []
    parameters = False
    ours: list[Node] = []
    seen: set[Node] = set()
    few = 0 if ask else _FEW
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen or is_outside(node, seen, few):
            continue
        seen.add(node)
        mark = mark_of(node)
        if mark is not None:
            ours.append(node)
        if mark is not None and mark.ends:
            if mark.record is not None:
                records.append(mark.record)
            continue
        if mark is not None and mark.call is not None:
            parameters = parameters or len(node.next_functions) > 1
            stack += [following for following, _ in node.next_functions[:1] if following is not None]
            continue
        if mark is None and (spikes := spike_function_at(node)) is not None:
            refuse_spike_functions([spikes], "in front of a synapse")
        if type(node).__name__ == "AccumulateGrad":
            parameters = True
            if weights is not None and id(node.variable) in weights:  # type: ignore[attr-defined]
                ours.append(node)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    marked = _mark_outside(seen, ours, few)
    return Behind(records, parameters, bool(ours), marked)
