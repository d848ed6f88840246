"""Copies of layers with a parametrized weight.

torch computes such a weight in a property of a class that it makes for each layer, and remembers it (within
``parametrize.cached()``) by the layer that the class was made for. A deep copy shares the class, and so looks up the
weight of the original. What is verified on a copy must be what happens on the original, so a copy gets a class of its
own.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def separate(model: nn.Module, twin: nn.Module) -> None:
    """Gives parametrized layers of a deep copy classes of their own, where the originals have them.

    An original that is a deep copy itself stays as it is: what that does to its training shows on the copy as well.
    """
    for original, copied in zip(model.modules(), twin.modules(), strict=True):
        if not parametrize.is_parametrized(original):
            continue
        names = list(original.parametrizations)  # type: ignore[arg-type]
        if not all(_made_for(original, name) for name in names):
            continue
        copied.__class__ = parametrize.type_before_parametrizations(copied)
        parametrize._inject_new_class(copied)
        for name in names:
            parametrize._inject_property(copied, name)


def _made_for(module: nn.Module, name: str) -> bool:
    """Whether the property was made for this layer, as far as can be seen: the functions behind it refer to it."""
    found: set[int] = set()
    todo: list[Any] = [getattr(getattr(type(module), name, None), "fget", None)]
    while todo:
        function = todo.pop()
        for cell in getattr(function, "__closure__", None) or ():
            if cell.cell_contents is module:
                return True
            if callable(cell.cell_contents) and id(cell.cell_contents) not in found:
                found.add(id(cell.cell_contents))
                todo.append(cell.cell_contents)
    return False
