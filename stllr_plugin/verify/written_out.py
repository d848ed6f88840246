"""Gradients from a tape: plain autograd of each time step, or the rule with its eligibilities written out.

For an edge, with x the synapse's input, o its output, v = u - threshold and delta = dL[t]/d(spike)::

    tr_x[t]   = lambda_pre  * tr_x[t-1]   + x[t]
    tr_psi[t] = lambda_post * tr_psi[t-1] + psi(v[t])
    dL/dW     = sum over t of  delta_i * (alpha_pre * psi(v_i) * du_i/do * do/dW at tr_x
                                          + alpha_post * tr_psi_i[t-1] * du_i/do * do/dW at x)

du/do is autograd's, through whatever lies between; do/dW is that of the layer's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stllr_plugin.activations import Spike, resolve_psi
from stllr_plugin.neurons.base import NeuronAdapter
from stllr_plugin.rule import STLLRRule
from stllr_plugin.synapses import find_synapse
from stllr_plugin.verify.tape import Call, Cut, NeuronCall, SynapseCall, Tape

RuleOf = Callable[[str, str], STLLRRule]  # of a synapse ("" for the neuron's own) and a neuron, by name


@dataclass
class Gradients:
    """What a tape gives.

    Attributes:
        of: By parameter; those that nothing reaches are missing.
        feeds: Names of the edges of each weight.
        unchecked: Why a weight's gradient could not be written out.
        bypassing: Weights of a layer that reach a neuron without a call of the layer, and the neuron's name.
        beside: Parameters that the loss uses directly, so that their steps cannot be told apart.
    """

    of: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    feeds: dict[nn.Parameter, list[str]] = field(default_factory=dict)
    unchecked: dict[nn.Parameter, str] = field(default_factory=dict)
    bypassing: dict[nn.Parameter, str] = field(default_factory=dict)
    beside: set[nn.Parameter] = field(default_factory=set)

    def add(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        """One more term."""
        if gradient is not None:
            before = self.of.get(parameter)
            self.of[parameter] = gradient if before is None else before + gradient


@dataclass
class _Edge:
    """One synapse feeding one call of a neuron, at one time step."""

    rule: STLLRRule
    calls: list[SynapseCall]
    trace: Tensor  # tr_x[t]
    post: Tensor | None  # tr_psi[t-1]; None at the first step, and for readouts


class WrittenOut:
    """Goes back over a tape.

    Args:
        tape: The tape.
        model: The copy that it was made with.
        rule_of: The rule of each edge; None for plain autograd of each step.
        supervised: Steps whose learning signal counts; None for all.
        through_time: Whether gradients may pass from step to step where the graph does, for models with parts that are
            left alone and learn through time.
    """

    def __init__(
        self,
        tape: Tape,
        model: nn.Module,
        rule_of: RuleOf | None,
        supervised: range | None = None,
        through_time: bool = False,
    ) -> None:
        """See the class."""
        self.tape, self.rule_of, self.supervised, self.through_time = tape, rule_of, supervised, through_time
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        kinds = [(module, kind) for module in model.modules() if (kind := find_synapse(module)) is not None]
        self.synaptic = {weight for module, kind in kinds for weight in kind.trainable(module)}
        self.result = Gradients()
        self.total: dict[Cut, Tensor] = {}  # what has arrived at each cut
        self.direct: dict[Cut, Tensor] = {}  # the part of it that came from the loss without passing a neuron
        self.linear: dict[str, str | None] = {}  # answers of not_linear, by synapse
        self.edges: dict[NeuronCall, list[_Edge]] = {}
        if rule_of is not None:
            self._make_traces()

    def run(self) -> Gradients:
        """The gradient of each parameter."""
        cuts = [cut for call in self.tape.calls for cut in _cuts(call)]
        counted = [cut for cut in cuts if self._counts(cut)]
        self._send([self.tape.loss], [torch.ones_like(self.tape.loss)], counted, self.parameters, self.total)
        self.direct = dict(self.total)
        self.result.beside = set(self.result.of)
        for call in reversed(self.tape.calls):
            if not any(cut in self.total for cut in _cuts(call)):
                continue
            before = [cut for cut in cuts if self._may_reach(call, cut)]
            if isinstance(call, SynapseCall):
                self._through_synapse(call, before)
            else:
                self._through_neuron(call, before)
        return self.result

    def _counts(self, cut: Cut) -> bool:
        return self.supervised is None or cut.step in self.supervised

    def _may_reach(self, call: Call, cut: Cut) -> bool:
        ours = _cuts(call)[0]
        return cut.order < ours.order and (self.through_time or cut.step == ours.step)

    # Handing gradients on.

    def _send(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        cuts: Sequence[Cut],
        parameters: Sequence[nn.Parameter],
        store: dict[Cut, Tensor],
    ) -> set[nn.Parameter]:
        """Carries gradients to cuts and parameters; returns the parameters that they reach."""
        found = pull(outputs, gradients, [*(cut.leaf for cut in cuts), *parameters])
        for cut, gradient in zip(cuts, found[: len(cuts)], strict=True):
            if gradient is not None:
                store[cut] = gradient if cut not in store else store[cut] + gradient
        reached = set()
        for parameter, gradient in zip(parameters, found[len(cuts) :], strict=True):
            self.result.add(parameter, gradient)
            if gradient is not None:
                reached.add(parameter)
        return reached

    def _through_synapse(self, call: SynapseCall, before: list[Cut]) -> None:
        output = call.output
        others = self.parameters
        if self.rule_of is not None:  # its weight gets what neurons send by the rule, and the rest as it is
            others = [p for p in self.parameters if not any(p is weight for weight in call.weights)]
        self._send([output.value], [self.total[output]], before, others, self.total)
        if call.boundary:  # what passes it is no longer a neuron's
            self._send([output.value], [self.total[output]], before, [], self.direct)
        elif output in self.direct:
            self._send([output.value], [self.direct[output]], before, [], self.direct)
            if self.rule_of is not None:
                self._send([output.value], [self.direct[output]], [], call.weights, self.total)

    def _through_neuron(self, call: NeuronCall, before: list[Cut]) -> None:
        delta = None if call.spikes is None else self.total.get(call.spikes)
        outputs = [cut.value for cut in call.states if cut in self.total]
        gradients = [self.total[cut] for cut in call.states if cut in self.total]
        if self.rule_of is not None:
            self._eligibilities(call, delta, list(outputs), list(gradients))
        if delta is not None:
            assert call.spikes is not None
            rule = None if self.rule_of is None else self.rule_of("", call.name)
            if rule is None or rule.propagate == "surrogate":
                outputs.append(call.spikes.value)
                gradients.append(delta)
            else:
                outputs.append(call.decided)
                gradients.append(delta * _gain(call) * psi_of(rule, call))
                if call.step.gain is not None and call.step.gain.requires_grad:
                    outputs.append((call.spikes.leaf.detach() != 0) * call.step.gain)
                    gradients.append(delta)
        for parameter in self._send(outputs, gradients, before, self.parameters, self.total) & self.synaptic:
            self.result.bypassing[parameter] = call.name

    # The rule.

    def _make_traces(self) -> None:
        """Goes forward over the tape and gives each neuron call its edges, traces as they are at that step."""
        assert self.rule_of is not None
        pre: dict[tuple[str, int], dict[tuple[str, int], Tensor]] = {}
        posts: dict[tuple[object, ...], Tensor] = {}
        for call in self.tape.neuron_calls:
            if call.adapter.delayed:
                self._leave_own_weights(call)
            place = (call.name, call.layer)
            traces = pre.setdefault(place, {})
            fed = self._feeding(call)
            rules = {key: self.rule_of(key[0], call.name) for key in {**dict.fromkeys(traces), **dict.fromkeys(fed)}}
            for key, rule in rules.items():
                decayed = float(rule.lambda_pre) * traces[key] if key in traces else None
                if key in fed:
                    x = fed[key][0].x.double()
                    decayed = x if decayed is None else decayed + x
                assert decayed is not None
                traces[key] = decayed
            around: dict[tuple[object, ...], tuple[Tensor | None, Tensor]] = {}
            for rule in dict.fromkeys(rules.values()) if call.spikes is not None else ():
                which = (*place, resolve_psi(rule.psi), rule.lambda_post)
                if which not in around:
                    earlier, now = posts.get(which), psi_of(rule, call).double()
                    posts[which] = now if earlier is None else rule.lambda_post * earlier + now
                    around[which] = (earlier, posts[which])
            edges = []
            for key, calls in fed.items():
                rule = rules[key]
                post = None
                if call.spikes is not None:
                    pair = around[(*place, resolve_psi(rule.psi), rule.lambda_post)]
                    post = pair[1 if rule.convention == "current" else 0]
                edges.append(_Edge(rule, calls, traces[key].clone(), post))
                for weight in calls[0].weights:
                    names = self.result.feeds.setdefault(weight, [])
                    if (name := f"{key[0]}->{call.name}") not in names:
                        names.append(name)
            self.edges[call] = edges

    def _feeding(self, call: NeuronCall) -> dict[tuple[str, int], list[SynapseCall]]:
        """The synapse calls of this step that reach u without passing a neuron.

        Calls of one synapse on one input count once; the number tells calls on different inputs apart.
        """
        candidates = [
            other for other in self.tape.synapse_calls if self._may_reach(call, other.output) and other.weights
        ]
        found = self._pull_to_synapses(call, [call.decided], [torch.ones_like(call.decided)])
        feeding: dict[tuple[str, int], list[SynapseCall]] = {}
        for other in candidates:
            if other.output not in found:
                continue
            number = 0
            while (key := (other.name, number)) in feeding and not _same_input(feeding[key][0], other):
                number += 1
            feeding.setdefault(key, []).append(other)
        return feeding

    def _pull_to_synapses(
        self, call: NeuronCall, outputs: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> dict[Cut, Tensor]:
        """Gradients at the outputs of the synapses of this step that lead to a neuron without passing another one."""
        synapses = [other for other in self.tape.synapse_calls if self._may_reach(call, other.output)]
        return pull_to_synapses(synapses, outputs, gradients)

    def _eligibilities(
        self, call: NeuronCall, delta: Tensor | None, states: list[Tensor], state_gradients: list[Tensor]
    ) -> None:
        of_states = self._pull_to_synapses(call, states, state_gradients)
        for edge in self.edges[call]:
            at_trace: dict[Cut, Tensor] = {}
            at_input: dict[Cut, Tensor] = {}
            rule = edge.rule
            if delta is not None:
                scaled = delta * _gain(call)
                causal = rule.alpha_pre * scaled * psi_of(rule, call)
                at_trace = self._pull_to_synapses(call, [call.decided], [causal])
                if edge.post is not None and rule.alpha_post != 0.0:
                    late = rule.lambda_post if rule.convention == "paper" else 1.0
                    noncausal = rule.alpha_post * late * scaled * edge.post.to(scaled)
                    at_input = self._pull_to_synapses(call, [call.decided], [noncausal])
            for synapse in edge.calls:
                for x, sources in ((edge.trace, (at_trace, of_states)), (synapse.x, (at_input,))):
                    for source in sources:
                        if synapse.output in source:
                            self._weight_gradient(synapse, x.to(synapse.x), source[synapse.output])

    def _weight_gradient(self, synapse: SynapseCall, x: Tensor, g: Tensor) -> None:
        if synapse.name not in self.linear:
            self.linear[synapse.name] = not_linear(synapse)
        problem = self.linear[synapse.name]
        if problem is not None:
            self._leave(synapse, problem)
            return
        for weight, gradient in zip(synapse.weights, pull([synapse.again(x)], [g], synapse.weights), strict=True):
            self.result.add(weight, gradient)

    def _leave_own_weights(self, neuron: NeuronCall) -> None:
        """Of a neuron whose input acts a step later: nothing of the step that runs leads to its weights."""
        own = {f"{neuron.name}.{weight}".lstrip(".") for weight in neuron.adapter.weight_names}
        for synapse in self.tape.synapse_calls:
            if synapse.name in own:
                self._leave(synapse, f"what neuron {neuron.name!r} gets at a step acts on its membrane a step later")

    def _leave(self, synapse: SynapseCall, why: str) -> None:
        for weight in synapse.weights:
            self.result.unchecked[weight] = why


def _cuts(call: Call) -> list[Cut]:
    return [call.output] if isinstance(call, SynapseCall) else call.cuts


def _same_input(one: SynapseCall, other: SynapseCall) -> bool:
    a, b = one.given, other.given
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _gain(call: NeuronCall) -> Tensor | float:
    return 1.0 if call.step.gain is None else call.step.gain.detach()


def pull(outputs: Sequence[Tensor], gradients: Sequence[Tensor], to: Sequence[Tensor]) -> list[Tensor | None]:
    """Carries gradients of outputs back to tensors; None where no path leads."""
    pairs = [
        (out, g.to(out.dtype).expand_as(out)) for out, g in zip(outputs, gradients, strict=True) if out.requires_grad
    ]
    if not pairs or not to:
        return [None] * len(to)
    ends, sent = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ends, list(to), sent, retain_graph=True, allow_unused=True))


def pull_to_synapses(
    synapses: Sequence[SynapseCall], outputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> dict[Cut, Tensor]:
    """Carries gradients back to the outputs of synapse calls, past no neuron; unreached ones are missing.

    One synapse may lie behind another: the second is then between the first and the neuron, as a norm might be.

    Args:
        synapses: Calls, in their order.
        outputs: Where the gradients start.
        gradients: The gradients.
    """
    arrived: dict[Cut, Tensor] = {}

    def send(ends: Sequence[Tensor], sent: Sequence[Tensor], to: Sequence[SynapseCall]) -> None:
        for call, gradient in zip(to, pull(ends, sent, [call.output.leaf for call in to]), strict=True):
            if gradient is not None:
                arrived[call.output] = arrived[call.output] + gradient if call.output in arrived else gradient

    send(outputs, gradients, synapses)
    for number, call in reversed(list(enumerate(synapses))):
        if call.output in arrived and not call.boundary:
            earlier = [one for one in synapses[:number] if one.output.step == call.output.step]
            send([call.output.value], [arrived[call.output]], earlier)
    return arrived


def psi_of(rule: STLLRRule, call: NeuronCall) -> Tensor:
    """psi(v), 0 where the neuron could not spike; None stands for the derivative of its own spike function."""
    v = call.decided.detach().clone()  # a psi that works in place is the user's right
    psi = resolve_psi(rule.psi)
    if isinstance(psi, Spike):
        assert call.spikes is not None
        value = (call.spikes.leaf.detach() != 0).to(v.dtype)
    elif psi is None:
        value = own_derivative(call.adapter, call.module, v)
    else:
        with torch.no_grad():
            value = psi(v)
    return value if call.step.gate is None else value * call.step.gate


def own_derivative(adapter: NeuronAdapter, module: nn.Module, v: Tensor) -> Tensor:
    """Derivative of the neuron's own spike function, element by element."""
    leaf = v.requires_grad_()
    (derivative,) = pull([spikes := adapter.spike_function(module)(leaf)], [torch.ones_like(spikes)], [leaf])
    return torch.zeros_like(v) if derivative is None else derivative.detach()


_LINEAR: float = 1e-6


def not_linear(synapse: SynapseCall) -> str | None:
    """Why a trace of the synapse's inputs says nothing about its outputs; None if it does."""
    one = torch.linspace(-1.0, 1.0, synapse.x.numel()).to(synapse.x).reshape(synapse.x.shape)
    with torch.no_grad():
        start, first, second = synapse.again(torch.zeros_like(one)), synapse.again(one), synapse.again(one.flip(0) ** 2)
        if not torch.equal(synapse.again(one), first):
            return f"layer {synapse.name!r} is random: it gives other outputs for the same input"
        both = synapse.again(one + one.flip(0) ** 2)
    difference = (both - first - second + start).norm()
    tolerance = _LINEAR if one.dtype == torch.float64 else 1e-3
    if difference > tolerance * (first.norm() + second.norm() + start.norm()):
        return (
            f"the output of layer {synapse.name!r} is not linear in its input, so the rule with a trace of its inputs "
            "is not defined for it; put what is not linear into a module of its own behind the layer"
        )
    return None
