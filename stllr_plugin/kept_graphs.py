"""Graphs of earlier steps that somebody keeps alive although the backward pass has come by.

A running sum of spikes that is not detached does so, and memory then grows with the number of time steps.
"""

from __future__ import annotations

import warnings

from stllr_plugin.errors import STLLRWarning


class GraphCount:
    """How many steps of one layer have been used by a backward pass and are still in memory.

    Attributes:
        alive: The number.
    """

    __slots__ = ("alive",)

    def __init__(self) -> None:
        """None."""
        self.alive = 0


class KeptGraphs:
    """Tells, once, of layers whose earlier steps are kept alive."""

    def __init__(self) -> None:
        """Nothing has been found yet."""
        self._name: str | None = None
        self._step = 0
        self._told = False

    def look(self, name: str, count: GraphCount, step: int) -> None:
        """Looks at a layer where a step of it begins; its last step may still be in the user's variables."""
        if count.alive < 2 or self._told:
            return
        if step != self._step and self._name is not None:
            self.tell()
            return
        # Of several the last: what keeps a layer's graph keeps those of the layers below as well.
        self._name, self._step = name, step

    def tell(self) -> None:
        """Issues the warning, if there is something to tell: at the end of a step or of a sequence."""
        if self._name is None:
            return
        name, self._name, self._told = self._name, None, True
        warnings.warn(
            f"Earlier time steps of neuron {name!r} are still in memory although backward() has used them: something "
            "keeps what it gave out, such as a running sum or a list for monitoring. Memory then grows with the number "
            "of time steps. Detach what you keep (spikes.detach()).",
            STLLRWarning,
            stacklevel=3,
        )
