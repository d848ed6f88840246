"""How the rule gets into autograd.

A synapse runs on its detached weight, and :class:`Tag` marks its output. Where the neuron returns, :class:`SpikeGraft`
receives the learning signal delta = dL/dy as its ordinary ``grad_output`` and returns the S-TLLR gradient as the
autograd gradient of every weight that feeds this neuron; :class:`StateGraft` does the same for losses on membranes.
Since gradients arrive through autograd, clipping, gradient hooks, DDP and gradient scaling work as always.

The weights are found by walking the graph of the step from the membrane back to the tags. No Function here holds a
tensor that lies downstream of it, so the graph of a step is freed as soon as nobody can reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, Node

from stllr_plugin.folding import FoldedSteps
from stllr_plugin.rule import STLLRRule
from stllr_plugin.supervision import Supervision
from stllr_plugin.traces import EdgeTraces

if TYPE_CHECKING:
    from stllr_plugin.sites import SynapseSite


@dataclass(slots=True, eq=False)
class InputGate:
    """Whether a learning signal may pass on to the input of a synapse call.

    Attributes:
        made_at: Time step of the neuron output that the input was made from.
        parameters: Whether it was made with trainable parameters, which a closed gate would cut off as well.
        closed: Set once that turns out to be an earlier step than the one at which the synapse ran.
    """

    made_at: int
    parameters: bool = False
    closed: bool = False


@dataclass(slots=True, eq=False)
class SynapseCall:
    """One call of a synapse.

    Attributes:
        site: The synapse.
        x: Its input, detached.
        version: Version of the input's memory, to notice a change in place.
        weight: The weight that it used (in the graph of its originals, if it is parametrized). None where nothing was
            to be learned from the call; see :meth:`trained_weight`.
        output_shape: Shape of its output.
        order: Number of the call; calls of one step are sorted by it.
        step: Time step at which it ran; only meaningful for readouts that no neuron consumes.
        gate: What lets the learning signal on to the input, where the input may come from an earlier step.
        consumers: Neurons that it fed, and the time step. If there is none, the weight gets its ordinary gradient.
        expected: What the neurons that it fed have sent back so far, while the site is being probed.
    """

    site: SynapseSite
    x: Tensor
    version: int
    weight: Tensor | None
    order: int
    output_shape: torch.Size | None = None
    step: int = 0
    gate: InputGate | None = None
    consumers: dict[str, int] = field(default_factory=dict)
    expected: Tensor | None = None

    def expect(self, gradient: Tensor) -> None:
        """Notes what a neuron sends back to this output, if anybody will ask."""
        if self.site.probes > 0:
            self.expected = gradient if self.expected is None else self.expected + gradient

    def trained_weight(self) -> Tensor:
        """The weight, within the graph of its originals."""
        if self.weight is None:
            self.weight = self.site.current_weight()
        return self.weight

    @property
    def consumed(self) -> bool:
        """Whether a neuron was fed by it."""
        return bool(self.consumers)


class Tag(Function):
    """Identity on a synapse's output; gives the weight its ordinary gradient unless a neuron consumed the call.

    The bias, where it is given, gets its ordinary gradient in any case.
    """

    @staticmethod
    def forward(
        ctx: Any, call: SynapseCall, output: Tensor, weight: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """Returns the output itself, under a new tensor, so that in-place operations on it stay allowed."""
        ctx.stllr_call = call
        ctx.set_materialize_grads(False)
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        """See the class."""
        call: SynapseCall = ctx.stllr_call
        if grad is None:
            return None, None, None, None
        nested = getattr(ctx, "stllr_nested", False)
        wants_bias = len(ctx.needs_input_grad) > 3 and ctx.needs_input_grad[3] and not nested
        if call.consumed:
            if call.site.probes > 0 and not nested:
                call.site.probe(call, grad)
            return None, grad, None, call.site.bias_gradient(grad) if wants_bias else None
        learner = call.site.learner
        grad = learner.supervision.mask(grad, call.step)
        if grad is None:
            return None, None, None, None
        weight_grad = None
        if ctx.needs_input_grad[2]:
            learner.count_capture()
            weight_grad = call.site.weight_gradient(call, [(call.x, grad)])
        return None, grad, weight_grad, call.site.bias_gradient(grad) if wants_bias else None


@dataclass(slots=True, eq=False)
class SynapticInput:
    """One edge's part in one step of a neuron.

    Attributes:
        call: The synapse call (the first, where the same call was made several times, as in some recurrent neurons).
        nodes: Tag nodes of the call, each with whether du/d(output) is the identity.
        trace: tr_x[t], shape of the synapse's input.
        rule: The edge's rule.
        edge: The edge's state.
    """

    call: SynapseCall
    nodes: list[tuple[Node, bool]]
    trace: Tensor
    rule: STLLRRule
    edge: EdgeTraces


@dataclass(slots=True, eq=False)
class PostFactor:
    """The postsynaptic side of a rule at one step: psi(v[t]), and the tr_psi that the second term sees.

    Each [B, *neuron shape]; the trace is tr_psi[t-1] (convention "current": tr_psi[t]), or None if there is none yet.
    """

    psi: Tensor
    trace: Tensor | None


@dataclass(slots=True, eq=False)
class StepRecord:
    """What the backward pass needs to know of one step of a neuron. Holds no tensor of the graph, only edges upstream.

    Attributes:
        step: Index of the time step.
        supervision: Which steps and samples are supervised.
        membrane: Edge of u in the graph; None where u does not depend on anything that needs a gradient.
        states: Edge of each state that the neuron returned.
        inputs: The synapses that feed the neuron.
        posts: Post-factor per rule.
        psi_carries: psi(v[t]) if psi carries the learning signal to the layer below, None if the neuron's own surrogate
            does.
        gain: What a spike is multiplied with in the output, detached; None for 1.
        spikes: Edge of the spikes, where the neuron's own surrogate carries the learning signal.
        boundaries: Nodes at which the walk to the synapses ended: outputs of other neurons, and the like.
        used: Whether a backward pass has come by.
    """

    step: int
    supervision: Supervision
    learner: Any
    membrane: GradientEdge | None
    states: list[GradientEdge]
    inputs: list[SynapticInput]
    posts: dict[STLLRRule, PostFactor]
    psi_carries: Tensor | None
    gain: Tensor | None = None
    spikes: GradientEdge | None = None
    boundaries: Sequence[Node] = ()
    used: bool = False

    def spike_gradients(self, delta: Tensor) -> list[Tensor | None]:
        """``sum_b delta_i e_ij`` for every input's weight, with e_ij of the input's rule."""
        factors: list[list[Tensor | None]] = [[None, None] for _ in self.inputs]  # of the trace, and of the input
        if self.gain is not None:
            delta = delta * self.gain  # dL/dy of the output, which is the spike times the gain
        for rule, post in self.posts.items():
            members = [index for index, synaptic in enumerate(self.inputs) if synaptic.rule == rule]
            if not members:
                continue
            signal = delta.to(post.psi.dtype)
            causal = signal * post.psi if rule.alpha_pre else None
            if causal is not None and rule.alpha_pre != 1.0:
                causal *= rule.alpha_pre
            noncausal = (signal * post.trace).mul_(rule.noncausal_scale) if post.trace is not None else None
            for term, factor in enumerate((causal, noncausal)):
                if factor is None:
                    continue
                pulled = self._pull_back([(self.membrane, factor)], members)
                for index in members:
                    factors[index][term] = _summed(pulled[index])
        fold = self.learner.fold_steps > 1 and self.step == self.supervision.clock
        gradients = self._folded if fold else self._multiplied
        return gradients(factors)

    def state_gradients(self, deltas: Sequence[Tensor | None]) -> list[Tensor | None]:
        """``sum_b (dL/d state)(d state/d output) tr_x`` for every input's weight: no psi, no second term."""
        outputs = [(edge, delta) for edge, delta in zip(self.states, deltas, strict=True) if delta is not None]
        pulled = self._pull_back(outputs, list(range(len(self.inputs))), sent=True)
        return self._multiplied([[_summed(pulled[index]), None] for index in range(len(self.inputs))])

    def _multiplied(self, factors: list[list[Tensor | None]]) -> list[Tensor | None]:
        """The gradients from what trace and input are multiplied with, for each weight."""
        gradients: list[Tensor | None] = []
        for synaptic, (causal, noncausal) in zip(self.inputs, factors, strict=True):
            call = synaptic.call
            sources = ((synaptic.trace, causal), (call.x, noncausal))
            terms = [(source, factor) for source, factor in sources if factor is not None]
            gradients.append(call.site.weight_gradient(call, terms) if terms else _nothing(call))
        return gradients

    def _folded(self, factors: list[list[Tensor | None]]) -> list[Tensor | None]:
        """The same, for ``learner.fold_steps`` steps at once: none until the last of them, or of the sequence."""
        last = self.supervision.ends_at(self.step)
        if last is None:
            self.learner.refuse_to_fold()
        gradients: list[Tensor | None] = []
        for synaptic, (causal, noncausal) in zip(self.inputs, factors, strict=True):
            call, edge = synaptic.call, synaptic.edge
            call.site.check_input(call)
            gradient = None
            if edge.interrupted or (edge.waiting is not None and not edge.waiting.takes(self.step, synaptic.trace)):
                gradient = edge.gradient_of_waiting()
            if edge.waiting is None:
                edge.waiting = FoldedSteps(self.learner.fold_steps, float(synaptic.rule.lambda_pre))
            edge.waiting.add(call, self.step, synaptic.trace, causal, noncausal)
            if last or edge.waiting.full:
                gradient = _plus(gradient, edge.gradient_of_waiting())
            gradients.append(_nothing(call) if gradient is None else gradient)
        return gradients

    def expect(self, delta: Tensor, carried: Tensor | None) -> None:
        """Tells synapses that are being probed what the spikes of this step send back to them."""
        members = [index for index, synaptic in enumerate(self.inputs) if synaptic.call.site.probes > 0]
        if not members:
            return
        source = (self.membrane, carried) if carried is not None else (self.spikes, delta)
        if source[0] is None:
            return
        self._pull_back([source], members, sent=True)

    @contextmanager
    def _nested(self) -> Iterator[None]:
        """Marks the nodes of this step for a backward pass that belongs to it alone.

        It must end where the walk to the synapses ended: a current may skip past a neuron that is fed by the same
        synapse, and what goes through that neuron is none of this step's business. The marks are on the nodes, since
        other nodes may run in other threads.
        """
        nodes: list[Any] = [*self.boundaries, *(node for synaptic in self.inputs for node, _ in synaptic.nodes)]
        for node in nodes:
            node.stllr_nested = True
        try:
            yield
        finally:
            for node in nodes:
                node.stllr_nested = False

    def _pull_back(
        self, outputs: Sequence[tuple[GradientEdge | None, Tensor]], members: list[int], sent: bool = False
    ) -> dict[int, list[Tensor]]:
        """Carries gradients from u (or states) to the outputs of the synapses, within this step.

        What lies between, the neuron's own input gain, batch norm, pooling, sums, is differentiated by autograd. Where
        it is the identity, which is the common case, nothing is computed.

        Args:
            outputs: Edges and their gradients.
            members: Indices of the inputs.
            sent: Whether these gradients are sent back through the graph as well; synapses that are probed note it.
        """
        pulled: dict[int, list[Tensor]] = {index: [] for index in members}
        direct = len(outputs) == 1 and outputs[0][0] is self.membrane
        through: list[tuple[int, Node]] = []
        for index in members:
            for node, identity in self.inputs[index].nodes:
                if direct and identity:
                    pulled[index].append(outputs[0][1])
                    if sent:
                        node.stllr_call.expect(outputs[0][1])  # type: ignore[attr-defined]
                else:
                    through.append((index, node))
        if through:
            edges = [edge for edge, _ in outputs]
            with self._nested():
                gradients = torch.autograd.grad(
                    edges,  # type: ignore[arg-type]
                    [GradientEdge(node, 0) for _, node in through],
                    [factor for _, factor in outputs],
                    retain_graph=True,
                    allow_unused=True,
                )
            for (index, node), gradient in zip(through, gradients, strict=True):
                if gradient is not None:
                    pulled[index].append(gradient)
                    if sent:
                        node.stllr_call.expect(gradient)  # type: ignore[attr-defined]
        return pulled


