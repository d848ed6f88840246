"""The record of K time steps of a neuron layer: turns a learning signal into factors, and factors into products.

For a synapse with input x and trace tr_x, and with p[t] and n[t] what the causal term multiplies the trace with and the
other term the input,

    dL/dW = sum_t p[t] tr_x[t]^T + n[t] x[t]^T,    p = alpha_pre delta psi,    n = alpha_post delta tr_psi[t-1],

with both factors pulled back from the membrane u to the synapse's output through whatever lies between them.
A single step is K = 1. For more, the decay moves from the inputs to the factors (:mod:`stllr_plugin.folding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from stllr_plugin.activations import Psi
from stllr_plugin.arrivals import Arrivals
from stllr_plugin.between import pull_back
from stllr_plugin.calls import SynapseCall
from stllr_plugin.collect import Collection, Scaled, Shared
from stllr_plugin.errors import StateError
from stllr_plugin.folding import fold, traces_before
from stllr_plugin.kept_graphs import GraphCount
from stllr_plugin.marks import Mark, mark_of, nested
from stllr_plugin.precision import full_precision
from stllr_plugin.responses.base import Response
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session
from stllr_plugin.steps import InputSteps, MembraneSteps
from stllr_plugin.supervision import Span
from stllr_plugin.synapses import Term
from stllr_plugin.traces import EdgeTraces
from stllr_plugin.waiting import WaitingSteps

GIVEN_UP = torch.empty(0)  # in place of a tensor that autograd keeps for us


@dataclass(slots=True, eq=False)
class SynapticInput:
    """One edge's part in K steps of a neuron.

    Attributes:
        call: The synapse call (the first, where there are several).
        rule: The edge's rule.
        edge: The edge's state.
        is_single: Whether K is 1, for a step that is attached; the input is then that of the call.
        steps: The steps of which a single one is one, where a backward pass may come.
        position: Which of them it is.
        several: Its inputs at several steps, [K, B, ...], of at least float32.
        before_several: tr_x before them; None at the beginning of a sequence.
        nodes: Nodes that tag its output, each with whether u (or the neuron's input) is the sum of it and others. Empty
            for a synapse within the neuron.
        inner: Its position among the synapses within the neuron; None for those before it.
        collection: Where its gradient goes in place of being returned; None to return it.
    """

    call: SynapseCall
    rule: STLLRRule
    edge: EdgeTraces
    is_single: bool = False
    steps: InputSteps | None = None
    position: int = 0
    several: Tensor = GIVEN_UP
    before_several: Tensor | None = None
    nodes: list[tuple[Node, bool]] = field(default_factory=list)
    inner: int | None = None
    collection: Collection | None = None

    @property
    def num_steps(self) -> int:
        """K."""
        return 1 if self.is_single else len(self.several)

    def weight(self) -> Tensor:
        """The weight as the graft of a single step gets it."""
        weight = self.call.trained_weight()
        if not self.is_single or not weight.is_leaf or not weight.requires_grad or self.call.product is not None:
            return weight
        weight = self.edge.collect(weight, float(self.rule.lambda_pre))
        self.collection = self.edge.collection
        return weight

    def take(self, causal: Tensor | None, noncausal: Tensor | None) -> Tensor | None:
        """As :meth:`gradient`, but within a backward pass that comes by other steps as well."""
        if self.collection is None:
            return self.gradient(causal, noncausal)
        if causal is not None or noncausal is not None:
            assert self.steps is not None
            first = None if causal is None else causal[0]
            second = None if noncausal is None else noncausal[0]
            self.collection.take(self.call, self.steps, self.position, first, second)
        return None

    @property
    def marks(self) -> list[Mark]:
        """The marks on the nodes that tag its output."""
        return [mark for node, _ in self.nodes if (mark := mark_of(node)) is not None]

    def gradient(self, causal: Tensor | None, noncausal: Tensor | None) -> Tensor | None:
        """The weight's gradient from the two terms' factors [K, B, ...], both at the synapse's output."""
        if causal is None and noncausal is None:
            return self.nothing()
        if self.is_single:
            return self._product_of_step(causal, noncausal)
        decay = float(self.rule.lambda_pre)
        if causal is None:
            assert noncausal is not None
            return self.product(noncausal, None)
        folded = fold(causal, decay)
        return self.product(folded if noncausal is None else folded + noncausal, folded[0])

    def _product_of_step(self, causal: Tensor | None, noncausal: Tensor | None) -> Tensor:
        assert self.steps is not None
        self.steps.used = True
        x = full_precision(self.call.x)
        if causal is None:
            assert noncausal is not None
            return self._multiplied([(x, noncausal[0])])
        if noncausal is None:
            return self._multiplied([(self.steps.after(self.position), causal[0])])
        if self.steps.before(self.position) is None:  # the trace is the input itself
            return self._multiplied([(x, (causal + noncausal)[0])])
        return self._multiplied([(self.steps.after(self.position), causal[0]), (x, noncausal[0])])

    def product(self, total: Tensor, first: Tensor | None) -> Tensor:
        """The weight's gradient from the factors of the inputs [K, B, ...] and of the trace (before its decay)."""
        decay = float(self.rule.lambda_pre)
        terms: list[Term] = [(self.several.flatten(0, 1), total.flatten(0, 1))]
        if first is not None and decay != 0.0 and self.before_several is not None:
            terms.append((self.before_several, first * decay))
        return self._multiplied(terms)

    def _multiplied(self, terms: list[Term]) -> Tensor:
        self.call.site.check_input(self.call)
        return self.call.weight_gradient(terms)

    def nothing(self) -> Tensor | None:
        """Zeros for weights that a neuron holds itself, since Norse puts hooks on them that cannot take None."""
        return torch.zeros_like(self.call.trained_weight()) if self.call.site.owned else None


@dataclass(slots=True, eq=False)
class PostFactors:
    """The postsynaptic side of a rule over K steps.

    Attributes:
        rule: The rule.
        psi: psi(v) of several steps, [K, B, ...].
        before: tr_psi at the end of the steps before; None at the beginning of a sequence.
        steps: In place of both, for a single step: the steps of which it is one.
        position: Which of them it is.
        function: psi, which they are asked for.
    """

    rule: STLLRRule
    psi: Tensor = GIVEN_UP
    before: Tensor | None = None
    steps: MembraneSteps | None = None
    position: int = 0
    function: Psi | None = None

    def causal(self, signal: Tensor) -> Tensor | None:
        """What the causal term multiplies the presynaptic trace with, for a learning signal [K, B, ...]."""
        if not self.rule.alpha_pre:
            return None
        factor = signal * self.values()
        return factor if self.rule.alpha_pre == 1.0 else factor.mul_(self.rule.alpha_pre)

    @property
    def dtype(self) -> torch.dtype:
        """Of psi."""
        return self.psi.dtype if self.steps is None else self.steps.dtype

    def values(self) -> Tensor:
        """psi(v), [K, B, ...], or of a single step [B, ...]."""
        return self.psi if self.steps is None else self.steps.psi(self.function, self.position)

    def seen(self) -> Tensor | None:
        """The trace of psi that an input sees at a single step, [B, ...]; None if that is zero."""
        rule, steps = self.rule, self.steps
        assert steps is not None
        if not rule.alpha_post:
            return None
        trace = steps.before((self.function, rule.lambda_post), self.position)
        if rule.convention != "current":
            return trace
        psi = self.values()
        return psi if trace is None else torch.add(psi, trace.to(psi.device, psi.dtype), alpha=rule.lambda_post)

    def noncausal(self, signal: Tensor) -> Tensor | None:
        """What the other term multiplies the input with."""
        if not self.rule.alpha_post:
            return None
        decay, current = self.rule.lambda_post, self.rule.convention == "current"
        if self.steps is not None:
            trace = self.seen()
            if trace is None:
                return None
            return (signal * trace.to(signal.device, signal.dtype)).mul_(self.rule.noncausal_scale)
        seen, _ = traces_before(self.before, self.psi, decay)
        if current:
            seen = torch.add(self.psi, seen, alpha=decay)
        return seen.mul_(signal).mul_(self.rule.noncausal_scale)

    def both(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms' factors of the inputs [K, B, ...], the causal one folded, and G[0], its factor of the trace."""
        rule = self.rule
        total = torch.empty_like(self.psi)
        totals, signals, psis = total.unbind(0), signal.unbind(0), self.psi.unbind(0)
        if rule.alpha_post:
            trace = self.before
            for factor, delta, psi in zip(totals, signals, psis, strict=True):
                after = (
                    psi if trace is None else torch.add(psi, trace.to(psi.device, psi.dtype), alpha=rule.lambda_post)
                )
                seen = after if rule.convention == "current" else trace
                if seen is None:
                    factor.zero_()
                else:
                    torch.mul(delta, seen, out=factor)
                trace = after
        folded, product = torch.zeros_like(psis[0]), torch.empty_like(psis[0])
        for factor, delta, psi in zip(reversed(totals), reversed(signals), reversed(psis), strict=True):
            torch.mul(delta, psi, out=product)
            if rule.alpha_pre != 1.0:
                product.mul_(rule.alpha_pre)
            torch.add(product, folded, alpha=float(rule.lambda_pre), out=folded)
            if rule.alpha_post:
                torch.add(folded, factor, alpha=rule.noncausal_scale, out=factor)
            else:
                factor.copy_(folded)
        return total, folded


@dataclass(slots=True, eq=False)
class Carrier:
    """psi(v) of a single step, where it carries the learning signal to the layer below.

    Attributes:
        function: psi.
        steps: The steps of which it is one.
        position: Which of them.
    """

    function: Psi | None
    steps: MembraneSteps
    position: int

    def psi(self) -> Tensor:
        """[1, B, ...]."""
        return self.steps.psi(self.function, self.position).unsqueeze(0)


@dataclass(slots=True, eq=False)
class Record:
    """What the backward pass needs to know of K steps of a neuron. Holds no tensor of the graph, only edges upstream.

    Attributes:
        name: The neuron.
        session: What all parts of the learner share.
        span: Of which sequence the steps are, and which of them.
        response: What the neuron did.
        inputs: The synapses that feed it.
        posts: The postsynaptic side, by rule.
        psi_carries: psi(v) of several steps, if psi carries the learning signal to the layer below; None if the
            neuron's surrogate does.
        carrier: The same for a single step.
        boundaries: Marks of the nodes at which the walk to the synapses ended.
        graphs: Counts the layer's steps that are used.
        arrivals: Whom to tell what goes back to the neuron's input; None if nobody asks.
        used: Whether a backward pass has come by.
    """

    name: str
    session: Session
    span: Span
    response: Response
    inputs: list[SynapticInput]
    posts: dict[STLLRRule, PostFactors]
    psi_carries: Tensor | None = None
    carrier: Carrier | None = None
    boundaries: Sequence[Mark] = ()
    graphs: GraphCount | None = None
    arrivals: Arrivals | None = None
    used: bool = False

    def use(self) -> None:
        """Notes that a backward pass has come by."""
        if not self.used:
            self.used = True
            if self.graphs is not None:
                self.graphs.alive += 1

    def __del__(self) -> None:
        """Its graph is gone."""
        if self.used and self.graphs is not None:
            self.graphs.alive -= 1

    def is_binary(self, output: int) -> bool:
        """Whether one of the outputs is spikes, of which each is 0 or 1."""
        return self.response.binary and output == self.response.spikes

    @property
    def together(self) -> bool:
        """Whether several steps ran at once."""
        return self.span.window is not None

    # The gradients.

    def gradients(
        self, deltas: list[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
        """Gradients of the links, of the synapses' weights and of other parameters, from dL/d(output), masked."""
        if self.session.fold_steps > 1:
            self.session.complete_after(self.span)
        response = self.response
        for synaptic in self.inputs:
            synaptic.edge.reached_now = synaptic.call.site.reached = True
        if (found := self._plain_gradients(deltas)) is not None:
            return found
        signal, states = response.split(deltas)
        weights = self._weight_gradients(signal, states, collect=True)
        psi = self.psi_carries
        if self.carrier is not None and signal is not None:
            psi = self.carrier.psi()
        links, parameters = response.carry(signal, psi, states)
        self._tell(links)
        return links, weights, parameters

    def _plain_gradients(
        self, deltas: list[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]] | None:
        """The same in fewer operations, where a gradient of u is one of the input and of all synapses' outputs.

        That is so where one psi serves both the rule and what is carried on; None in other cases.
        """
        response, inputs, carrier = self.response, self.inputs, self.carrier
        rule = inputs[0].rule if inputs else None
        post = None if rule is None else self.posts.get(rule)
        signal = None if response.spikes is None else deltas[response.spikes]
        if rule is None or not response.carries_plainly or not self._is_plain():
            return None
        factor = None  # of the trace: also what goes on to the layer below
        if signal is not None:
            if post is None or post.steps is None or carrier is None or signal.dtype != post.dtype:
                return None
            if rule.alpha_pre != 1.0 or carrier.function != post.function or self.session.fold_steps > 1:
                return None
            factor = signal * carrier.steps.psi(carrier.function, carrier.position)
        for place, delta in enumerate(deltas):
            if delta is not None and place != response.spikes:
                if not response.passes(place) or (post is not None and delta.dtype != post.dtype):
                    return None
                factor = delta if factor is None else factor + delta
        assert factor is not None
        slope = response.slope
        factor = factor if slope is None else factor * slope
        seen = None if signal is None or post is None else post.seen()
        scaled: Scaled | None = None
        if signal is not None and seen is not None:
            shown = signal if slope is None else signal * slope
            scaled = (shown, seen.to(shown.device, shown.dtype), rule.noncausal_scale)
        shared: list[Shared] = []
        for synaptic in inputs:
            assert synaptic.collection is not None and synaptic.steps is not None
            synaptic.collection.take_plain(synaptic.call, synaptic.steps, synaptic.position, factor, scaled, shared)
        links: list[Tensor | None] = [None if response.root is None else response.plain_link(factor)]
        self._tell(links)
        others = [dim for dim in range(factor.dim()) if dim != 1]
        return links, [None] * len(inputs), [factor.sum(others) for _ in response.parameters]

    def _is_plain(self) -> bool:
        rule = self.inputs[0].rule
        return all(
            synaptic.collection is not None
            and synaptic.rule is rule
            and (
                synaptic.inner is not None
                or (len(synaptic.nodes) == 1 and synaptic.nodes[0][1] and not self.response.projects)
            )
            for synaptic in self.inputs
        )

    def _tell(self, links: list[Tensor | None]) -> None:
        """Tells whoever guards the way to the synapses what is sent there, where the input is the link."""
        gradient = links[0] if self.arrivals is not None else None
        if gradient is not None:
            assert self.arrivals is not None
            dtype = self.response.input_dtype
            if dtype is not None and gradient.dtype != dtype:  # or autograd would, to another tensor
                links[0] = gradient = gradient.to(dtype)
            self.arrivals.tell(gradient)

    def spike_gradients(self, delta: Tensor, *, causal: bool = True, noncausal: bool = True) -> list[Tensor | None]:
        """``sum_b delta_i e_ij`` for every input's weight, or of one of its two terms; delta as the spikes."""
        response = self.response
        signal, states = response.split([delta if i == response.spikes else None for i in range(response.count)])
        return self._weight_gradients(signal, states, causal=causal, noncausal=noncausal)

    def _weight_gradients(
        self,
        signal: Tensor | None,
        states: list[Tensor | None],
        *,
        causal: bool = True,
        noncausal: bool = True,
        collect: bool = False,
    ) -> list[Tensor | None]:
        multiplied = SynapticInput.take if collect else SynapticInput.gradient
        response = self.response
        weights: list[Tensor | None] = [None] * len(self.inputs)
        folds = self.session.fold_steps > 1 and not self.together and signal is not None and self._is_running()
        shown = signal if signal is None or response.gain is None else signal * response.gain
        silent = all(state is None for state in states)
        for rule in dict.fromkeys(synaptic.rule for synaptic in self.inputs):
            members = [i for i, synaptic in enumerate(self.inputs) if synaptic.rule == rule]
            post = self.posts.get(rule)
            first = second = None
            if shown is not None and post is not None:
                given = shown.to(post.dtype)
                if silent and self.together and self._direct(members):
                    total, of_trace = post.both(given)
                    for i in members:
                        product = self.inputs[i].product(total, of_trace)
                        weights[i] = product if response.slope is None else product.mul_(response.slope)
                    del total  # of the size of all steps, and the gradient that is carried on is another one
                    continue
                first = post.causal(given) if causal else None
                second = post.noncausal(given) if noncausal else None
            if silent and not folds and self._direct(members):  # the usual case, and the quickest
                slope = self.response.slope
                if slope is not None:
                    first = None if first is None else first * slope
                    second = None if second is None else second * slope
                for i in members:
                    weights[i] = multiplied(self.inputs[i], first, second)
                continue
            of_first = self._pulled(first, states, members)
            of_second = self._pulled(second, [None] * len(states), members)
            for i in members:
                known = self.inputs[i].call.product is None  # else the weight may be another one at each call
                gradient = self._folded if folds and known else multiplied
                weights[i] = gradient(self.inputs[i], of_first.get(i), of_second.get(i))
        return weights

    def _is_running(self) -> bool:
        """Whether this step is the one that runs now, so that those after it are still to come."""
        running = self.session.sequence
        return self.span.sequence.number == running.number and self.span.step == running.clock

    def _folded(self, synaptic: SynapticInput, causal: Tensor | None, noncausal: Tensor | None) -> Tensor | None:
        """The gradient of ``fold_steps`` steps at once: none until the last of them, or of the sequence."""
        last = self.span.sequence.ends_at(self.span.step)
        if last is None:
            raise StateError(
                f"fold_steps={self.session.fold_steps} keeps gradients back until the last step of a sequence at most, "
                "and its length is not known. Pass num_steps to the learner, or to learner.reset() before each "
                "sequence."
            )
        call, edge, steps, position = synaptic.call, synaptic.edge, synaptic.steps, synaptic.position
        assert synaptic.is_single and steps is not None
        steps.used = True
        call.site.check_input(call)
        gradient = None
        if edge.interrupted or (
            edge.waiting is not None and not edge.waiting.takes(self.span.step, full_precision(call.x))
        ):
            gradient = edge.gradient_of_waiting()
        if edge.waiting is None:
            edge.waiting = WaitingSteps(self.session.fold_steps, float(synaptic.rule.lambda_pre))
        edge.waiting.add(
            call,
            self.span.step,
            lambda: steps.after(position),
            None if causal is None else causal[0],
            None if noncausal is None else noncausal[0],
        )
        if last or edge.waiting.full:
            more = edge.gradient_of_waiting()
            gradient = more if gradient is None else gradient if more is None else gradient + more
        return synaptic.nothing() if gradient is None else gradient

    # From u back to the synapses.

    def _direct(self, members: list[int]) -> bool:
        """Whether u is the plain sum of these synapses' outputs and others: a gradient of u is theirs as well."""
        if not self.response.direct:
            return False
        before = [self.inputs[i] for i in members if self.inputs[i].inner is None]
        if before and self.response.projects:
            return False
        return all(len(synaptic.nodes) == 1 and synaptic.nodes[0][1] for synaptic in before)

    def _pulled(self, membrane: Tensor | None, states: list[Tensor | None], members: list[int]) -> dict[int, Tensor]:
        """Carries gradients of u [K, B, ...] and of states to the outputs of the synapses, [K, B, ...]."""
        if membrane is None and all(state is None for state in states):
            return {}
        roots, inner = self.response.pull(membrane, states)
        pulled: dict[int, Tensor] = {}
        outside = []
        for i in members:
            synaptic = self.inputs[i]
            if synaptic.inner is not None:
                found = inner[synaptic.inner]
                if found is not None:
                    pulled[i] = found
            else:
                outside += [(i, node, identity) for node, identity in synaptic.nodes]
        for i, gradient in self._through(roots, outside):
            count = self.inputs[i].num_steps
            shaped = gradient.unsqueeze(0) if count == 1 else gradient.view(count, -1, *gradient.shape[1:])
            pulled[i] = shaped if i not in pulled else pulled[i] + shaped
        return pulled

    def _through(
        self, roots: Sequence[tuple[GradientEdge, Tensor]], targets: Sequence[tuple[int, Node, bool]]
    ) -> list[tuple[int, Tensor]]:
        """Carries gradients through what lies between the neuron and the synapses: batch norm, pooling, sums.

        It is differentiated by autograd. Where it is the identity, which is the common case, nothing is computed.

        Args:
            roots: Edges and their gradients.
            targets: The number of an input, a node that tags its output, and whether that is added to the root.
        """
        if not roots or not targets:
            return []
        plain = len(roots) == 1 and roots[0][0] is self.response.root
        if plain and all(identity for _, _, identity in targets):
            return [(i, roots[0][1]) for i, _, _ in targets]
        shortcut = [(i, roots[0][1]) for i, _, identity in targets if plain and identity]
        through = [(i, node) for i, node, identity in targets if not (plain and identity)]
        with nested([*self.boundaries, *(mark for synaptic in self.inputs for mark in synaptic.marks)]):
            gradients = pull_back(roots, [node for _, node in through])
        found = [(i, gradient) for (i, _), gradient in zip(through, gradients, strict=True) if gradient is not None]
        return shortcut + found

    # What autograd keeps for us.

    def give_up(self) -> list[Tensor | None]:
        """Hands over inputs and psi, for autograd to keep: it lets go of them as soon as they are not needed."""
        if not self.together:
            return []
        given: list[Tensor | None] = [self.psi_carries]
        self.psi_carries = None
        for post in self.posts.values():
            given.append(post.psi)
            post.psi = GIVEN_UP
        for synaptic in self.inputs:
            given.append(synaptic.several)
            synaptic.several = GIVEN_UP
        return given

    def take_back(self, given: Sequence[Tensor | None]) -> None:
        """Puts back what :meth:`give_up` gave."""
        if not self.together:
            return
        kept = iter(given)
        self.psi_carries = next(kept)
        for post in self.posts.values():
            post.psi = next(kept)  # type: ignore[assignment]
        for synaptic in self.inputs:
            synaptic.several = next(kept)  # type: ignore[assignment]
