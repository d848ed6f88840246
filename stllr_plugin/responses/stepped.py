"""A neuron run over K time steps, one call of the module after the other: works for every neuron."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from stllr_plugin.calls import SynapseCall
from stllr_plugin.marks import mark_of
from stllr_plugin.neuron import Neuron
from stllr_plugin.neurons.base import NeuronStep, map_tensors
from stllr_plugin.own_weights import OwnWeights
from stllr_plugin.responses.base import InnerSynapse, NeedsStepsError, Response, Roots
from stllr_plugin.walk import find_calls


@dataclass(slots=True)
class SteppedResponse(Response):
    """A response whose steps left their graphs, one for each, since the states between them are detached.

    Attributes:
        current: The neuron's input as the graphs begin with it, [K * B, ...].
        membrane: u in the graphs, [K, B, ...].
        distance: v in the graphs.
        graphs: The leaves in the graphs.
        nodes: By inner synapse, the nodes that tag what it gave out at each step.
    """

    current: Tensor | None = None
    membrane: Tensor | None = None
    distance: Tensor | None = None
    graphs: list[Tensor] = field(default_factory=list)
    nodes: list[list[Node]] = field(default_factory=list)

    def pull(self, membrane: Tensor | None, leaves: Sequence[Tensor | None]) -> tuple[Roots, list[Tensor | None]]:
        """See the base class."""
        inner = [GradientEdge(node, 0) for nodes in self.nodes for node in nodes]
        pairs = [(self.membrane, membrane), *zip(self.graphs, leaves, strict=True)]
        current, *found = _grad(pairs, [self.current, *inner])
        pulled: list[Tensor | None] = []
        for nodes in self.nodes:
            mine, found = found[: len(nodes)], found[len(nodes) :]
            shown = next((gradient for gradient in mine if gradient is not None), None)
            if shown is None:
                pulled.append(None)
            else:
                zeros = torch.zeros_like(shown)
                pulled.append(torch.stack([zeros if gradient is None else gradient for gradient in mine]))
        return [] if current is None or self.root is None else [(self.root, current)], pulled

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See the base class."""
        pairs: list[tuple[Tensor | None, Tensor | None]] = list(zip(self.graphs, leaves, strict=True))
        if signal is not None:
            if psi is not None:
                shown = signal if self.gain is None else signal * self.gain
                pairs.append((self.distance, shown * psi))
            else:
                assert self.spikes is not None
                pairs.append((self.graphs[self.spikes], signal.flatten(0, 1)))
        current, *parameters = _grad(pairs, [self.current, *self.parameters])
        return [current], parameters


def scan_steps(
    neuron: Neuron,
    forward: Callable[..., Any],
    current: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_steps: int,
    with_graph: bool,
    synaptic: Collection[int],
) -> SteppedResponse:
    """Runs a neuron on each of K steps.

    Args:
        neuron: The neuron.
        forward: The module's own ``forward``.
        current: Its input, [K * B, ...].
        args: Further arguments of the first step: states [B, ...].
        kwargs: The same by keyword.
        num_steps: K.
        with_graph: Whether a backward pass will follow.
        synaptic: Ids of the parameters behind synapses' weights.

    Raises:
        NeedsStepsError: If the module cannot be run so.
    """
    adapter, module, tap = neuron.adapter, neuron.module, neuron.tap
    leaf = current.detach().requires_grad_()
    batch = current.shape[0] // num_steps
    steps: list[_Step] = []
    pattern: Any = None
    parameters: list[Tensor] = []
    for x in leaf.reshape(num_steps, batch, *current.shape[1:]).unbind(0):
        given, named, _ = adapter.detach_states(module, (x, *args), kwargs)
        tap.clear()
        tap.open = True
        mode = OwnWeights(module, neuron.own_weights, tap.currents) if neuron.own_weights else None
        try:
            if mode is not None:
                mode.__enter__()
            pattern = forward(*given, **named)
        finally:
            if mode is not None:
                mode.__exit__(None, None, None)
            tap.open = False
        read = adapter.read_step(module, tap, pattern)
        tap.clear()
        if read.membrane is None or (adapter.spiking and read.threshold_distance is None):
            raise NeedsStepsError(f"neuron {neuron.name!r} ran without deciding about spikes where the learner looks")
        if read.gain is not None and read.gain.requires_grad:
            raise NeedsStepsError(f"neuron {neuron.name!r} has a factor of graded spikes that is learned")
        step = _Step.of(read, pattern, batch, neuron.name)
        if with_graph and not steps:
            parameters = [p for p in other_parameters([step.membrane, *step.leaves], synaptic) if p is not leaf]
        if not with_graph:
            step.cut()
        steps.append(step)
        pattern = adapter.replace(module, pattern, Tensor.detach)
        args, kwargs = _next_states(args, kwargs, pattern, neuron.name)
    return _joined(neuron, steps, pattern, leaf, parameters, with_graph).acts_on(current)