def _summed(pulled: list[Tensor]) -> Tensor | None:
    if not pulled:
        return None
    return pulled[0] if len(pulled) == 1 else torch.stack(pulled).sum(0)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _nothing(call: SynapseCall) -> Tensor | None:
    """Zeros for weights that a neuron holds itself, since Norse puts hooks on them that cannot take None."""
    return torch.zeros_like(call.trained_weight()) if call.site.owned else None


class SpikeGraft(Function):
    """Identity on a neuron's spikes; delivers S-TLLR gradients to the weights that feed it."""

    @staticmethod
    def forward(
        ctx: Any, record: StepRecord, spikes: Tensor, v: Tensor | None, gain: Tensor | None, *weights: Tensor
    ) -> Tensor:
        """Args: the record, y [B, ...], v = u - threshold and the gain (None if psi carries no signal), weights."""
        ctx.stllr_boundary = True
        ctx.record = record
        ctx.v_dtype = None if v is None else v.dtype
        ctx.fired = None if v is None or gain is None or not gain.requires_grad else (v > 0, gain.shape)
        ctx.set_materialize_grads(False)
        return spikes.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        """Turns delta = dL/dy into the gradients of y or v (to carry on) and of the weights."""
        record: StepRecord = ctx.record
        nothing = (None,) * len(ctx.needs_input_grad)
        if getattr(ctx, "stllr_nested", False):
            return nothing
        record.used = True
        if delta is None:
            return nothing
        delta = record.supervision.mask(delta, record.step)
        if delta is None:
            return nothing
        with _without_autocast(delta):
            gradients = record.spike_gradients(delta)
            carried = gain = None
            if record.psi_carries is not None:
                signal = delta if record.gain is None else delta * record.gain
                carried = (signal.to(record.psi_carries.dtype) * record.psi_carries).to(ctx.v_dtype)
            record.expect(delta, carried)
            if ctx.fired is not None:
                fired, shape = ctx.fired
                gain = (delta * fired).sum_to_size(shape)
        if record.inputs:
            record.learner.count_capture()
        return (None, delta if record.psi_carries is None else None, carried, gain, *gradients)


