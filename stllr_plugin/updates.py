"""Updates within a sequence, as truncated backpropagation makes them, with a learner that ends the sequence at each."""

from __future__ import annotations

import warnings

from stllr_plugin.errors import STLLRWarning


class Updates:
    """Tells where the caller resets the neurons once in several updates, while each update resets them as well."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._sequence = -1
        self._since = 1  # sequences since the caller's own reset
        self._most = 1
        self._resets = 0
        self._told = False

    def begin(self, sequence: int, by_caller: bool) -> None:
        """Called where a sequence begins after an update.

        Args:
            sequence: Its number.
            by_caller: Whether the caller has reset the states that neurons keep, too.
        """
        if sequence == self._sequence or self._told:
            return
        self._sequence = sequence
        if not by_caller:
            self._since += 1
            self._most = max(self._most, self._since)
            return
        self._since = 1
        self._resets += 1
        if self._resets < 2 or self._most < 2:  # once at the start of a script is nothing special
            return
        self._told = True
        warnings.warn(
            f"The neurons were reset by your code once in up to {self._most} updates, and by each step() as well, as "
            "it ends the sequence. If you update within a sequence, as truncated backpropagation does, that makes "
            "another network of it: build the learner with reset_after_step=False, and call learner.reset() where a "
            "sequence begins.",
            STLLRWarning,
            stacklevel=2,
        )
