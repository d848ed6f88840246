"""What all parts of an attached learner share: whether the rule acts now, the settings, the clock and the counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import nn

from stllr_plugin.arrivals import Doubts
from stllr_plugin.clock import Clock
from stllr_plugin.hooks import Attached
from stllr_plugin.kept_graphs import KeptGraphs
from stllr_plugin.supervision import OpenWindow, Sequence, Span, Supervision
from stllr_plugin.unknown_spikes import ValueWatch
from stllr_plugin.updates import Updates

_NUMBERS = count()


class Session:
    """The bottom of a learner. It knows nobody above it; everybody above may hold it.

    Attributes:
        number: Which of all sessions it is.
        model: The attached model.
        supervision: Which steps are supervised; the running sequence.
        enabled: Whether the rule is switched on.
        window: The time steps that run at once, while they do; neurons then do no bookkeeping of their own.
        trial: Whether a few steps are only tried out, which hooks that count should not count.
        fold_steps: How many steps' gradients are put into ``.grad`` together; 1 puts them there at once.
        product_dtype: In which the weights' gradients are multiplied; None for at least float32.
        reset_after_step: Whether an update ends the sequence.
        check_finite: Whether an update looks for NaN and infinity first.
        single_step_updates: How many updates in a row came after a single time step.
        captures: How many gradients of the rule were delivered since the last update.
        time: The model's clock.
        uncalled: Synapses that have not been called since the sequence began.
        owner: What is attached, while it is.
        updates: Updates within sequences.
        kept: Graphs of earlier steps that are kept alive.
        watch: What may be spikes of neurons that the learner does not know.
        doubts: Whether gradients reached synapses past their neurons, where that is still on the device.
        weights: By id of a parameter behind a synapse's weight: the synapse.
        look_at_model: Called once per sequence, before anything of the model runs.
    """

    def __init__(
        self, model: nn.Module, supervision: Supervision, fold_steps: int, product_dtype: torch.dtype | None
    ) -> None:
        """See the class."""
        self.number = next(_NUMBERS)
        self.model = model
        self.supervision = supervision
        self.fold_steps = fold_steps
        self.product_dtype = product_dtype
        self.enabled = True
        self.window: OpenWindow | None = None
        self.trial = False
        self.reset_after_step = True
        self.check_finite = True
        self.single_step_updates = 0
        self.captures = 0
        self.time = Clock(supervision)
        self.uncalled: set[object] = set()
        self.owner: Attached | None = None
        self.kept = KeptGraphs()
        self.updates = Updates()
        self.watch = ValueWatch()
        self.doubts = Doubts()
        self.weights: Mapping[int, Any] = {}
        self.look_at_model: Callable[[], None] | None = None
        self._looked_at = -1
        self._completed = -1  # number of the backward pass after which nothing will wait
        self._orders = 0

    def release(self) -> None:
        """Lets go of everybody above: no cycle keeps a model that nobody else holds."""
        self.owner = self.look_at_model = None
        self.weights = {}
        self.uncalled.clear()
        self.time = Clock(self.supervision)

    def enter(self) -> None:
        """A part of the model runs: looks at the model where that is the first time in this sequence."""
        number = self.supervision.sequence.number
        if number != self._looked_at:
            self.doubts.settle()
            if self.look_at_model is not None:
                self.look_at_model()
            self._looked_at = number

    @property
    def is_recording(self) -> bool:
        """Whether the rule acts on calls now: enabled, the model in training mode, gradients enabled.

        The mode is the model's own, not each layer's: a layer put into eval() alone (to freeze its batch norm) must not
        fall back to other gradients in silence.
        """
        return self.enabled and self.model.training and torch.is_grad_enabled()

    @property
    def is_muted(self) -> bool:
        """Whether the rule would act on calls, if they were not under ``no_grad()``."""
        return self.enabled and self.model.training and self.window is None and not self.trial

    @property
    def sequence(self) -> Sequence:
        """The running sequence."""
        return self.supervision.sequence

    @property
    def clock(self) -> int:
        """Index of the time step that runs or ran last; -1 before the first."""
        return self.supervision.sequence.clock

    def span(self, step: int) -> Span:
        """What decides about a step that runs now, or about those that run at once."""
        return Span(self.sequence, step, self.window)

    def needs_graph(self, step: int) -> bool:
        """Whether any sample is supervised at this step, as far as can be known while it runs."""
        return self.sequence.needs_graph(step) if self.window is None else self.window.supervised

    def complete_after(self, span: Span) -> None:
        """A backward pass has come to a step: if it is the last of its sequence, nothing may wait after the pass.

        The steps that wait may be those of layers that do not run at the last one, which the pass does not come by.
        Processes that train together would not average what comes after a pass: there :meth:`STLLRLearner.step` speaks.
        """
        task = torch._C._current_graph_task_id()
        if task in (-1, self._completed) or not span.sequence.ends_at(span.step) or several_processes():
            return
        self._completed = task
        torch.autograd.Variable._execution_engine.queue_callback(self._complete)

    def _complete(self) -> None:
        self._completed = -1
        if self.owner is not None:
            self.owner.flush()

    def next_order(self) -> int:
        """Number of the next synapse call."""
        self._orders += 1
        return self._orders

    def count_capture(self) -> None:
        """Notes that a gradient of the rule was delivered."""
        self.captures += 1


def several_processes() -> bool:
    """Whether several processes train together."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