@dataclass(slots=True)
class _Step:
    """One step of the scan; a tensor that is returned twice is one leaf."""

    leaves: list[Tensor]
    places: list[int]
    spikes: int | None
    membrane: Tensor
    distance: Tensor | None
    gate: Tensor | None
    gain: Tensor | None
    calls: list[tuple[Node, SynapseCall]]

    @classmethod
    def of(cls, read: NeuronStep, output: Any, batch: int, name: str) -> _Step:
        """Reads one call of the module."""
        leaves: list[Tensor] = []
        places: list[int] = []

        def collect(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != batch:
                raise NeedsStepsError(f"neuron {name!r} returns a tensor without a batch dimension")
            place = next((i for i, leaf in enumerate(leaves) if leaf is tensor), len(leaves))
            if place == len(leaves):
                leaves.append(tensor)
            places.append(place)
            return tensor

        map_tensors(output, collect)
        spikes = next((i for i, leaf in enumerate(leaves) if leaf is read.spikes), None)
        membrane = read.membrane
        assert membrane is not None
        calls = [] if membrane.grad_fn is None else find_calls(membrane.grad_fn, membrane.shape)[0]
        pairs = [(node, call) for node, call, _ in calls]
        return cls(leaves, places, spikes, membrane, read.threshold_distance, read.gate, read.gain, pairs)

    def cut(self) -> None:
        """Lets go of the graph."""
        self.leaves = [leaf.detach() for leaf in self.leaves]
        self.membrane = self.membrane.detach()
        self.distance = None if self.distance is None else self.distance.detach()


def _next_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """States for the next step, where they are passed in and out: what was returned replaces what was given."""
    count = len(args) + len(kwargs)
    if count == 0:
        return args, kwargs
    items = output if isinstance(output, tuple) else (output,)
    if len(items) not in (count, count + 1):
        raise NeedsStepsError(f"neuron {name!r} is given {count} states and returns {len(items)} values")
    states = items[len(items) - count :]
    return tuple(states[: len(args)]), dict(zip(kwargs, states[len(args) :], strict=True))


def _joined(
    neuron: Neuron, steps: list[_Step], pattern: Any, leaf: Tensor, parameters: list[Tensor], with_graph: bool
) -> SteppedResponse:
    first = steps[0]
    graphs = [torch.cat([step.leaves[i] for step in steps]) for i in range(len(first.leaves))]
    membrane = torch.stack([step.membrane for step in steps])
    distance = None if first.distance is None else torch.stack([step.distance for step in steps])  # type: ignore[misc]
    inner, nodes = _inner_synapses(neuron.name, steps)
    detached = [graph.detach() for graph in graphs]
    places = iter(first.places)
    return SteppedResponse(
        output=map_tensors(pattern, lambda _: detached[next(places)]),
        leaves=detached,
        spikes=first.spikes,
        v=None if distance is None else distance.detach(),
        shape=None if distance is None else distance.shape,
        gate=None if first.gate is None else torch.stack([step.gate for step in steps]),  # type: ignore[misc]
        gain=None if first.gain is None else first.gain.detach(),
        inner=inner,
        parameters=parameters,
        current=leaf,
        membrane=membrane if with_graph else None,
        distance=distance if with_graph else None,
        graphs=graphs,
        nodes=nodes,
    )


def other_parameters(outputs: Sequence[Tensor], synaptic: Collection[int]) -> list[Tensor]:
    """Parameters that a step depends on and that are no synaptic weights: thresholds, leaks, a recurrence's bias.

    They are looked for in the graph, since a neuron may use parameters of the module around it.

    Args:
        outputs: What one step gave.
        synaptic: Ids of the parameters behind synapses' weights.
    """
    found: dict[int, Tensor] = {}
    seen: set[Node] = set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            parameter = node.variable  # type: ignore[attr-defined]
            found[id(parameter)] = parameter
        mark = mark_of(node)
        if mark is not None and mark.call is not None:
            stack.append(node.next_functions[0][0])  # what the synapse gave out, and not its weight
        else:
            stack += [following for following, _ in node.next_functions]
    return [parameter for key, parameter in found.items() if key not in synaptic]


def _inner_synapses(name: str, steps: list[_Step]) -> tuple[list[InnerSynapse], list[list[Node]]]:
    """The calls of synapses within the neuron, by their order within a step."""
    sites = [[call.site for _, call in step.calls] for step in steps]
    if any(found != sites[0] for found in sites):
        raise NeedsStepsError(f"neuron {name!r} does not use the same weights at each step")
    inner, nodes = [], []
    for number, site in enumerate(sites[0]):
        if sites[0].count(site) > 1:
            raise NeedsStepsError(f"synapse {site.name!r} runs several times within a step of neuron {name!r}")
        calls = [step.calls[number][1] for step in steps]
        for t, call in enumerate(calls):
            call.consumers[name] = t
        for step in steps:
            mark = mark_of(step.calls[number][0])
            assert mark is not None
            mark.nested = True  # this graph serves the rule alone
        inner.append(InnerSynapse(calls[0], torch.stack([call.x for call in calls])))
        nodes.append([step.calls[number][0] for step in steps])
    return inner, nodes


def _grad(pairs: Sequence[tuple[Tensor | None, Tensor | None]], inputs: Sequence[Any]) -> list[Tensor | None]:
    used = [
        (tensor, gradient.to(tensor.dtype).view_as(tensor))
        for tensor, gradient in pairs
        if tensor is not None and gradient is not None and tensor.requires_grad
    ]
    if not used:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad(
            [tensor for tensor, _ in used],
            list(inputs),
            [gradient for _, gradient in used],
            retain_graph=True,
            allow_unused=True,
        )
    )
