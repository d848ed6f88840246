"""A neuron run over the time steps of a window, one call of the module after the other: works for every neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from stllr_plugin.graft import SynapseCall, find_calls
from stllr_plugin.neurons.base import NeuronStep, map_tensors
from stllr_plugin.sites.own_weights import OwnWeights
from stllr_plugin.windows.errors import NeedsStepsError

if TYPE_CHECKING:
    from stllr_plugin.sites import NeuronSite


@dataclass(slots=True)
class InnerSynapse:
    """A synapse within the neuron (a recurrent weight, say): its calls in the window, one per step.

    Attributes:
        call: The first of them.
        x: Its inputs, [K, B, ...].
    """

    call: SynapseCall
    x: Tensor


@dataclass(slots=True)
class Scan:
    """What a neuron did in the K steps of a window.

    Attributes:
        output: What the module returns, its tensors over the window: [K * B, ...].
        leaves: Those tensors, detached.
        spikes: Position of the spikes among them; None for readouts.
        v: Membrane minus threshold, [K, B, ...]; None for readouts, and where it is not needed any more.
        shape: Shape of u, [K, B, ...]; None where it is not known.
        direct: Whether u follows from the input current and those of inner synapses through their sum and one factor.
        slope: That factor, du/d(current); None for 1.
        projects: Whether weights of the neuron's own lie between its input and the input current.
        gate: Where the neuron could spike at all, [K, B, ...]; None for everywhere.
        gain: What each spike is multiplied with, broadcastable to [K, B, ...]; None for 1.
        inner: Synapses within the neuron.
        parameters: Parameters of the neuron that are no synapses, such as a learnable threshold.
    """

    output: Any
    leaves: list[Tensor]
    spikes: int | None
    v: Tensor | None
    shape: torch.Size | None = None
    direct: bool = False
    slope: Tensor | None = None
    projects: bool = False
    gate: Tensor | None = None
    gain: Tensor | None = None
    inner: list[InnerSynapse] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)

    def pull(
        self, membrane: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Carries gradients of u [K, B, ...] and of the outputs to the input [K * B, ...] and the inner synapses."""
        raise NotImplementedError

    def forget_distance(self, psi_carries: bool) -> None:
        """Lets go of v, if the backward pass can do without, now that psi(v) is known.

        Args:
            psi_carries: Whether psi carries the learning signal to the layer below.
        """

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """What goes on to the layer below, and to `parameters`.

        Args:
            signal: dL/dy [K, B, ...]; None if no loss reaches the spikes.
            psi: psi(v) if it carries the signal, None if the neuron's own surrogate does.
            leaves: Gradients of the other outputs; None at the place of the spikes.
        """
        raise NotImplementedError


@dataclass(slots=True)
class SteppedScan(Scan):
    """A scan whose steps left their graphs, one for each, since the states between them are detached."""

    current: Tensor | None = None
    membrane: Tensor | None = None
    distance: Tensor | None = None
    graphs: list[Tensor] = field(default_factory=list)
    nodes: list[list[Node]] = field(default_factory=list)

    def pull(
        self, membrane: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See the base class."""
        inner = [GradientEdge(node, 0) for nodes in self.nodes for node in nodes]
        pairs = [(self.membrane, membrane), *zip(self.graphs, leaves, strict=True)]
        gradients = _grad(pairs, [self.current, *inner])
        found = gradients[1:]
        pulled: list[Tensor | None] = []
        for nodes in self.nodes:
            mine, found = found[: len(nodes)], found[len(nodes) :]
            shown = next((gradient for gradient in mine if gradient is not None), None)
            if shown is None:
                pulled.append(None)
            else:
                zeros = torch.zeros_like(shown)
                pulled.append(torch.stack([zeros if gradient is None else gradient for gradient in mine]))
        return gradients[0], pulled

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See the base class."""
        pairs: list[tuple[Tensor | None, Tensor | None]] = list(zip(self.graphs, leaves, strict=True))
        if signal is not None:
            if psi is not None:
                shown = signal if self.gain is None else signal * self.gain
                pairs.append((self.distance, shown * psi))
            else:
                assert self.spikes is not None
                pairs.append((self.graphs[self.spikes], signal.flatten(0, 1)))
        gradients = _grad(pairs, [self.current, *self.parameters])
        return gradients[0], gradients[1:]


def scan_steps(
    site: NeuronSite,
    forward: Callable[..., Any],
    current: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_steps: int,
    with_graph: bool,
) -> Scan:
    """Runs a neuron on each step of a window.

    Args:
        site: The neuron.
        forward: The module's own ``forward``.
        current: Its input, [K * B, ...].
        args: Further arguments of the first step: states [B, ...].
        kwargs: The same by keyword.
        num_steps: K.
        with_graph: Whether a backward pass will follow.

    Raises:
        NeedsStepsError: If the module cannot be run so.
    """
    adapter, module, tap = site.adapter, site.module, site.tap
    leaf = current.detach().requires_grad_()
    batch = current.shape[0] // num_steps
    steps: list[_Step] = []
    pattern: Any = None
    parameters: list[Tensor] = []
    for x in leaf.reshape(num_steps, batch, *current.shape[1:]).unbind(0):
        given, named, _ = adapter.detach_states(module, (x, *args), kwargs)
        tap.clear()
        tap.open = True
        mode = OwnWeights(module, site.own_weights, tap.currents) if site.own_weights else None
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
            raise NeedsStepsError(f"neuron {site.name!r} ran without deciding about spikes where the learner looks")
        if read.gain is not None and read.gain.requires_grad:
            raise NeedsStepsError(f"neuron {site.name!r} has a factor of graded spikes that is learned")
        step = _Step.of(read, pattern, batch, site.name)
        if with_graph and not steps:
            parameters = [p for p in other_parameters(site, [step.membrane, *step.leaves]) if p is not leaf]
        if not with_graph:
            step.cut()
        steps.append(step)
        pattern = adapter.replace(module, pattern, Tensor.detach)
        args, kwargs = _next_states(args, kwargs, pattern, site.name)
    return _joined(site, steps, pattern, leaf, parameters, with_graph)


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
    site: NeuronSite, steps: list[_Step], pattern: Any, leaf: Tensor, parameters: list[Tensor], with_graph: bool
) -> SteppedScan:
    first = steps[0]
    graphs = [torch.cat([step.leaves[i] for step in steps]) for i in range(len(first.leaves))]
    membrane = torch.stack([step.membrane for step in steps])
    distance = None if first.distance is None else torch.stack([step.distance for step in steps])  # type: ignore[misc]
    inner, nodes = _inner_synapses(site.name, steps)
    detached = [graph.detach() for graph in graphs]
    places = iter(first.places)
    return SteppedScan(
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


def other_parameters(site: NeuronSite, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Parameters that a step depends on and that are no synaptic weights: thresholds, leaks, a recurrence's bias.

    They are looked for in the graph, since a neuron may use parameters of the module around it.

    Args:
        site: The neuron.
        outputs: What one step gave.
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
        if getattr(node, "stllr_call", None) is not None:
            stack.append(node.next_functions[0][0])  # what the synapse gave out, and not its weight
        else:
            stack += [following for following, _ in node.next_functions]
    synaptic = site.learner.synaptic_parameters
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
            node: Any = step.calls[number][0]
            node.stllr_nested = True  # this graph serves the rule alone
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
