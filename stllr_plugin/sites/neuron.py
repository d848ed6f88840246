"""Neurons: each step is read, the traces advance, and the rule is grafted onto the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from stllr_plugin.activations import Psi, Spike, resolve_psi
from stllr_plugin.errors import RuleError, SequenceInputError, StateError
from stllr_plugin.graft import (
    PostFactor,
    SpikeGraft,
    StateGraft,
    StepRecord,
    SynapseCall,
    SynapticInput,
    Tag,
    find_calls,
)
from stllr_plugin.hooks import Hook, eager, refuse_recomputation
from stllr_plugin.neurons.base import NeuronAdapter, NeuronStep
from stllr_plugin.neurons.surrogates import other_surrogate, surrogate_name, surrogate_problem
from stllr_plugin.rule import STLLRRule
from stllr_plugin.sites.own_weights import OwnWeights
from stllr_plugin.sites.synapse import OwnWeightSite
from stllr_plugin.traces import EdgeTraces, NeuronTraces, PostTrace, full_precision

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


@dataclass(slots=True)
class _OpenStep:
    """What the hook before a neuron's forward leaves for the one after it."""

    new_sequence: bool
    incoming: Tensor | None
    mode: OwnWeights | None


class NeuronSite:
    """A neuron of the attached model: reads each step, advances the traces, and grafts the rule onto the outputs.

    Attributes:
        name: Module name.
        module: The neuron.
        adapter: What is known about its kind.
        rule: The neuron's rule: its own by name, else the learner's.
        own_weights: Sites of weights that the module holds itself.
        sequences: Traces of the layers that this module serves, by the set of synapses that feed them. There is more
            than one layer where different synapses feed the module, or where a block is run several times within a
            step, each time with another state.
    """

    def __init__(
        self,
        learner: STLLRLearner,
        name: str,
        module: nn.Module,
        adapter: NeuronAdapter,
        rule: STLLRRule,
        own_weights: list[OwnWeightSite],
    ) -> None:
        """See the class."""
        self.learner = learner
        self.name = name
        self.module = module
        self.adapter = adapter
        self.rule = self._with_leak(rule)
        self.own_weights = own_weights
        self.sequences: dict[tuple[tuple[int, int], ...], list[NeuronTraces]] = {}
        self.tap = adapter.make_tap(module)
        self._open: list[_OpenStep | None] = []
        self._evaluated = False
        self._surrogate_checked = False
        self._rules: dict[STLLRRule, STLLRRule] = {}  # synapses' own rules, with lambda_pre="leak" replaced

    def _with_leak(self, rule: STLLRRule) -> STLLRRule:
        if rule.lambda_pre != "leak":
            return rule
        leak = self.adapter.leak(self.module)
        if leak is None:
            raise RuleError(
                f"Neuron {self.name!r} ({type(self.module).__name__}): the rule has lambda_pre='leak', but this layer "
                "has no single leak. Pass a number, for example with layer_rules."
            )
        return replace(rule, lambda_pre=leak)

    def rule_for(self, own: STLLRRule | None) -> STLLRRule:
        """The rule of a synapse that feeds this neuron: its own, else the neuron's."""
        if own is None:
            return self.rule
        if own not in self._rules:
            self._rules[own] = self._with_leak(own)
        return self._rules[own]

    def layers(self) -> Iterator[NeuronTraces]:
        """The traces of each layer that this module serves."""
        for layers in self.sequences.values():
            yield from layers

    def attach(self) -> list[Any]:
        """Installs the tap and registers the hooks (ours first after the call); returns their handles."""
        self.tap.install()
        return [
            self.module.register_forward_pre_hook(_BeforeNeuron(self), with_kwargs=True),
            self.module.register_forward_hook(_AfterNeuron(self), always_call=True, prepend=True),
        ]

    def detach(self) -> None:
        """Takes the tap out and cuts states that the module keeps off the graph."""
        self._recover()
        self.tap.uninstall()
        self.adapter.release_states(self.module)

    # Around one call.

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts the incoming states off the graph of the past and opens the tap."""
        if self.learner.window is not None or not self.learner.is_recording:  # a window does its own bookkeeping
            self._evaluated = self._evaluated or not self.learner.model.training
            self._open.append(None)
            return None
        refuse_recomputation(self.name)
        if args and isinstance(args[0], Tensor) and args[0].is_sparse:
            raise StateError(f"Neuron {self.name!r} received a sparse tensor; pass x.to_dense().")
        if self._evaluated:
            self._evaluated = False
            if all(traces.steps == 0 for traces in self.layers()):
                self.adapter.reset_states(self.module, None)  # what an evaluation between two sequences left behind
        self._refuse_broadcast_states()
        args, kwargs, membrane = self.adapter.detach_states(self.module, args, kwargs)
        # New states that are all zero begin a sequence. Reading values waits for the device, so it is done only where
        # the state is not the one that the last step returned.
        known = any(traces.last_membrane is not None for traces in self.layers())
        returned = any(traces.returned(membrane) for traces in self.layers())
        fresh = membrane is None or (known and not returned and not bool(membrane.any()))
        self._recover()
        if self.adapter.delayed:
            args, kwargs = self._mark_delayed(args, kwargs, fresh)
        mode = None
        if self.own_weights:
            mode = OwnWeights(self.module, self.own_weights, self.tap.currents)
            mode.__enter__()
        self._open.append(_OpenStep(fresh, membrane, mode))
        self.tap.clear()
        self.tap.open = True
        return args, kwargs

    def _mark_delayed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], fresh: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Puts the synapse calls of the step before into the graph of this one, which is where they reach u.

        At the first step they are calls on an input of zeros.
        """
        x = args[0] if args else kwargs.get("input_tensor", next(iter(kwargs.values())))
        if x.requires_grad:
            raise StateError(
                f"Neuron {self.name!r} ({type(self.module).__name__}) passes no learning signal to the layers below, "
                "since its input reaches its membrane one step later: they would learn nothing. Make it the first "
                'layer with trainable weights, use a signal that reaches each layer directly (learning_signal="dfa", '
                '"drtp", "local" or "tess"), or another neuron.'
            )

        def mark(state: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            for site, like in zip(self.own_weights, inputs, strict=True):
                call = None if fresh else site.last_call
                if call is None:
                    zeros = torch.zeros_like(like).detach()
                    weight = getattr(self.module, site.weight_name)
                    call = SynapseCall(site, zeros, zeros._version, weight, self.learner.next_order())
                if call.trained_weight().requires_grad:
                    state = Tag.apply(call, state, call.weight)
            return state

        return self.adapter.delay(self.module, args, kwargs, mark)

    def _recover(self) -> None:
        """Cleans up after a call that was cut off where torch runs no more hooks (Ctrl-C)."""
        for stale in self._open:
            if stale is not None and stale.mode is not None:
                stale.mode.__exit__(None, None, None)
        self._open.clear()

    def after(self, output: Any) -> Any:
        """Advances the traces and grafts the rule onto spikes and states; also runs when the forward pass raised."""
        opened = self._open.pop() if self._open else None
        if opened is None:
            return None
        tap = self.tap
        tap.open = False
        if opened.mode is not None:
            opened.mode.__exit__(None, None, None)
        try:
            if output is None:
                return None
            step = self.adapter.read_step(self.module, tap, output)
            if step.membrane is None or (self.adapter.spiking and step.threshold_distance is None):
                raise StateError(
                    f"Neuron {self.name!r} ({type(self.module).__name__}) ran without deciding about spikes where the "
                    "learner looks (does a subclass bypass `fire` or `activation`?)."
                )
            return self._advance(step, output, opened)
        finally:
            tap.clear()

    def _advance(self, step: NeuronStep, output: Any, opened: _OpenStep) -> Any:
        learner, supervision = self.learner, self.learner.supervision
        membrane = step.membrane
        assert membrane is not None
        calls, boundaries = find_calls(membrane.grad_fn, membrane.shape) if membrane.grad_fn is not None else ([], [])
        steps = {record.step for node in boundaries if (record := getattr(node, "record", None)) is not None}
        groups = _group(calls)
        traces = self._traces_for(tuple(groups), opened)
        self._follow_sequence(traces, opened)
        index = traces.steps
        if supervision.num_steps is not None and index >= supervision.num_steps:
            raise StateError(
                f"Neuron {self.name!r} runs step {index + 1} of a sequence announced with "
                f"num_steps={supervision.num_steps}. Call learner.reset() before a new sequence, or announce its "
                "length with learner.reset(num_steps=...)."
            )
        if any(step < index for step in steps):
            raise StateError(
                f"At step {index} neuron {self.name!r} receives what another neuron gave out at step {min(steps)}, "
                "with its graph. Nothing may flow between time steps: detach what you carry over (spikes.detach()). If "
                "it is not carried over, the neurons are at different steps: call learner.reset() before each sequence."
            )
        traces.steps = index + 1
        traces.model_call = learner.model_calls
        supervision.enter(index)
        self._check_lengths(membrane)
        with_graph = supervision.needs_graph(index)

        inputs = []
        for key, members in groups.items():
            call = members[0][1]
            edge = traces.edges.get(key)
            if edge is None:
                name = learner.edge_name(call.site.name, self.name, key[1], traces.number)
                edge = traces.edges[key] = EdgeTraces(name)
            rule = self.rule_for(call.site.rule)
            for _, member, _ in members:
                self._consume(member, index)
            trace = edge.advance(call.x, float(rule.lambda_pre), lend=with_graph)
            inputs.append(SynapticInput(call, [(node, identity) for node, _, identity in members], trace, rule, edge))

        posts, psi_carries = self._advance_posts(step, traces, inputs, with_graph)
        if not with_graph:
            result = self.adapter.replace(self.module, output, torch.Tensor.detach)
            learner.signal.passed_over(self)
        else:
            root = get_gradient_edge(membrane) if calls else None
            gain = None if step.gain is None else step.gain.detach()
            record = StepRecord(
                index, supervision, learner, root, [], inputs, posts, psi_carries, gain, boundaries=boundaries
            )
            result = self._graft(record, step, output)
        traces.remember(self.adapter.returned_membrane(self.module, result))
        return result

    def _traces_for(self, key: tuple[tuple[int, int], ...], opened: _OpenStep) -> NeuronTraces:
        """The traces of the layer that this call is, known by the synapses that feed it and by the state that came in.

        A block that is run several times within a step, each time with a state of its own, is as many layers. At their
        first step, which begins with new states, they are told apart by their order.
        """
        layers = self.sequences.get(key)
        if layers is None:
            if self._keeps_state() and any(traces.steps for traces in self.layers()):
                raise StateError(
                    f"Neuron {self.name!r} is fed by other synapses than at its last call. It keeps its membrane "
                    "itself (as with init_hidden=True), so it can serve one layer only, fed by the same synapses at "
                    "each step: use a neuron per layer, or explicit states."
                )
            layers = self.sequences[key] = [NeuronTraces()]
        if self._keeps_state():
            return layers[0]
        for traces in layers:
            if traces.returned(opened.incoming):
                return traces
        if opened.new_sequence and all(traces.steps for traces in layers):
            another_call = any(traces.model_call != self.learner.model_calls for traces in layers)
            if another_call or any(traces.steps > 1 for traces in layers):
                self.learner.signal.begins_anew()
                for traces in layers:  # the sequence before has ended
                    traces.restart()
            else:
                layers.append(NeuronTraces(number=len(layers)))
        return min(layers, key=lambda traces: traces.steps)

    def _check_lengths(self, membrane: Tensor) -> None:
        lengths = self.learner.supervision.lengths
        batch = membrane.shape[1 if self.adapter.is_sequence(self.module) else 0]
        if lengths is not None and lengths.shape[0] != batch:
            raise StateError(f"reset(lengths) was given {lengths.shape[0]} lengths for a batch of {batch}.")

    def _consume(self, call: SynapseCall, step: int) -> None:
        if call.consumers.get(self.name, step) != step:
            raise SequenceInputError(
                f"One output of synapse {call.site.name!r} reaches neuron {self.name!r} at more than one time step. If "
                "the synapse was run on all steps at once, call it at each step, on that step's input. If a module in "
                "between keeps a state from step to step, detach the state, or name the module in exclude=[...]."
            )
        call.consumers[self.name] = step
        if call.gate is not None and call.gate.made_at < step:
            if call.gate.parameters:
                call.site.refuse_past_through_parameters()
            call.gate.closed = True

    def _follow_sequence(self, traces: NeuronTraces, opened: _OpenStep) -> None:
        """Starts the traces afresh where a new sequence is evident; refuses a state that outlived a reset by step()."""
        same = traces.returned(opened.incoming)
        if traces.ended_by_step:
            traces.ended_by_step = False
            if same:
                raise StateError(
                    f"Neuron {self.name!r} continues from the state before optimizer.step(), but step() ended the "
                    "sequence and reset the traces. If you update within a sequence, build the learner with "
                    "reset_after_step=False and call learner.reset() where a sequence begins."
                )
        if opened.new_sequence and not same:
            if traces.steps:
                self.learner.signal.begins_anew()
            traces.restart()

    def _advance_posts(
        self, step: NeuronStep, traces: NeuronTraces, inputs: list[SynapticInput], with_graph: bool
    ) -> tuple[dict[STLLRRule, PostFactor], Tensor | None]:
        """Computes psi(v[t]) and moves the postsynaptic traces on, once per distinct psi and decay."""
        if step.threshold_distance is None:
            return {}, None
        v = full_precision(step.threshold_distance.detach())
        values: dict[Psi | None, Tensor] = {}

        def psi_of(rule: STLLRRule) -> Tensor:
            psi = resolve_psi(rule.psi)
            if psi not in values:
                value = _fired(step, v) if isinstance(psi, Spike) else self.psi(psi, v)
                values[psi] = value if step.gate is None else value * step.gate
            return values[psi]

        posts: dict[STLLRRule, PostFactor] = {}
        around: dict[tuple[Psi | None, float], tuple[Tensor | None, Tensor]] = {}  # tr_psi before and after this step
        for rule in dict.fromkeys(synaptic.rule for synaptic in inputs):
            seen = None
            if rule.alpha_post != 0.0:
                key = (resolve_psi(rule.psi), rule.lambda_post)
                if key not in around:
                    around[key] = traces.posts.setdefault(key, PostTrace(*key)).advance(psi_of(rule), with_graph)
                seen = around[key][1 if rule.convention == "current" else 0]
            if with_graph:
                posts[rule] = PostFactor(psi_of(rule), seen)
        carries = psi_of(self.rule) if with_graph and self.rule.propagate == "psi" else None
        return posts, carries

    def psi(self, psi: Psi | None, v: Tensor) -> Tensor:
        """The secondary activation (None: the neuron's own surrogate derivative) of v = u - threshold, checked."""
        if psi is None:
            self._check_surrogate(v)
            return self.adapter.surrogate_derivative(self.module, v)
        with torch.no_grad():
            value = psi(v)
        if not isinstance(value, Tensor) or value.shape != v.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StateError(
                f"Neuron {self.name!r}: psi returned {found} for v of shape {tuple(v.shape)}; it must map a tensor "
                "element by element."
            )
        return value.detach()

    def _check_surrogate(self, v: Tensor) -> None:
        """Looks at the neuron's own surrogate when it is first needed.

        Attaching has looked already, but where a synapse's own rule asks for it only the running model shows which
        neuron that is.
        """
        if self._surrogate_checked:
            return
        function = self.adapter.spike_function(self.module)
        problem = surrogate_problem(function, v.device)
        if problem is not None:
            raise RuleError(
                f"Neuron {self.name!r} ({type(self.module).__name__}): the rule of a synapse has psi=None, which uses "
                f"the neuron's own surrogate, {surrogate_name(self.module, function)}, which cannot serve: {problem}. "
                f"Give the neuron another, e.g. {other_surrogate(self.module)}, or the rule a psi of its own."
            )
        self._surrogate_checked = True

    def _graft(self, record: StepRecord, step: NeuronStep, output: Any) -> Any:
        """Replaces spikes and states in the output (and in the module's buffers) by their grafted versions."""
        weights = [synaptic.call.trained_weight() for synaptic in record.inputs]
        new: dict[int, Tensor] = {}
        spikes = step.spikes
        if spikes is not None:
            if record.psi_carries is not None:
                v = step.threshold_distance
                grafted = SpikeGraft.apply(record, spikes.detach(), v, step.gain, *weights)
            else:
                if record.membrane is not None and spikes.grad_fn is not None:
                    record.spikes = get_gradient_edge(spikes)
                grafted = SpikeGraft.apply(record, spikes, None, None, *weights)
            new[id(spikes)] = self.learner.signal.hidden(self, grafted)

        states: dict[int, Tensor] = {}

        def collect(tensor: Tensor) -> Tensor:
            if tensor is not spikes and tensor.requires_grad and tensor.grad_fn is not None:
                states.setdefault(id(tensor), tensor)
            return tensor

        self.adapter.replace(self.module, output, collect)
        if self.learner.signal.reaches(self):  # nothing else may flow into this neuron, through its states neither
            new.update({key: tensor.detach() for key, tensor in states.items()})
        elif states:
            kept = list(states.values())
            shared = record.membrane is not None
            record.states = [
                record.membrane if shared and tensor is step.membrane else get_gradient_edge(tensor)  # type: ignore[misc]
                for tensor in kept
            ]
            for before, after in zip(kept, StateGraft.apply(record, len(kept), *kept, *weights), strict=True):
                new[id(before)] = after
        return self.adapter.replace(self.module, output, lambda tensor: new.get(id(tensor), tensor))

    # States that the module keeps.

    def _refuse_broadcast_states(self) -> None:
        """Notices that DDP has just copied rank 0's buffers, membranes included, over those of this process.

        DDP writes in place and leaves no mark on the tensor, but while its forward runs it lists the buffers that it
        sent. A sequence that begins within that forward is safe: its states are new.
        """
        ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if ddp is None or all(traces.steps == 0 for traces in self.layers()):
            return
        states = [self.module._buffers.get(name) for name in self.adapter.state_buffers(self.module)]
        if any(state is sent for state in states for sent in getattr(ddp, "modules_buffers", ())):
            raise StateError(
                f"The hidden state of neuron {self.name!r} was overwritten between two time steps: "
                "DistributedDataParallel copies the buffers of rank 0 to all processes at each forward. Attach the "
                "learner to the model that you wrap, before wrapping it, or wrap with broadcast_buffers=False (newer "
                "torch: forward_sync_buffers=False; Lightning: DDPStrategy(broadcast_buffers=False))."
            )

    def reset(self, mask: Tensor | None, ended_by_step: bool) -> None:
        """Resets traces and the states that the module keeps; with a mask [B], those samples only."""
        self._recover()
        for traces in self.layers():
            if mask is None:
                traces.restart()
                traces.ended_by_step = ended_by_step and not self._keeps_state()
            else:
                traces.clear_samples(mask)
        self.adapter.reset_states(self.module, mask)
        if mask is not None or self._keeps_state():
            for traces in self.layers():
                traces.last_membrane = None

    def _keeps_state(self) -> bool:
        return self.adapter.keeps_state(self.module)


def _fired(step: NeuronStep, v: Tensor) -> Tensor:
    """The spikes that the neuron gave out: libraries differ in whether one at the threshold fires."""
    assert step.spikes is not None
    return (step.spikes.detach() != 0).to(v.dtype)


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


def _group(
    calls: list[tuple[Any, SynapseCall, bool]],
) -> dict[tuple[int, int], list[tuple[Any, SynapseCall, bool]]]:
    """Sorts the calls of one step by synapse; calls of one synapse on the same input share a trace and count once."""
    groups: dict[tuple[int, int], list[tuple[Any, SynapseCall, bool]]] = {}
    seen: dict[int, list[SynapseCall]] = {}
    for node, call, identity in calls:
        firsts = seen.setdefault(id(call.site), [])
        number = next((n for n, first in enumerate(firsts) if _same_tensor(first.x, call.x)), None)
        if number is None:
            number = len(firsts)
            firsts.append(call)
        groups.setdefault((id(call.site), number), []).append((node, call, identity))
    return groups


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
