"""A neuron in a window: the traces move on by K steps, and the rule is grafted onto its outputs for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from stllr_plugin.activations import Psi, Spike, resolve_psi
from stllr_plugin.errors import StateError
from stllr_plugin.graft import SynapseCall, find_calls
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.rule import STLLRRule
from stllr_plugin.sites.synapse import changed_in_place
from stllr_plugin.synapses import Term
from stllr_plugin.traces import EdgeTraces, NeuronTraces, PostTrace, full_precision
from stllr_plugin.windows.errors import NeedsStepsError
from stllr_plugin.windows.fold import WindowPost, by_steps, fold, last_trace
from stllr_plugin.windows.leaky import scan_leaky
from stllr_plugin.windows.norse_cells import scan_norse
from stllr_plugin.windows.scan import Scan, scan_steps
from stllr_plugin.windows.window import GIVEN_UP

if TYPE_CHECKING:
    from stllr_plugin.sites import NeuronSite
    from stllr_plugin.windows.window import Window


@dataclass(slots=True, eq=False)
class WindowInput:
    """A synapse's part in the window of a neuron.

    Attributes:
        call: Its call (the first, for a synapse within the neuron).
        x: Its inputs over the window, [K, B, ...].
        before: tr_x at the end of the window before; None at the beginning of a sequence.
        rule: The edge's rule.
        nodes: Nodes that tag its output, each with whether the neuron's input is the sum of it and others. Empty for a
            synapse within the neuron.
        inner: Its position among the synapses within the neuron; None for those before it.
    """

    call: SynapseCall
    x: Tensor
    before: Tensor | None
    rule: STLLRRule
    nodes: list[tuple[Node, bool]] = field(default_factory=list)
    inner: int | None = None

    def gradient(self, causal: Tensor | None, noncausal: Tensor | None) -> Tensor | None:
        """The weight's gradient from the two terms' factors [K, B, ...], both at the synapse's output."""
        if causal is None and noncausal is None:  # Norse's hooks on weights that a cell holds itself cannot take None
            return torch.zeros_like(self.call.trained_weight()) if self.call.site.owned else None
        decay = float(self.rule.lambda_pre)
        first, total = None, noncausal
        if causal is not None:
            folded = fold(causal, decay)
            total = folded if noncausal is None else folded + noncausal
            first = folded[0]
        assert total is not None
        return self.product(total, first)

    def product(self, total: Tensor, first: Tensor | None) -> Tensor:
        """The weight's gradient from the factors of the inputs [K, B, ...] and of the trace (before its decay)."""
        decay = float(self.rule.lambda_pre)
        terms: list[Term] = [(self.x.flatten(0, 1), total.flatten(0, 1))]
        if first is not None and decay != 0.0 and self.before is not None:
            terms.append((self.before, first * decay))
        return self.call.site.weight_gradient(self.call, terms)


