"""Stands in for a module's ``forward`` while a window runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Takeover:
    """Puts other functions in the place of modules' ``forward``; a context manager.

    Args:
        replacements: For each module, a function that gets the module's own ``forward`` and returns the new one.
    """

    def __init__(
        self, replacements: list[tuple[nn.Module, Callable[[Callable[..., Any]], Callable[..., Any]]]]
    ) -> None:
        """See the class."""
        self._replacements = replacements
        self._before: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> None:
        """Puts them in place."""
        for module, replace in self._replacements:
            self._before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = replace(module.forward)

    def __exit__(self, *error: object) -> None:
        """Takes them out again."""
        while self._before:
            module, own = self._before.pop()
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
