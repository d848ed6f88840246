"""Stands in for a module's ``forward`` where what it gives is known."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from stllr_plugin.hooks import eager
from stllr_plugin.neurons.base import AttributeTap


class Shortcut(AttributeTap):
    """Runs something else in place of the module's own ``forward``, on this instance only, where there is something.

    A deep copy or pickle of the module gets its own ``forward`` back.

    Args:
        module: The module.
        run: A method, called with ``forward``'s arguments; returns a list of one output, or None to run ``forward``
            itself. It is held weakly, since others may hold the module.
    """

    def __init__(self, module: nn.Module, run: Callable[[tuple[Any, ...], dict[str, Any]], list[Any] | None]) -> None:
        """See the class."""
        super().__init__(module, "forward")
        self._run = weakref.WeakMethod(run)

    @property
    def plain(self) -> Callable[..., Any]:
        """The module's own ``forward``."""
        return self._plain

    @eager
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the class."""
        run = self._run()
        found = None if run is None else run(args, kwargs)
        return self._plain(*args, **kwargs) if found is None else found[0]
