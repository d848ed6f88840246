"""Whether the module that is taken for the output is the one whose output the loss sees.

A signal that comes to hidden layers directly needs that module. Where the user has not named it, the one registered
last is taken, and what the model returns shows whether that was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from stllr_plugin.marks import mark_of
from stllr_plugin.walk import is_outside


def made_by_others(returned: Sequence[Tensor], output: str) -> list[tuple[Tensor, list[str]]]:
    """The tensors that a model returned without the module that is taken for the output, and what made each of them.

    A tensor that was made from the output and from something else as well is right: its error comes to both.

    Args:
        returned: The tensors that the model returned.
        output: Name of the module that is taken for the output.
    """
    # The usual case, and quick: the model returns what the output has made.
    if all(tensor.grad_fn is None or hasattr(tensor.grad_fn, "stllr_output") for tensor in returned):
        return []
    behind: set[int] = set()
    found: list[tuple[Tensor, dict[int, str]]] = []
    for tensor in returned:
        forked, makers = _makers(tensor.grad_fn, behind)
        if not forked:
            found.append((tensor, makers))
    result = []
    for tensor, makers in found:
        names = [name for key, name in makers.items() if key not in behind]
        others = [name for name in names if name != output and not name.startswith(f"{output}.")]
        if others:
            result.append((tensor, list(dict.fromkeys(others))))
    return result


def _makers(root: Node | None, behind: set[int]) -> tuple[bool, dict[int, str]]:
    """Walks back from one tensor: whether it met the output, and what else made the tensor, by id.

    Args:
        root: Where it was made.
        behind: Filled with the ids of what made the output.
    """
    forked = False
    makers: dict[int, str] = {}
    seen: set[tuple[Node, bool]] = set()
    stack = [] if root is None else [(root, False)]
    while stack:
        node, inside = stack.pop()
        if (node, inside) in seen or is_outside(node, seen):
            continue
        seen.add((node, inside))
        mark: Any = mark_of(node)
        source = None if mark is None else mark.record or mark.call
        if source is not None:
            if inside:
                behind.add(id(source))
            else:
                makers[id(source)] = source.name if mark.record is not None else source.site.name
        if source is not None or (mark is not None and mark.ends):
            continue
        if hasattr(node, "stllr_output"):
            forked = inside = True
        stack += [(following, inside) for following, _ in node.next_functions if following is not None]
    return forked, makers