@dataclass(slots=True, eq=False)
class WindowRecord:
    """What the backward pass needs to know of a neuron's window.

    Attributes:
        name: The neuron.
        learner: The learner.
        step: The last time step of the window.
        scan: What the neuron did.
        current: Edge of its input in the graph; None if that needs no gradient.
        inputs: The synapses that feed it.
        posts: The postsynaptic side, by rule.
        psi_carries: psi(v) if psi carries the learning signal to the layer below; None if the neuron's surrogate does.
        boundaries: Nodes at which the walk to the synapses ended.
        used: Whether a backward pass has come by.
    """

    name: str
    learner: Any
    step: int
    scan: Scan
    current: GradientEdge | None
    inputs: list[WindowInput]
    posts: dict[STLLRRule, WindowPost]
    psi_carries: Tensor | None
    boundaries: list[Node]
    used: bool = False

    def gradients(self, deltas: list[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """Gradients of the input, of the synapses' weights and of other parameters, from dL/d(output)."""
        scan = self.scan
        signal = None if scan.spikes is None else deltas[scan.spikes]
        states = [None if i == scan.spikes else delta for i, delta in enumerate(deltas)]
        if signal is not None and scan.shape is not None:
            signal = signal.view(scan.shape)
        weights: list[Tensor | None] = [None] * len(self.inputs)
        for rule in dict.fromkeys(synaptic.rule for synaptic in self.inputs):
            members = [i for i, synaptic in enumerate(self.inputs) if synaptic.rule == rule]
            causal = noncausal = None
            if signal is not None and rule in self.posts:
                post = self.posts[rule]
                shown = signal.to(post.psi.dtype) if scan.gain is None else signal.to(post.psi.dtype) * scan.gain
                if all(state is None for state in states) and self._direct(members):
                    total, first = post.both(shown)
                    for i in members:
                        product = self.inputs[i].product(total, first)
                        weights[i] = product if scan.slope is None else product.mul_(scan.slope)
                    del total  # of the size of the window, and the gradient that is carried on is another one
                    continue
                causal, noncausal = post.causal(shown), post.noncausal(shown)
            of_causal = self._pulled(causal, states, members)
            of_noncausal = self._pulled(noncausal, [None] * len(states), members)
            for i in members:
                weights[i] = self.inputs[i].gradient(of_causal.get(i), of_noncausal.get(i))
        carried, parameters = scan.carry(signal, self.psi_carries, states)
        self._expect(carried)
        return carried, weights, parameters

    def give_up(self) -> list[Tensor | None]:
        """Hands over inputs and psi, for autograd to keep: it lets go of them as soon as they are not needed."""
        given: list[Tensor | None] = [self.psi_carries]
        self.psi_carries = None
        for post in self.posts.values():
            given.append(post.psi)
            post.psi = GIVEN_UP
        for synaptic in self.inputs:
            given.append(synaptic.x)
            synaptic.x = GIVEN_UP
        return given

    def take_back(self, given: Sequence[Tensor | None]) -> None:
        """Puts back what :meth:`give_up` gave."""
        kept = iter(given)
        self.psi_carries = next(kept)
        for post in self.posts.values():
            post.psi = next(kept)  # type: ignore[assignment]
        for synaptic in self.inputs:
            synaptic.x = next(kept)  # type: ignore[assignment]

    def _direct(self, members: list[int]) -> bool:
        """Whether u is the plain sum of these synapses' outputs and others: a gradient of u is theirs as well."""
        nodes = [self.inputs[i].nodes for i in members if self.inputs[i].inner is None]
        if nodes and self.scan.projects:
            return False
        return self.scan.direct and all(len(found) == 1 and found[0][1] for found in nodes)

    def _pulled(self, membrane: Tensor | None, states: list[Tensor | None], members: list[int]) -> dict[int, Tensor]:
        """Carries gradients of u and of states to the outputs of the synapses, [K, B, ...]."""
        if membrane is None and all(state is None for state in states):
            return {}
        current, inner = self.scan.pull(membrane, states)
        pulled: dict[int, Tensor] = {}
        through: list[tuple[int, Node]] = []
        for i in members:
            synaptic = self.inputs[i]
            if synaptic.inner is not None:
                found = inner[synaptic.inner]
                if found is not None:
                    pulled[i] = found
            elif current is not None:
                through += [(i, node) for node, _ in synaptic.nodes]
        if current is not None and through:
            for (i, _), gradient in zip(through, self._before_neuron(current, through), strict=True):
                if gradient is not None:
                    batch = self.inputs[i].x.shape[:2]
                    shaped = gradient.view(*batch, *gradient.shape[1:])
                    pulled[i] = shaped if i not in pulled else pulled[i] + shaped
        return pulled

    def _before_neuron(self, gradient: Tensor, through: list[tuple[int, Node]]) -> list[Tensor | None]:
        """Carries a gradient of the neuron's input back through what lies between it and the synapses."""
        plain = {id(node) for synaptic in self.inputs for node, identity in synaptic.nodes if identity}
        if all(id(node) in plain for _, node in through):
            return [gradient] * len(through)
        assert self.current is not None
        with self._nested():
            return list(
                torch.autograd.grad(
                    [self.current],
                    [GradientEdge(node, 0) for _, node in through],
                    [gradient],
                    retain_graph=True,
                    allow_unused=True,
                )
            )

    def _expect(self, carried: Tensor | None) -> None:
        """Tells synapses that are being probed what this neuron sends back to them."""
        through = [
            (i, node)
            for i, synaptic in enumerate(self.inputs)
            if synaptic.call.site.probes > 0
            for node, _ in synaptic.nodes
        ]
        if carried is None or not through:
            return
        for (_, node), gradient in zip(through, self._before_neuron(carried, through), strict=True):
            if gradient is not None:
                node.stllr_call.expect(gradient)  # type: ignore[attr-defined]

    @contextmanager
    def _nested(self) -> Iterator[None]:
        nodes: list[Any] = [*self.boundaries, *(node for synaptic in self.inputs for node, _ in synaptic.nodes)]
        for node in nodes:
            node.stllr_nested = True
        try:
            yield
        finally:
            for node in nodes:
                node.stllr_nested = False


class WindowGraft(Function):
    """A neuron's outputs over a window as functions of its input; delivers S-TLLR gradients to all weights it knows."""

    @staticmethod
    def forward(ctx: Any, record: WindowRecord, current: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Args: the record, the neuron's input, then the weights of its synapses and its other parameters."""
        ctx.stllr_boundary = True
        ctx.record = record
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*record.give_up())
        leaves = tuple(leaf.detach() for leaf in record.scan.leaves)
        ctx.mark_non_differentiable(*(leaf for leaf in leaves if not leaf.is_floating_point()))
        return leaves

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, ...]:
        """See the class."""
        record: WindowRecord = ctx.record
        if getattr(ctx, "stllr_nested", False) or all(delta is None for delta in deltas):
            return (None,) * len(ctx.needs_input_grad)
        record.used = True
        mask = record.learner.supervision.mask
        deltas = tuple(None if delta is None else mask(delta, record.step) for delta in deltas)
        shown = next(delta for delta in deltas if delta is not None)
        try:
            record.take_back(ctx.saved_tensors)
        except RuntimeError as error:  # torch looks whether they were changed in place; so does `check_input`
            if "inplace" not in str(error):
                raise
            names = " or ".join(repr(synaptic.call.site.name) for synaptic in record.inputs)
            raise StateError(changed_in_place(names)) from error
        try:
            with torch.autocast(device_type=shown.device.type, enabled=False):
                carried, weights, parameters = record.gradients(list(deltas))
        finally:
            record.give_up()
        if record.inputs:
            record.learner.count_capture()
        needed = ctx.needs_input_grad
        return (None, carried if needed[1] else None, *weights, *parameters)


def run_neuron(
    site: NeuronSite, window: Window, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One call of a neuron module on a whole window [K * B, ...]; returns what the module would, over the window.

    Raises:
        NeedsStepsError: If the module cannot be run so.
    """
    current, args, kwargs = window.first_states(site, args, kwargs)
    scan = scan_leaky(site, window, current, args, kwargs) or scan_norse(site, window, current, args, kwargs)
    if scan is None:
        scan = scan_steps(site, forward, current, args, kwargs, window.num_steps, window.supervised)
    calls, boundaries = ([], []) if current.grad_fn is None else find_calls(current.grad_fn, current.shape)
    traces = _traces_of(site, scan, calls)
    traces.steps += window.num_steps
    traces.model_call = site.learner.model_calls
    site.learner.supervision.enter(traces.steps - 1)
    inputs = _advance_edges(site, window, scan, calls, traces)
    posts, psi_carries = _advance_posts(site, scan, traces, inputs, window.supervised)
    scan.forget_distance(psi_carries is not None or not window.supervised)
    keeps = site.adapter.keeps_state(site.module)
    traces.remember(site.adapter.returned_membrane(site.module, scan.output) if keeps else None)
    if not window.supervised:
        return scan.output
    weights = [synaptic.call.trained_weight() for synaptic in inputs]
    edge = get_gradient_edge(current) if current.requires_grad else None
    record = WindowRecord(
        site.name, site.learner, traces.steps - 1, scan, edge, inputs, posts, psi_carries, list(boundaries)
    )
    outputs = WindowGraft.apply(record, current, *weights, *scan.parameters)
    grafted = {id(leaf): output for leaf, output in zip(scan.leaves, outputs, strict=True)}
    output = map_tensors(scan.output, lambda leaf: grafted[id(leaf)])
    scan.output, scan.leaves = None, []  # only what comes after has a use for them
    for inner in scan.inner:
        inner.x = GIVEN_UP
    return output


def _traces_of(site: NeuronSite, scan: Scan, calls: list[tuple[Node, SynapseCall, bool]]) -> NeuronTraces:
    sites = list(dict.fromkeys([call.site for _, call, _ in calls] + [synapse.call.site for synapse in scan.inner]))
    key = tuple((id(found), 0) for found in sites)
    if set(site.sequences) - {key}:
        raise NeedsStepsError(f"neuron {site.name!r} is fed by other synapses than before")
    layers = site.sequences.setdefault(key, [NeuronTraces()])
    if len(layers) > 1:
        raise NeedsStepsError(f"neuron {site.name!r} serves several layers")
    return layers[0]


def _advance_edges(
    site: NeuronSite,
    window: Window,
    scan: Scan,
    calls: list[tuple[Node, SynapseCall, bool]],
    traces: NeuronTraces,
) -> list[WindowInput]:
    """Moves the presynaptic traces to the end of the window."""
    inputs: dict[int, WindowInput] = {}
    index = traces.steps - 1

    def add(call: SynapseCall, x: Tensor) -> WindowInput:
        key = (id(call.site), 0)
        edge = traces.edges.get(key)
        if edge is None:
            edge = traces.edges[key] = EdgeTraces(site.learner.edge_name(call.site.name, site.name, 0, 0))
        rule = site.rule_for(call.site.rule)
        call.consumers[site.name] = index
        window.calls.append(call)
        full = full_precision(x)
        if edge.pre is not None and edge.pre.shape != full.shape[1:]:
            raise NeedsStepsError(f"the batch of edge {edge.name} has changed")
        synaptic = WindowInput(call, full, edge.pre, rule)
        edge.pre, edge.lent = last_trace(edge.pre, full, float(rule.lambda_pre)), False
        return synaptic

    for node, call, identity in calls:
        known = inputs.get(id(call.site))
        if known is None:
            shape = (window.num_steps, call.x.shape[0] // window.num_steps, *call.x.shape[1:])
            known = inputs[id(call.site)] = add(call, call.x.reshape(shape))
        elif known.call is not call:
            raise NeedsStepsError(f"synapse {call.site.name!r} runs several times within a step")
        known.nodes.append((node, identity))
    found = list(inputs.values())
    for number, synapse in enumerate(scan.inner):
        if id(synapse.call.site) in inputs:
            raise NeedsStepsError(f"synapse {synapse.call.site.name!r} runs several times within a step")
        synaptic = add(synapse.call, synapse.x)
        synaptic.inner = number
        found.append(synaptic)
    return found


def _advance_posts(
    site: NeuronSite, scan: Scan, traces: NeuronTraces, inputs: list[WindowInput], supervised: bool
) -> tuple[dict[STLLRRule, WindowPost], Tensor | None]:
    """psi(v) of all steps, once per psi, and the postsynaptic traces, once per psi and decay."""
    if scan.v is None:
        return {}, None
    v = full_precision(scan.v)
    values: dict[Psi | None, Tensor] = {}

    def psi_of(rule: STLLRRule) -> Tensor:
        psi = resolve_psi(rule.psi)
        if psi not in values:
            if isinstance(psi, Spike):
                assert scan.spikes is not None
                value = (scan.leaves[scan.spikes] != 0).to(v.dtype).view(v.shape)
            else:
                value = by_steps(lambda step: site.psi(psi, step), v)
            values[psi] = value if scan.gate is None else value * scan.gate
        return values[psi]

    posts: dict[STLLRRule, WindowPost] = {}
    before: dict[tuple[Psi | None, float], Tensor | None] = {}
    for rule in dict.fromkeys(synaptic.rule for synaptic in inputs):
        key = (resolve_psi(rule.psi), rule.lambda_post)
        if rule.alpha_post != 0.0 and key not in before:
            post = traces.posts.setdefault(key, PostTrace(*key))
            before[key], psi = post.trace, psi_of(rule)
            post.trace, post.lent = last_trace(post.trace, psi, rule.lambda_post), False
        if supervised:
            posts[rule] = WindowPost(rule, psi_of(rule), before.get(key))
    carries = psi_of(site.rule) if supervised and site.rule.propagate == "psi" else None
    return posts, carries
