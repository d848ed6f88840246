"""The walk over the graph of a step: from a membrane back to the synapse calls that feed it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

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


# A graph in front of the learner's part, such as that of a recurrent network trained through time, grows from step to
# step. What has been walked through once and holds nothing of the learner's is marked, and not walked through again.
_OUTSIDE = "stllr outside"
_FEW = 16  # nodes, before it pays to ask for the mark


def notes_of(node: Node) -> dict[Any, Any]:
    """What one may note on a node of autograd; it goes with the node."""
    notes: Any = node.metadata
    return notes  # type: ignore[no-any-return]


def is_outside(node: Node, seen: Collection[Node]) -> bool:
    """Whether a node, and all that it was made from, has nothing of the learner's; asked for after a few nodes only."""
    return len(seen) > _FEW and _OUTSIDE in notes_of(node)


def find_calls(
    root: Node, output_shape: torch.Size, weights: Mapping[int, SynapseSite] | None = None
) -> tuple[list[Found], list[Mark]]:
    """Walks the graph of one step from the membrane (or a neuron's input) back to the synapse calls that feed it.

    Args:
        root: Graph node of the membrane.
        output_shape: The membrane's shape.
        weights: By id of a parameter, the synapse whose weight it makes. None of them may be reached other than through
            a tag, or a product that counts as a call.

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
        seen.add(node)
        mark = mark_of(node)
        if mark is not None:
            call: SynapseCall | None = mark.call
            if call is not None:
                found.append((node, call, identity and call.output_shape == output_shape))
                behind = node.next_functions[0][0]  # what made the output; the others made the weight
                if behind is not None:
                    stack.append((behind, False))  # a synapse behind this one reaches the membrane through its weight
                continue
            if mark.ends:
                boundaries.append(mark)
                continue
        elif weights and (use := use_at(node, weights)) is not None:
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
                continue
            stack.append((following, identity and _adds(node, position)))
    if strange:
        names = sorted({repr(call.site.name) for _, call, _ in found})
        refuse_spike_functions(strange, f"behind {' and '.join(names) or 'other layers'}")
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
    behind = root.next_functions[0][0]
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
    while stack:
        node = stack.pop()
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
        for position, (following, _) in enumerate(node.next_functions):
            if following is not None and type(following).__name__ != "AccumulateGrad":
                stack.append((following, behind, plain and (mark is not None or _adds(node, position))))
    return itself, list(calls.values())


def records_behind(root: Node, weights: Mapping[int, SynapseSite] | None = None) -> tuple[list[StepsTaken], bool]:
    """The steps of neurons whose outputs a tensor was made from, and whether parameters took part on the way.

    Args:
        root: The tensor's node.
        weights: By id of a parameter, the synapse whose weight it makes.

    Raises:
        StateError: If there is a spike function on the way, of a neuron that the learner does not know.
    """
    records: list[StepsTaken] = []
    parameters = ours = False
    seen: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen or is_outside(node, seen):
            continue
        seen.add(node)
        mark = mark_of(node)
        ours = ours or mark is not None
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
            ours = ours or (weights is not None and id(node.variable) in weights)  # type: ignore[attr-defined]
        stack.extend(following for following, _ in node.next_functions if following is not None)
    if not ours and len(seen) > _FEW:
        for node in seen:
            if type(node).__name__ != "AccumulateGrad":  # which outlives the graph
                notes_of(node)[_OUTSIDE] = True
    return records, parameters
