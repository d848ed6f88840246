"""What modules hold in plain attributes, beside parameters, buffers and other modules: counters, queues, lists."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_TORCHS_OWN = frozenset(nn.Module().__dict__)
_SIMPLE = (bool, int, float, complex, str, bytes, type(None))
_FIXED = (nn.Module, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_DEPTH = 4  # of objects within objects that are looked at


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in module.__dict__.items() if name not in _TORCHS_OWN]


class Attributes:
    """A copy of them, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        """Takes it."""
        self.held = [
            (module, {name: (value, _contents(value)) for name, value in _own(module)}) for module in model.modules()
        ]

    def restore(self) -> None:
        """Puts them back; attributes that are new go. May be called again."""
        for module, before in self.held:
            for name in [name for name, _ in _own(module) if name not in before]:
                del module.__dict__[name]
            for name, (value, contents) in before.items():
                _refill(value, contents)
                module.__dict__[name] = value


def _contents(value: Any) -> Any:
    """A shallow copy of what can be changed in place; None for other values."""
    if isinstance(value, (list, dict, set, deque)):
        return copy.copy(value)
    if isinstance(value, (*_SIMPLE, *_FIXED, Tensor, tuple)) or not hasattr(value, "__dict__"):
        return None
    return dict(vars(value))


def _refill(value: Any, contents: Any) -> None:
    if contents is None:
        return
    if isinstance(value, list):
        value[:] = contents
    elif isinstance(value, dict):
        value.clear()
        value.update(contents)
    elif isinstance(value, set):
        value.clear()
        value.update(contents)
    elif isinstance(value, deque):
        value.clear()
        value.extend(contents)
    else:
        vars(value).clear()
        vars(value).update(contents)


def settings_of(model: nn.Module) -> Hashable:
    """The plain values among them, such as a switch that changes what ``forward`` does."""
    return tuple(
        (name, value)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if name not in _TORCHS_OWN and isinstance(value, (bool, int, float, str))
    )


def counters(model: nn.Module, neurons: set[int]) -> dict[str, Any]:
    """What they say apart from tensors, for a comparison; those of neurons aside, whose states are known.

    Args:
        model: The model.
        neurons: Ids of the neurons and their parts.
    """
    return {
        f"{attribute!r} of {name or 'the model'}": _print(value, _DEPTH)
        for name, module in model.named_modules()
        if id(module) not in neurons
        for attribute, value in _own(module)
    }


def _print(value: Any, depth: int) -> Any:
    """A fingerprint. Tensors in lists, tuples and dicts are looked at elsewhere; those in other holders count."""
    if value is None or isinstance(value, Tensor):
        return ()
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, _FIXED) or depth == 0:
        return id(value)
    if isinstance(value, (list, tuple)):
        return tuple(print_ for item in value if (print_ := _print(item, depth - 1)) != ())
    if isinstance(value, dict):
        return tuple((str(key), _print(item, depth - 1)) for key, item in value.items() if not isinstance(item, Tensor))
    if isinstance(value, (set, frozenset, deque)):
        return tuple((id(item), getattr(item, "_version", 0)) for item in value)
    if hasattr(value, "__dict__"):
        return tuple(
            (name, (id(item), item._version) if isinstance(item, Tensor) else _print(item, depth - 1))
            for name, item in vars(value).items()
        )
    return id(value)


def what_moved(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Names of those that differ, joined; empty if none does."""
    names = [name for name in after if before.get(name, ()) != after[name]]
    return ", ".join(names)
