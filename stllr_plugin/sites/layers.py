"""Which layer a call of a neuron module is, and of which sequence."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor

from stllr_plugin.calls import SynapseSite
from stllr_plugin.errors import StateError
from stllr_plugin.marks import Mark
from stllr_plugin.neuron import Neuron
from stllr_plugin.traces import NeuronTraces


class Layers:
    """The layers that one neuron module serves: the traces of each follow its state as it goes from step to step.

    A module that keeps its state serves one. With states that are passed in and out it may serve several: in different
    places, or as a block that is run several times within a step.

    Args:
        neuron: The neuron.
        begins_anew: Called where a new sequence has begun without a reset.
    """

    def __init__(self, neuron: Neuron, begins_anew: Callable[[], None]) -> None:
        """See the class."""
        self._neuron = weakref.ref(neuron)  # weakly, so that no cycle keeps a model that nobody else holds
        self._begins_anew = weakref.WeakMethod(begins_anew)
        self.all: list[NeuronTraces] = []

    @property
    def neuron(self) -> Neuron:
        """The neuron."""
        neuron = self._neuron()
        assert neuron is not None
        return neuron

    def find(self, fed_by: set[SynapseSite], incoming: Tensor | None, fresh: bool) -> NeuronTraces:
        """The traces of the layer that a call is; they begin afresh where a new sequence is evident.

        Args:
            fed_by: The synapses that feed it at this step.
            incoming: The membrane that came in.
            fresh: Whether that shows that a sequence begins.

        Raises:
            StateError: If the module cannot serve this layer, or the state belongs to a sequence that has ended.
        """
        if self.neuron.keeps_state:
            traces = self._kept(fed_by)
        else:
            known = next((traces for traces in self.all if traces.returned(incoming)), None)
            traces = self._passed(fed_by, incoming, fresh) if known is None else known
        self._follow(traces, incoming, fresh)
        return traces

    def running(self, incoming: Tensor | None) -> NeuronTraces | None:
        """The traces of the layer that goes on from a membrane; None if that cannot be told before the call."""
        if self.neuron.keeps_state:
            return self.all[0] if self.all else None
        return next((traces for traces in self.all if traces.returned(incoming)), None)

    def _kept(self, fed_by: set[SynapseSite]) -> NeuronTraces:
        if not self.all:
            self.all.append(NeuronTraces())
        (traces,) = self.all
        if traces.steps and fed_by and traces.sites and not fed_by & traces.sites:
            raise StateError(
                f"Neuron {self.neuron.name!r} is fed by other synapses than at its last call. It keeps its membrane "
                "itself (as with init_hidden=True), so it can serve one layer only, fed by the same synapses at "
                "each step: use a neuron per layer, or explicit states."
            )
        return traces

    def _passed(self, fed_by: set[SynapseSite], incoming: Tensor | None, fresh: bool) -> NeuronTraces:
        """A layer whose state is not one that a step returned.

        At their first step, which begins with new states, layers are told apart by the synapses that feed them and by
        their order.
        """
        session = self.neuron.session
        fitting = [traces for traces in self.all if not traces.sites or not fed_by or traces.sites & fed_by]
        waiting = [traces for traces in fitting if traces.sequence != session.sequence.number or not traces.steps]
        if waiting and (fresh or not any(traces.steps for traces in fitting)):
            return waiting[0]
        if not fitting:
            return self._another(0)
        if not fresh:
            if any(traces.ended_with(incoming) for traces in self.all):
                raise StateError(
                    f"Neuron {self.neuron.name!r} goes on from a state of a sequence that ended when another one began "
                    "with new states. The steps of several sequences cannot take turns: run one after the other, stack "
                    "them along the batch, or call learner.reset() where a sequence begins."
                )
            return min(fitting, key=lambda traces: traces.steps)
        first = session.sequence.steps <= 1 and all(
            traces.model_call == session.time.model_calls and traces.steps <= 1 for traces in fitting
        )
        return self._another(len(fitting)) if first else fitting[0]

    def _another(self, number: int) -> NeuronTraces:
        self.all.append(NeuronTraces(number=number))
        for traces in self.all:
            traces.shared = len(self.all) > 1
        return self.all[-1]

    def _follow(self, traces: NeuronTraces, incoming: Tensor | None, fresh: bool) -> None:
        """Starts the traces afresh where a new sequence is evident; refuses a state that outlived a reset by step()."""
        session = self.neuron.session
        same = traces.returned(incoming)
        if traces.ended_by_step:
            traces.ended_by_step = False
            if same:
                raise StateError(
                    f"Neuron {self.neuron.name!r} continues from the state before optimizer.step(), but step() ended "
                    "the sequence and reset the traces. If you update within a sequence, build the learner with "
                    "reset_after_step=False and call learner.reset() where a sequence begins."
                )
        if fresh and not same:
            running = traces.steps and traces.sequence == session.sequence.number
            if running and session.time.begins_step(traces):  # else only this layer begins anew
                self._begin_anew()
            if traces.steps:
                traces.ended = traces.last_membrane
            traces.restart()

    def _begin_anew(self) -> None:
        tell = self._begins_anew()
        if tell is not None:
            tell()


def step_index(neuron: Neuron, traces: NeuronTraces, boundaries: list[Mark]) -> int:
    """Index of the time step, checked: that of the neurons whose outputs came in, else the clock's."""
    session, number = neuron.session, neuron.session.sequence.number
    made = [mark.record for mark in boundaries if mark.record is not None]
    last = traces.last_step if traces.sequence == number else -1
    steps = {record.span.step if record.span.sequence.number == number else -1 for record in made}
    latest = max(steps, default=None)
    if latest is not None and (len(steps) > 1 or latest <= last):
        index, oldest = max(last + 1, latest), min(record.span.step for record in made)
        raise StateError(
            f"At step {index} neuron {neuron.name!r} receives what another neuron gave out at step {oldest}, "
            "with its graph. Nothing may flow between time steps: detach what you carry over (spikes.detach()). If "
            "it is not carried over, the neurons are at different steps: call learner.reset() before each sequence."
        )
    if latest is None:
        index = session.time.enter(traces)
    else:
        index = latest
        if index == session.clock:
            session.time.join(traces)
    if session.sequence.num_steps is not None and index >= session.sequence.num_steps:
        raise StateError(
            f"Neuron {neuron.name!r} runs step {index + 1} of a sequence announced with "
            f"num_steps={session.sequence.num_steps}. Call learner.reset() before a new sequence, or announce its "
            "length with learner.reset(num_steps=...)."
        )
    traces.sequence, traces.last_step, traces.model_call = number, index, session.time.model_calls
    traces.steps += 1
    return index
