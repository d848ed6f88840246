"""Neurons: each step is read, the traces advance, and the rule is grafted onto the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.advance import check_lengths, group_calls, move_edges, regrafted, step_posts
from stllr_plugin.arrivals import Arrivals, Door, Entry
from stllr_plugin.between import guard
from stllr_plugin.calls import SynapseCall, SynapseSite, Tag
from stllr_plugin.errors import StateError
from stllr_plugin.graft import graft
from stllr_plugin.hooks import Hook, eager, refuse_recomputation
from stllr_plugin.marks import Mark
from stllr_plugin.neuron import Neuron
from stllr_plugin.neurons.base import NeuronAdapter, NeuronStep
from stllr_plugin.own_weights import OwnWeights, OwnWeightSite
from stllr_plugin.record import Record
from stllr_plugin.responses.base import Response
from stllr_plugin.responses.known import Knowledge
from stllr_plugin.responses.library import find_knowledge
from stllr_plugin.responses.live import live_response
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session
from stllr_plugin.signals.base import LearningSignal
from stllr_plugin.sites.broadcast import refuse_broadcast_states
from stllr_plugin.sites.layers import Layers, step_index
from stllr_plugin.sites.muted import MutedSteps
from stllr_plugin.sites.shortcut import Shortcut
from stllr_plugin.sites.skipped import mark_skipped
from stllr_plugin.sites.unknown import look_for_spikes
from stllr_plugin.updates import LeftState
from stllr_plugin.walk import Found, directly_fed, find_calls, summed_calls


@dataclass(slots=True)
class _OpenStep:
    """What the hook before a neuron's forward leaves for the one after it.

    Attributes:
        fresh: Whether the incoming state shows that a sequence begins.
        incoming: The incoming membrane.
        mode: What intercepts the module's own weights while it runs.
        knowledge: What is known by heart of the neuron, where that serves this call.
        current: Its input, in the graph.
        input: The same, also where the neuron is not known.
        door: Through which gradients leave a neuron that is not known.
        summed: The synapse calls of which its input is the plain sum.
        step: What it did, where the step was done by heart.
        response: Makes its response, where the knowledge has all that it needs.
    """

    fresh: bool
    incoming: Tensor | None
    mode: OwnWeights | None
    knowledge: Knowledge | None
    current: Tensor | None
    summed: list[SynapseCall]
    input: Tensor | None = None
    door: Door | None = None
    step: NeuronStep | None = None
    response: Callable[[], Response] | None = None


class NeuronSite(Neuron):
    """A neuron of the attached model: reads each step, advances the traces, and grafts the rule onto the outputs.

    Attributes:
        signal: The learning signal.
        layers: Traces of the layers that this module serves.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        module: nn.Module,
        adapter: NeuronAdapter,
        rule: STLLRRule,
        own_weights: list[OwnWeightSite],
        inner_sites: list[SynapseSite],
        signal: LearningSignal,
    ) -> None:
        """See the class."""
        super().__init__(session, name, module, adapter, rule, own_weights, inner_sites)
        self.signal = signal
        self.layers = Layers(self, self._begins_anew)
        self._muted = MutedSteps(module, adapter, self.layers.all)
        self._knowledge = None if "forward" in module.__dict__ else find_knowledge(module)
        self._shortcut = None if self._knowledge is None else Shortcut(module, self._instead)
        for inner in inner_sites:
            inner.inside = True
        self._open: list[_OpenStep | None] = []
        self._evaluated = False
        self._left: LeftState | None = None  # the membrane as the learner has left it
        self._in_graph = False  # whether the state that the last step left is in the graph

    def _begins_anew(self) -> None:
        self.session.supervision.begin_alike()
        self.signal.begins_anew()

    def attach(self) -> list[Any]:
        """Installs the tap and registers the hooks (ours first after the call); returns their handles."""
        self.tap.install()
        self.adapter.attached(self.module)
        if self._shortcut is not None:
            self._shortcut.install()
        self._leave(by_update=False)
        return [
            self.module.register_forward_pre_hook(_BeforeNeuron(self), with_kwargs=True),
            self.module.register_forward_hook(_AfterNeuron(self), always_call=True, prepend=True),
        ]

    def detach(self) -> None:
        """Takes the tap out and cuts states that the module keeps off the graph."""
        self._recover()
        self._left = None
        self.tap.uninstall()
        if self._shortcut is not None:
            self._shortcut.uninstall()
        self.adapter.release_states(self.module)
        self.adapter.detached(self.module)
        for traces in self.layers.all:
            traces.restart()

    # Around one call.

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts the incoming states off the graph of the past and opens the tap."""
        self.session.time.touch()
        if self.session.window is not None or not self.session.is_recording:  # a window does its own bookkeeping
            self._left, self._in_graph = None, False  # what the caller does with states can no longer be told
            self._evaluated = self._evaluated or not self.session.model.training
            if self.session.is_muted:
                self._muted.before(args, kwargs)
            self._open.append(None)
            return None
        refuse_recomputation(self.name)
        self.session.enter()
        if args and isinstance(args[0], Tensor) and args[0].is_sparse:
            raise StateError(f"Neuron {self.name!r} received a sparse tensor; pass x.to_dense().")
        if self._left is not None:
            if not self.session.trial:  # a trial puts copies in the place of states
                now = self.adapter.returned_membrane(self.module, None)
                self.session.updates.begin(self.session.sequence.number, self._left, now)
            self._left = None
        if self._evaluated:
            self._evaluated = False
            if all(traces.steps == 0 for traces in self.layers.all):
                self.adapter.reset_states(self.module, None)  # what an evaluation between two sequences left behind
        layers = self.layers.all
        refuse_broadcast_states(self, layers)
        args, kwargs, membrane = self.adapter.detach_states(self.module, args, kwargs)
        # New states that are all zero begin a sequence. Reading values waits for the device, so it is done only where
        # the state is not the one that the last step returned.
        fresh = membrane is None
        if membrane is not None and not any(traces.returned(membrane) for traces in layers):
            known = any(traces.last_membrane is not None for traces in layers)
            fresh = known and not bool(membrane.any())
        self._recover()
        if self.adapter.delayed:
            args, kwargs = self._mark_delayed(args, kwargs, fresh)
        opened = _OpenStep(fresh, membrane, None, None, None, [])
        args, kwargs = self._with_skipped(opened, args, kwargs)
        args = self._by_heart(opened, args, kwargs)
        args, kwargs = self._through_door(opened, args, kwargs)
        self._open.append(opened)
        self.tap.clear()
        if opened.knowledge is None:
            self._look_into(opened)
        return args, kwargs

    def _with_skipped(
        self, opened: _OpenStep, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Marks the input with synapses that usually add to it and were not called at this step."""
        name = None if args else next(iter(kwargs), None)
        current = args[0] if args else kwargs.get(name or "")
        if not isinstance(current, Tensor) or self.adapter.delayed:
            return args, kwargs
        opened.summed = summed_calls(current)
        traces = None if opened.fresh else self.layers.running(opened.incoming)
        if traces is None or len(opened.summed) >= len(traces.edges):
            return args, kwargs
        current = mark_skipped(self, traces, current, opened.summed)
        return ((current, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: current})

    def _through_door(
        self, opened: _OpenStep, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Lets the gradients of a step that leaves its own graph leave by one way."""
        name = None if args else next(iter(kwargs), None)
        current = opened.current if opened.current is not None else args[0] if args else kwargs.get(name or "")
        if not isinstance(current, Tensor) or current.grad_fn is None or self.adapter.delayed:
            return args, kwargs
        opened.input = current
        if opened.current is not None:
            return args, kwargs
        opened.door = Door()
        current = Entry.apply(opened.door, current)
        return ((current, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: current})

    def _guard(self, opened: _OpenStep, found: list[Found], record: Record) -> None:
        """Guards the way from the neuron's input to the synapses that feed it."""
        if opened.input is None:
            return
        arrivals = guard(opened.input, found, self.session.doubts)
        if opened.door is None:
            record.arrivals = arrivals
        else:
            opened.door.arrivals = arrivals

    def _by_heart(self, opened: _OpenStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Lets the module run on an input off the graph, where its derivatives are known by heart."""
        if self._knowledge is None or not args or not isinstance(args[0], Tensor):
            return args
        if self.module.__dict__.get("forward") is not self._shortcut:
            return args  # the user has put another one there
        current = args[0]
        if not self._hooks_are_next() or not self._knowledge.serves(self, current, args[1:], kwargs):
            return args
        opened.knowledge, opened.current = self._knowledge, current
        self.passed.clear()
        for site in self.inner_sites:
            site.stands_aside = True
        return (current.detach(), *args[1:])

    def _look_into(self, opened: _OpenStep) -> None:
        """Begins to look at what the module's own code does."""
        if self.own_weights:
            passed = None if opened.knowledge is None else self.passed
            opened.mode = OwnWeights(self.module, self.own_weights, self.tap.currents, passed)
            opened.mode.__enter__()
        self.tap.open = True

    def _instead(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The output of a step done by heart in place of the module's forward; None to leave it to the module."""
        opened = self._open[-1] if self._open else None
        if opened is None or opened.knowledge is None:
            return None
        done = opened.knowledge.step(self, args[0], args[1:], kwargs)
        if done is None:
            self._look_into(opened)
            return None
        output, opened.step, opened.response = done
        return [output]

    def _hooks_are_next(self) -> bool:
        """Whether nobody else's hook stands between ours and the module's forward, where it might change tensors."""
        before = next(reversed(self.module._forward_pre_hooks.values()))
        after = next(iter(self.module._forward_hooks.values()))
        return isinstance(before, _BeforeNeuron) and isinstance(after, _AfterNeuron)

    def _mark_delayed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], fresh: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Puts the synapse calls of the step before into the graph of this one, which is where they reach u.

        At the first step they are calls on an input of zeros.
        """
        x = args[0] if args else kwargs.get("input_tensor", next(iter(kwargs.values())))
        if x.requires_grad:
            raise StateError(
                f"{self.kind} passes no learning signal to the layers below, since its input reaches its membrane one "
                "step later: they would learn nothing. Make it the first layer with trainable weights, use a signal "
                'that reaches each layer directly (learning_signal="dfa", "drtp", "local" or "tess"), or another '
                "neuron."
            )

        def mark(state: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            for site, like in zip(self.own_weights, inputs, strict=True):
                call = None if fresh else site.last_call
                if call is None:
                    zeros = torch.zeros_like(like).detach()
                    call = SynapseCall(site, zeros, zeros._version, site.current_weight(), self.session.next_order())
                if call.trained_weight().requires_grad:
                    state = Tag.apply(call, state, call.weight)
            return state

        return self.adapter.delay(self.module, args, kwargs, mark)

    def _close(self, opened: _OpenStep) -> None:
        if opened.mode is not None:
            opened.mode.__exit__(None, None, None)
        for site in self.inner_sites:
            site.stands_aside = False

    def _recover(self) -> None:
        """Cleans up after a call that was cut off where torch runs no more hooks (Ctrl-C)."""
        for stale in self._open:
            if stale is not None:
                self._close(stale)
        self._open.clear()

    def after(self, output: Any) -> Any:
        """Advances the traces and grafts the rule onto spikes and states; also runs when the forward pass raised."""
        self.session.time.touch()  # again: the model may be a neuron itself, and its call have begun after `before`
        opened = self._open.pop() if self._open else None
        if opened is None:
            self._muted.after(output)
            return None
        tap = self.tap
        tap.open = False
        self._close(opened)
        try:
            if output is None:
                return None
            step = opened.step
            if step is None:
                step = self.adapter.read_step(self.module, tap, output)
            if step.membrane is None or (self.adapter.spiking and step.threshold_distance is None):
                raise StateError(
                    f"{self.kind} ran without deciding about spikes where the learner looks (does a subclass bypass "
                    "`fire` or `activation`?)."
                )
            return self._advance(step, output, opened)
        finally:
            tap.clear()

    def _advance(self, step: NeuronStep, output: Any, opened: _OpenStep) -> Any:
        membrane = step.membrane
        assert membrane is not None
        if not membrane.numel():
            raise StateError(f"{self.kind} received a batch without a sample; leave empty batches out.")
        root = membrane if opened.current is None else opened.current
        calls, boundaries = self._fed_by(root)
        look_for_spikes(self.session, f"neuron {self.name!r}", root, [call for _, call, _ in calls])
        groups = group_calls(calls)
        response: Response | None = None
        if self.inner_sites or self.own_weights:
            response = self._known_response(opened, step, output)
        inner = [] if response is None else response.inner
        fed_by = {call.site for _, call, _ in calls} | {synapse.call.site for synapse in inner}
        traces = self.layers.find(fed_by, opened.incoming, opened.fresh)
        index = step_index(self, traces, boundaries)
        self.session.kept.look(self.name, traces.graphs, index)
        check_lengths(self, membrane)
        supervised = self.session.needs_graph(index)
        inputs = move_edges(self, traces, groups, inner, None, index, supervised, opened.summed)
        v, gate = step.threshold_distance, step.gate
        distance = None if v is None else v.detach()
        gate = None if gate is None else gate.unsqueeze(0)
        posts, carrier = step_posts(self, traces, inputs, distance, gate, step.spikes, supervised)
        if not supervised:
            result = self.adapter.replace(self.module, output, torch.Tensor.detach)
            self.signal.passed_over(self.name)
            for _, call, _ in calls:
                if not call.site.inside and call.arrivals is None:
                    call.arrivals = Arrivals()  # nothing is sent there
        else:
            response = response or self._known_response(opened, step, output)
            if response is None:
                states = self._states(output, step, in_graph=True)
                response = live_response(step, output, states, carrier is not None)
            response.forget_distance(carrier is not None)
            record = Record(
                self.name,
                self.session,
                self.session.span(index),
                response,
                inputs,
                posts,
                carrier=carrier,
                boundaries=boundaries,
                graphs=traces.graphs,
            )
            self._guard(opened, calls, record)
            result = self._grafted(record, step.spikes, output)
        left = self.adapter.returned_membrane(self.module, result)
        self._in_graph = left is not None and left.requires_grad
        traces.remember(left)
        return result

    def _fed_by(self, root: Tensor) -> tuple[list[Found], list[Mark]]:
        node, weights = root.grad_fn, self.session.weights
        if node is None:
            return [], []
        return directly_fed(node, root.shape, weights) or find_calls(node, root.shape, weights)

    def _known_response(self, opened: _OpenStep, step: NeuronStep, output: Any) -> Response | None:
        if opened.knowledge is None or opened.current is None:
            return None
        if opened.response is not None:
            return opened.response().acts_on(opened.current)
        states = self._states(output, step, in_graph=False)
        return opened.knowledge.of_step(self, step, output, states).acts_on(opened.current)

    def _states(self, output: Any, step: NeuronStep, *, in_graph: bool) -> list[Tensor]:
        """The states that the module returned or keeps, each once; those in the graph alone, if asked."""
        found: dict[int, Tensor] = {}

        def collect(tensor: Tensor) -> Tensor:
            if (
                tensor is not step.spikes
                and tensor.is_floating_point()
                and (not in_graph or tensor.grad_fn is not None)
            ):
                found.setdefault(id(tensor), tensor)
            return tensor

        self.adapter.replace(self.module, output, collect)
        return list(found.values())

    def _grafted(self, record: Record, spikes: Tensor | None, output: Any) -> Any:
        """Replaces spikes and states in the output (and in the module's buffers) by their grafted versions."""
        leaves = record.response.leaves
        new = regrafted(graft(record), leaves)
        if spikes is not None:
            new[id(spikes)] = self.signal.hidden(self.name, new[id(spikes)])
        if self.signal.reaches(self.name):  # nothing else may flow into this neuron, through its states neither
            new.update({id(leaf): leaf.detach() for leaf in leaves if leaf is not spikes})
        return self.adapter.replace(self.module, output, lambda tensor: new.get(id(tensor), tensor))

    # Sequences.

    def reset(self, mask: Tensor | None, ended_by_step: bool) -> None:
        """Resets traces and the states that the module keeps; with a mask [B], those samples only."""
        self._recover()
        detached = ended_by_step and self._is_detached_by_caller()
        for traces in self.layers.all:
            if mask is None:
                traces.restart()
                traces.ended = None
                traces.ended_by_step = ended_by_step and not self.keeps_state
            else:
                traces.clear_samples(mask)
        self.adapter.reset_states(self.module, mask)
        if mask is None:
            self._leave(ended_by_step, detached)
        if mask is not None or self.keeps_state:
            for traces in self.layers.all:
                traces.last_membrane = None

    def _leave(self, by_update: bool, detached: bool = False) -> None:
        """Notes the state in which the learner leaves the module, to see what the caller does with it."""
        self._in_graph = False
        if self.keeps_state and self.session.updates.watching:
            self._left = LeftState(self.adapter.left_membrane(self.module), by_update, detached)

    def _is_detached_by_caller(self) -> bool:
        """Whether the caller has cut the state that the last step left off its graph."""
        if not self._in_graph or not self.keeps_state:
            return False
        now = self.adapter.returned_membrane(self.module, None)
        cut = isinstance(now, Tensor) and not now.requires_grad
        return cut and any(traces.returned(now) for traces in self.layers.all)


class _BeforeNeuron(Hook):
    def __init__(self, site: NeuronSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.site.before(args, kwargs)


class _AfterNeuron(Hook):
    refuses = False

    def __init__(self, site: NeuronSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.site.after(output)