class StateGraft(Function):
    """Identity on the states that a neuron returns; delivers the gradients of losses on membranes."""

    @staticmethod
    def forward(ctx: Any, record: StepRecord, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Args: the step's record, the number of states, then the states and one weight per input."""
        ctx.stllr_boundary = True
        ctx.record = record
        ctx.count = count
        ctx.set_materialize_grads(False)
        return tuple(state.detach() for state in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, ...]:
        """Turns dL/d(state) into the gradients of the states (to carry on) and of the weights."""
        record: StepRecord = ctx.record
        if getattr(ctx, "stllr_nested", False):
            return (None,) * len(ctx.needs_input_grad)
        record.used = True
        masked = [None if delta is None else record.supervision.mask(delta, record.step) for delta in deltas]
        if all(delta is None for delta in masked):
            return (None,) * len(ctx.needs_input_grad)
        with _without_autocast(next(delta for delta in masked if delta is not None)):
            gradients = record.state_gradients(masked)
        if record.inputs:
            record.learner.count_capture()
        return (None, None, *masked, *gradients)


def _without_autocast(tensor: Tensor) -> torch.autocast:
    # A backward call inside the user's autocast region must not cast our products to half precision.
    return torch.autocast(device_type=tensor.device.type, enabled=False)


class Boundary(Function):
    """Identity on the output of a module that is left alone; the walk to the synapses of a neuron ends here."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Returns the tensor, under a new one."""
        ctx.stllr_boundary = True
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Passes the gradient on."""
        return None if getattr(ctx, "stllr_nested", False) else grad


def find_calls(root: Node, output_shape: torch.Size) -> tuple[list[tuple[Node, SynapseCall, bool]], list[Node]]:
    """Walks the graph of one step from the membrane back to the synapse calls that feed it.

    Args:
        root: Graph node of the membrane.
        output_shape: The membrane's shape.

    Returns:
        For each tag that was reached: its node, its call, and whether the membrane depends on it through additions
        alone (so that du/d(output) is the identity). The walk goes on behind a synapse, for layers without a neuron in
        between; it ends at the outputs of other neurons. Second, the nodes at which it ended.
    """
    found: list[tuple[Node, SynapseCall, bool]] = []
    boundaries: list[Node] = []
    seen: set[Node] = set()
    tangled = False
    stack: list[tuple[Node, bool]] = [(root, True)]
    while stack:
        node, identity = stack.pop()
        if node in seen:
            tangled = True  # two paths lead here: their sum is not the identity
            continue
        seen.add(node)
        call = getattr(node, "stllr_call", None)
        if call is not None:
            found.append((node, call, identity and call.output_shape == output_shape))
            identity = False  # a synapse behind this one reaches the membrane through its weight
        if getattr(node, "stllr_boundary", False):
            boundaries.append(node)
            continue
        name = type(node).__name__  # not node.name(): a user's Function may have an attribute of that name
        for position, (following, _) in enumerate(node.next_functions):
            if following is None or type(following).__name__ == "AccumulateGrad":
                continue
            adds = (name == "AddBackward0" and (position == 0 or node._saved_alpha == 1)) or (  # type: ignore[attr-defined]
                name == "SubBackward0" and position == 0
            )
            stack.append((following, identity and adds))
    if tangled:
        found = [(node, call, False) for node, call, _ in found]
    found.sort(key=lambda item: item[1].order)
    return found, boundaries


class GatedInput(Function):
    """Identity on a synapse's input; stops the learning signal where the gate is closed."""

    @staticmethod
    def forward(ctx: Any, gate: InputGate, x: Tensor) -> Tensor:
        """Returns the input, under a new tensor."""
        ctx.stllr_boundary = True
        ctx.gate = gate
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        """See the class."""
        return None, None if ctx.gate.closed or getattr(ctx, "stllr_nested", False) else grad


def records_behind(root: Node) -> tuple[list[StepRecord], bool]:
    """The steps of neurons whose outputs a tensor was made from, and whether parameters took part on the way."""
    records: list[StepRecord] = []
    parameters = False
    seen: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(node, "stllr_boundary", False):
            record = getattr(node, "record", None)
            if record is not None:
                records.append(record)
            continue
        parameters = parameters or type(node).__name__ == "AccumulateGrad"
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return records, parameters
