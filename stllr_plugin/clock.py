"""The model's clock: one count of time steps for all layers.

A layer may be skipped at some steps, so its own count of steps says nothing of the time. A step begins where the model
is called anew, whether or not a layer runs in the call, and, for models with the loop over time inside, where a layer
runs that has run in this step already, or that runs before one that has.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from stllr_plugin.supervision import Supervision

_SHAPES = 64  # that are kept


class Clock:
    """Tells where a time step begins.

    Attributes:
        supervision: The running sequence.
        model_calls: How often the model was called.
    """

    def __init__(self, supervision: Supervision) -> None:
        """See the class."""
        self.supervision = supervision
        self.model_calls = 0
        self._sequence = -1  # to which what follows belongs
        self._ran: set[Any] = set()  # layers that have run in this step
        self._call = 0  # the call of the model in which they ran
        self._shape: Hashable = None  # of the model's input in the running call
        self._steps_before = 0  # its beginning
        self._most_steps: dict[Hashable, int] = {}  # by such a shape: of all calls so far
        self._touched = 0  # the last call of the model in which any layer was called
        self._before: dict[Any, set[Any]] = {}  # by layer, those that have been seen to run before it within a step

    def begins_step(self, layer: Any) -> bool:
        """Whether this layer's call is the first of a time step."""
        if self._sequence != self.supervision.sequence.number or not self._ran:
            return True
        if layer in self._ran or self._call != self.model_calls:
            return True
        before = self._before.get(layer, set())
        if self._ran <= before or self._is_one_step():
            return False
        return any(layer in self._before.get(other, ()) and other not in before for other in self._ran)

    def _is_one_step(self) -> bool:
        """Whether the running call of the model is one time step, as all calls on such an input have been so far.

        Layers may then run in another order than before.
        """
        return self._shape is not None and self._most_steps.get(self._shape) == 1

    def call_begins(self, shape: Hashable) -> None:
        """Notes that the model is called.

        Args:
            shape: That of its input; None if it is not known.
        """
        self.model_calls += 1
        self._shape, self._steps_before = shape, self.supervision.steps_run

    @property
    def steps_of_call(self) -> int:
        """How many time steps have begun in the running call of the model."""
        return self.supervision.steps_run - self._steps_before

    @property
    def call_is_empty(self) -> bool:
        """Whether no neuron has been called yet in the running call of the model."""
        return self._touched != self.model_calls

    def touch(self) -> None:
        """Notes that a neuron is called."""
        self._touched = self.model_calls

    def call_ends(self) -> None:
        """A call of the model ends: one in which no neuron was called is a step as well."""
        if self.call_is_empty:
            self.supervision.next_step()
            self.touch()
        elif self._shape is not None:
            if len(self._most_steps) >= _SHAPES:
                self._most_steps.clear()
            self._most_steps[self._shape] = max(self.steps_of_call, self._most_steps.get(self._shape, 0))

    def enter(self, layer: Any) -> int:
        """Notes that a layer runs; returns the index of its time step."""
        if self.begins_step(layer):
            self._ran = set()
            self._sequence, self._call = self.supervision.sequence.number, self.model_calls
            self.supervision.next_step()
        self.join(layer)
        return self.supervision.clock

    def join(self, layer: Any) -> None:
        """Notes that a layer runs in the step that runs already, as what came in shows."""
        self._before.setdefault(layer, set()).update(self._ran)
        self._ran.add(layer)

    def pass_by(self, num_steps: int) -> int:
        """Notes that a window of steps has begun, unless another layer has; returns the last of them."""
        sequence = self.supervision.sequence
        while sequence.steps < num_steps:
            self.supervision.next_step()
        self._ran = set()
        return sequence.clock
