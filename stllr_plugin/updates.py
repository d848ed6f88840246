"""Updates within a sequence, as truncated backpropagation makes them, with a learner that ends the sequence at each."""

from __future__ import annotations

import warnings
from enum import Enum
from typing import Any

from torch import Tensor

from stllr_plugin.errors import STLLRWarning


class Found(Enum):
    """What the caller's code did with a state since the learner left it."""

    NOTHING = 0
    DETACHED = 1
    RESET = 2
    UNKNOWN = 3


class LeftState:
    """The membrane of a neuron as the learner left it: when attaching, after an update, or after its ``reset()``.

    Args:
        membrane: What the neuron holds.
        by_update: Whether an update has ended the sequence before.
        detached: Whether the caller's code had cut the state off its graph before that update.
    """

    def __init__(self, membrane: Any, by_update: bool, detached: bool = False) -> None:
        """See the class."""
        self.membrane = membrane
        self.by_update = by_update
        self.detached = detached

    def compare(self, now: Any) -> Found:
        """What was done since, from what the neuron holds now."""
        left = self.membrane
        if now is left:
            return Found.DETACHED if self.detached else Found.NOTHING
        if not isinstance(now, Tensor) or not isinstance(left, Tensor):
            return Found.RESET
        if now.device != left.device or now.dtype != left.dtype:
            return Found.UNKNOWN  # the model was moved
        # A detached tensor is another object on the same memory.
        same = now.untyped_storage()._cdata == left.untyped_storage()._cdata
        return Found.DETACHED if same else Found.RESET


class Updates:
    """Tells where the caller goes on with a sequence after an update, which has reset the neurons.

    Scripts that are written for a learner may leave all resets to ``step()``. Whoever resets or detaches states
    themselves, or goes on in the same input, means a network whose states outlive an update.

    Attributes:
        watching: Whether there is anything left to tell.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self.watching = True
        self._sequence = -1
        self._updates = 0  # since the last reset that was not one by an update
        self._own = 0  # resets by the caller's own code
        self._asked = 0  # those by learner.reset() that came after an update
        self._input: tuple[int, int] = (0, 0)  # memory of the last input of the model, and the place in it
        self._stride = 0  # from the place of the input before
        self._goes_on = -1  # sequence that began where the input of the one before stopped

    def see_input(self, sequence: int, first: bool, inputs: tuple[Any, ...]) -> None:
        """Called at each call of the model: a time step may be a slice of what holds the whole sequence.

        Args:
            sequence: Number of the sequence.
            first: Whether no step of it has run.
            inputs: The model's arguments.
        """
        x = inputs[0] if inputs else None
        if not isinstance(x, Tensor) or not x._is_view():
            self._input, self._stride = (0, 0), 0
            return
        memory, place = x.untyped_storage()._cdata, int(x.storage_offset())
        stride = place - self._input[1] if memory == self._input[0] else 0
        if first and stride > 0 and stride == self._stride:
            self._goes_on = sequence
        self._input, self._stride = (memory, place), stride

    def begin(self, sequence: int, left: LeftState, now: Any) -> None:
        """Called where the first neuron runs after the learner has left the states.

        Args:
            sequence: Number of the sequence that begins.
            left: What the learner has left.
            now: What the neuron holds now.
        """
        if sequence == self._sequence or not self.watching:
            return
        self._sequence = sequence
        found = left.compare(now)
        if found is Found.RESET:
            before, self._updates = self._updates, int(left.by_update)
            self._own += 1
            if before > 1:
                self._tell("resets them itself at other times")
        elif not left.by_update:
            before, self._updates = self._updates, 0
            self._asked += before > 0
            if before > 1 and self._asked > 1:  # a single one may begin another part of the script
                self._tell("calls learner.reset() at other times")
        elif found is not Found.UNKNOWN:
            self._updates += 1
            if found is Found.DETACHED:
                self._tell("detaches their states, as if they went on")
            elif self._own:
                self._tell("resets them itself at other times")
            elif self._goes_on == sequence:
                self._tell("goes on in the same tensor of inputs")

    def _tell(self, why: str) -> None:
        self.watching = False
        warnings.warn(
            f"A step() of the learner ended the sequence and reset the neurons. Your code did not, though it {why}. "
            "If you update within a sequence, as truncated backpropagation does, that makes another network of it: "
            "build the learner with reset_after_step=False, and call learner.reset() where a sequence begins. If each "
            "step() does end a sequence, all is well.",
            STLLRWarning,
            stacklevel=2,
        )
