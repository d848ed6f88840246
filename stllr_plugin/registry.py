"""The one list of learning signals by name. Signals enter themselves; rules and learners ask what is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Signal = TypeVar("Signal", bound="type[Any]")

SIGNALS: dict[str, type[Any]] = {}


def register_signal(*names: str) -> Callable[[Signal], Signal]:
    """Class decorator that makes a subclass of :class:`stllr_plugin.signals.LearningSignal` known by name.

    Args:
        *names: Names, as in ``STLLRLearner(learning_signal=...)``. A taken name is taken over, so that users can
            override ours.
    """

    def register(cls: Signal) -> Signal:
        SIGNALS.update(dict.fromkeys(names, cls))
        return cls

    return register
