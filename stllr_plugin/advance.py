"""K steps of a neuron layer: the one place where its traces move on, and where its record is made.

One attached step, and a window of steps that run at once, both come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from stllr_plugin.activations import Psi, Spike, is_by_value, resolve_psi
from stllr_plugin.calls import SynapseCall, SynapseSite, is_same_tensor
from stllr_plugin.errors import SequenceInputError, StateError
from stllr_plugin.folding import by_steps
from stllr_plugin.neuron import Neuron
from stllr_plugin.precision import full_precision
from stllr_plugin.record import Carrier, PostFactors, SynapticInput
from stllr_plugin.responses.base import InnerSynapse
from stllr_plugin.rule import STLLRRule
from stllr_plugin.steps import MembraneSteps
from stllr_plugin.traces import EdgeTraces, NeuronTraces, Plan, PostTrace, edge_name
from stllr_plugin.unknown_spikes import WAY_OUT
from stllr_plugin.walk import Found

PsiKey = tuple["Psi | None", float]
Key = tuple[int, int]  # id of a synapse's site, number of the call within a step
Groups = dict[Key, list[Found]]


def group_calls(calls: Sequence[Found]) -> Groups:
    """Sorts the calls of one step by synapse; calls of one synapse on the same input share a trace and count once."""
    groups: Groups = {}
    seen: dict[int, list[SynapseCall]] = {}
    for node, call, identity in calls:
        firsts = seen.setdefault(id(call.site), [])
        number = next((n for n, first in enumerate(firsts) if is_same_tensor(first.x, call.x)), None)
        if number is None:
            number = len(firsts)
            firsts.append(call)
        groups.setdefault((id(call.site), number), []).append((node, call, identity))
    return groups


def move_edges(
    neuron: Neuron,
    traces: NeuronTraces,
    groups: Groups,
    inner: Sequence[InnerSynapse],
    num_steps: int | None,
    step: int,
    lend: bool,
    summed: Sequence[SynapseCall] | None = None,
) -> list[SynapticInput]:
    """Moves the presynaptic traces of a layer on.

    Args:
        neuron: The neuron.
        traces: The layer's traces.
        groups: The calls of synapses in front of it, on all of the steps at once.
        inner: Those of synapses within it.
        num_steps: K, of a window; None for a step that is attached.
        step: The last of the steps.
        lend: Whether a backward pass will follow.
        summed: The calls of which the neuron's input is the plain sum; None to go by what the walk says.
    """
    inputs: list[SynapticInput] = []
    for key, members in groups.items():
        call = members[0][1]
        for _, member, _ in members:
            _consume(neuron.name, member, step)
        if num_steps is None:
            synaptic = _stepped(neuron, traces, key, call, call.x, lend, call.kept)
        else:
            x = call.x.reshape(num_steps, -1, *call.x.shape[1:])
            synaptic = _moved(neuron, traces, key, call, x)
        synaptic.nodes = [(node, identity) for node, _, identity in members]
        plain = members[0][2] if summed is None else sum(one is call for one in summed) == 1
        synaptic.edge.direct = len(members) == 1 and plain and call.product is None
        inputs.append(synaptic)
    taken: dict[int, int] = {}
    for position, synapse in enumerate(inner):
        site = synapse.call.site
        number = taken[id(site)] = taken.get(id(site), -1) + 1
        while (id(site), number) in groups:
            number += 1
        synapse.call.consumers[neuron.name] = step
        key = (id(site), number)
        if num_steps is None:
            synaptic = _stepped(neuron, traces, key, synapse.call, synapse.x[0], lend, kept=False)
        else:
            synaptic = _moved(neuron, traces, key, synapse.call, synapse.x)
        synaptic.inner = position
        inputs.append(synaptic)
    if len(inputs) < len(traces.edges):
        _fade(neuron, traces, {id(synaptic.edge) for synaptic in inputs}, lend)
    return inputs


def _edge(neuron: Neuron, traces: NeuronTraces, key: Key, site: SynapseSite) -> EdgeTraces:
    edge = traces.edges.get(key)
    if edge is None:
        name = edge_name(site.name, neuron.name, key[1], traces.number)
        edge = traces.edges[key] = EdgeTraces(name, site)
        traces.sites.add(site)
    return edge


def _moved(neuron: Neuron, traces: NeuronTraces, key: Key, call: SynapseCall, x: Tensor) -> SynapticInput:
    edge, rule = _edge(neuron, traces, key, call.site), neuron.rule_for(call.site.rule)
    x = full_precision(x)
    before = edge.window(x, float(rule.lambda_pre))
    return SynapticInput(call, rule, edge, several=x, before_several=before)


def _stepped(
    neuron: Neuron, traces: NeuronTraces, key: Key, call: SynapseCall, x: Tensor, lend: bool, kept: bool
) -> SynapticInput:
    edge, rule = _edge(neuron, traces, key, call.site), neuron.rule_for(call.site.rule)
    x = full_precision(x)
    held = x
    if lend and kept:
        call.compact()
        held = x if call.dtype is None else call.held
    steps, position = edge.step(x, float(rule.lambda_pre), lend, kept, held)
    return SynapticInput(call, rule, edge, True, steps, position)


def _fade(neuron: Neuron, traces: NeuronTraces, called: set[int], lend: bool) -> None:
    """Lets the traces of synapses decay that were not called at this step."""
    for edge in traces.edges.values():
        if id(edge) in called or edge.like is None:
            continue
        rule = neuron.rule_for(edge.site.rule)
        edge.decay(float(rule.lambda_pre))
        if lend and rule.lambda_pre != 0.0 and edge.site.current_weight().requires_grad:
            raise StateError(
                f"Synapse {edge.site.name!r} was not called at a step of neuron {neuron.name!r}, although its trace "
                "still has a part in it, and something other than a sum lies between the two (a norm, pooling, another "
                "layer, a forward of the layer's own), so that the learner cannot tell how. Call the layer at each "
                "step, on zeros where nothing came in; or set lambda_pre=0 for it with layer_rules."
            )


def _consume(neuron: str, call: SynapseCall, step: int) -> None:
    if call.consumers.get(neuron, step) != step:
        raise SequenceInputError(
            f"One output of synapse {call.site.name!r} reaches neuron {neuron!r} at more than one time step. If "
            "the synapse was run on all steps at once, call it at each step, on that step's input. If a module in "
            f"between keeps a state from step to step, detach the state. {WAY_OUT}"
        )
    call.consumers[neuron] = step
    if call.gate is not None and call.gate.made_at < step:
        if call.gate.parameters:
            call.site.refuse_past_through_parameters()
        call.gate.closed = True


def move_posts(
    neuron: Neuron,
    traces: NeuronTraces,
    inputs: Sequence[SynapticInput],
    v: Tensor | None,
    gate: Tensor | None,
    spikes: Tensor | None,
    lend: bool,
) -> tuple[dict[STLLRRule, PostFactors], Tensor | None]:
    """Computes psi(v) of a window and moves the postsynaptic traces on, once per distinct psi and decay.

    Args:
        neuron: The neuron.
        traces: The layer's traces.
        inputs: The synapses that feed it.
        v: Membrane minus threshold, [K, B, ...]; None for readouts.
        gate: Where the neuron could spike at all, [K, B, ...]; None for everywhere.
        spikes: What it gave out, [K * B, ...].
        lend: Whether a backward pass will follow.

    Returns:
        The postsynaptic side by rule, and psi(v) if psi carries the learning signal to the layer below.
    """
    if v is None:
        return {}, None
    v = full_precision(v)
    values: dict[Psi | None, Tensor] = {}

    def psi_of(psi: Psi | None) -> Tensor:
        if psi not in values:
            values[psi] = _psi(neuron, psi, v, gate, spikes)
        return values[psi]

    traces.settle_posts()
    posts: dict[STLLRRule, PostFactors] = {}
    before: dict[PsiKey, Tensor | None] = {}
    called = {synaptic.rule for synaptic in inputs}
    for rule in _rules(neuron, traces, inputs):
        key = (resolve_psi(rule.psi), rule.lambda_post)
        if rule.alpha_post != 0.0 and key not in before:
            before[key] = _post(neuron, traces, rule, key, len(v)).window(psi_of(key[0]))
        if lend and rule in called:
            posts[rule] = PostFactors(rule, psi_of(key[0]), before.get(key))
    carries = psi_of(resolve_psi(neuron.rule.psi)) if lend and neuron.rule.propagate == "psi" else None
    return posts, carries


def step_posts(
    neuron: Neuron,
    traces: NeuronTraces,
    inputs: Sequence[SynapticInput],
    v: Tensor | None,
    gate: Tensor | None,
    spikes: Tensor | None,
    lend: bool,
) -> tuple[dict[STLLRRule, PostFactors], Carrier | None]:
    """As :func:`move_posts`, for a single step: notes v [B, ...], of which psi and the traces are made once needed."""
    if v is None:
        return {}, None
    v = full_precision(v)
    plan = traces.plan
    called = tuple([synaptic.rule for synaptic in inputs])
    if plan is None or plan.called != called or plan.edges != len(traces.edges) or plan.lend != lend:
        plan = _plan(neuron, traces, inputs, called, lend)
        traces.plan = plan if called else None  # where nothing feeds it, more depends on the moment
    keys, wanted = plan.keys, plan.wanted
    if gate is None and plan.by_value:
        steps = traces.membranes
        if steps is None or not steps.takes(v) or list(steps.starts) != keys or steps.wanted != wanted:
            traces.settle_posts()
            look = partial(_psi_of_steps, neuron)
            steps = MembraneSteps(look, {key: traces.posts[key].trace for key in keys}, wanted)
            traces.membranes = steps
        position = steps.add(v)
        if not lend:  # nobody will ask for more than the traces
            traces.settle_posts()
    else:  # somebody else's function, or one of the spikes: as it is now
        traces.settle_posts()
        psis = {psi: _psi(neuron, psi, v.unsqueeze(0), gate, spikes)[0] for psi in wanted}
        starts = {key: traces.posts[key].trace for key in keys}
        traces.membranes, position = MembraneSteps.of_one(psis, starts, v), 0
        steps = traces.membranes
    posts: dict[STLLRRule, PostFactors] = {}
    if lend:
        for rule, psi in zip(called, plan.psis, strict=True):
            posts[rule] = PostFactors(rule, steps=steps, position=position, function=psi)
    return posts, Carrier(wanted[0], steps, position) if plan.carries else None


def _plan(
    neuron: Neuron, traces: NeuronTraces, inputs: Sequence[SynapticInput], called: tuple[STLLRRule, ...], lend: bool
) -> Plan:
    carries = lend and neuron.rule.propagate == "psi"
    keys: list[PsiKey] = []
    rules = _rules(neuron, traces, inputs)
    resolved = {rule.psi: resolve_psi(rule.psi) for rule in (neuron.rule, *rules)}
    wanted = [resolved[neuron.rule.psi]] if carries else []
    for rule in rules:
        psi = resolved[rule.psi]
        if rule.alpha_post != 0.0:
            key = (psi, rule.lambda_post)
            if key not in keys:
                keys.append(key)
                _post(neuron, traces, rule, key, 1)
        if psi not in wanted and (rule.alpha_post != 0.0 or lend):
            wanted.append(psi)
    by_value = all(is_by_value(psi) for psi in wanted)
    psis = [resolved[rule.psi] for rule in called]
    return Plan(called, len(traces.edges), lend, carries, keys, wanted, by_value, psis)


def _psi(neuron: Neuron, psi: Psi | None, v: Tensor, gate: Tensor | None, spikes: Tensor | None) -> Tensor:
    value = _fired(spikes, v) if isinstance(psi, Spike) else _psi_of_steps(neuron, psi, v)
    return value if gate is None else value * gate


def _psi_of_steps(neuron: Neuron, psi: Psi | None, v: Tensor) -> Tensor:
    return by_steps(lambda step: neuron.psi(psi, step), v)


def _rules(neuron: Neuron, traces: NeuronTraces, inputs: Sequence[SynapticInput]) -> dict[STLLRRule, None]:
    """The rules for which a layer keeps traces."""
    rules = dict.fromkeys(synaptic.rule for synaptic in inputs)
    if len(traces.edges) > len(inputs):
        rules.update(dict.fromkeys(neuron.rule_for(edge.site.rule) for edge in traces.edges.values()))
    if not rules and (neuron.session.uncalled or traces.shared):  # its synapse may be one that was not called yet
        rules[neuron.rule] = None
    elif not rules:
        traces.settle_posts()
        traces.posts.clear()
    return rules


def _post(neuron: Neuron, traces: NeuronTraces, rule: STLLRRule, key: PsiKey, num_steps: int) -> PostTrace:
    post = traces.posts.get(key)
    if post is None:
        _check_from_the_first_step(neuron, traces, rule, num_steps)
        post = traces.posts[key] = PostTrace(*key)
    return post


def _check_from_the_first_step(neuron: Neuron, traces: NeuronTraces, rule: STLLRRule, num_steps: int) -> None:
    """Raises StateError where a postsynaptic trace is asked for that nobody has kept since the sequence began."""
    if traces.steps <= num_steps or rule.lambda_post == 0.0:
        return
    raise StateError(
        f"Neuron {neuron.name!r} has run {traces.steps} steps of this sequence before a synapse with this rule fed "
        "it for the first time, so that nobody has kept its postsynaptic trace. Call that layer from the first step "
        "on, on zeros where nothing came in."
    )


def _fired(spikes: Tensor | None, v: Tensor) -> Tensor:
    """The spikes that the neuron gave out: libraries differ in whether one at the threshold fires."""
    assert spikes is not None
    return (spikes.detach() != 0).to(v.dtype).reshape(v.shape)


def check_lengths(neuron: Neuron, membrane: Tensor) -> None:
    """Raises StateError if the batch is not the one for which lengths were announced."""
    lengths = neuron.session.sequence.lengths
    if lengths is None:
        return
    batch = membrane.shape[1 if neuron.takes_sequences else 0]
    if lengths.shape[0] != batch:
        raise StateError(f"reset(lengths) was given {lengths.shape[0]} lengths for a batch of {batch}.")


def regrafted(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> dict[int, Tensor]:
    """By id of a leaf, what stands in for it."""
    return {id(leaf): output for leaf, output in zip(leaves, outputs, strict=True)}
