"""Updates within a sequence, as truncated backpropagation makes them, with a learner that ends the sequence at each."""

from __future__ import annotations

import warnings

from stllr_plugin.errors import STLLRWarning


class Updates:
    """Tells where the caller's sequences go on over updates, while each update resets the neurons.

    That is so where the caller's own resets come once in several updates, or where the caller cuts states off the graph
    after an update, which nobody needs who begins anew.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._sequence = -1
        self._since = 1  # sequences since the caller's own reset
        self._most = 1
        self._told = False

    def begin(self, sequence: int, by_caller: bool, cut_off: bool) -> None:
        """Called where a sequence begins after an update.

        Args:
            sequence: Its number.
            by_caller: Whether the caller has reset the states that neurons keep, too.
            cut_off: Whether the caller has detached them instead.
        """
        if sequence == self._sequence or self._told:
            return
        self._sequence = sequence
        if not by_caller:
            self._since += 1
            self._most = max(self._most, self._since)
            if cut_off:
                self._tell("Your code detaches the states of neurons after an update, but step() has reset them")
            return
        self._since = 1
        if self._most > 1:
            self._tell(
                f"The neurons were reset by your code once in up to {self._most} updates, and by each step() as well"
            )

    def _tell(self, what: str) -> None:
        self._told = True
        warnings.warn(
            f"{what}, as it ends the sequence. If you update within a sequence, as truncated backpropagation does, "
            "that makes another network of it: build the learner with reset_after_step=False, and call "
            "learner.reset() where a sequence begins.",
            STLLRWarning,
            stacklevel=2,
        )
