"""Traces: the only memory that the rule keeps between time steps.

Per neuron and sequence there is one presynaptic trace per incoming synapse (of the size of that synapse's input) and
one postsynaptic trace (of the size of the layer). Nothing here grows with the number of time steps or with the number
of synapses. Traces move on by K steps at once; one step is K = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stllr_plugin.activations import Psi
from stllr_plugin.calls import SynapseSite
from stllr_plugin.collect import Collected, Collection
from stllr_plugin.errors import StateError
from stllr_plugin.folding import last_trace
from stllr_plugin.kept_graphs import GraphCount
from stllr_plugin.rule import STLLRRule
from stllr_plugin.steps import InputSteps, MembraneSteps
from stllr_plugin.waiting import WaitingSteps


def edge_name(synapse: str, neuron: str, number: int, layer: int) -> str:
    """Name of an edge; calls of one synapse (#) and runs of one block (@) within a step are numbered."""
    return f"{synapse}->{neuron}" + (f"#{number + 1}" if number else "") + (f"@{layer + 1}" if layer else "")


@dataclass(slots=True)
class EdgeTraces:
    """State of one edge, a synapse feeding a neuron.

    Attributes:
        name: ``"<synapse>-><neuron>"``.
        site: The synapse.
        pre: tr_x, shape of the synapse's input [B, ...], before ``steps``; None before the first step. To be read after
            :meth:`settle`.
        lent: Whether somebody else may hold ``pre``, which must then not be changed in place.
        steps: The last steps; None if there is nothing to be known of them but ``pre``.
        waits: Whether ``pre`` has yet to move on over these steps.
        run: Stands for the steps since the trace was last changed other than by a step.
        count: Their number.
        waiting: Gradients of the last steps that have not been multiplied yet (``fold_steps``).
        interrupted: Whether the trace has been changed since, other than by a step.
        collection: Gradients of steps that a backward pass comes by.
        collected: The weight as the steps of this sequence get it.
        reached: Whether a gradient came to it before the last update; None before the first.
        reached_now: Whether one has come since.
        direct: Whether the neuron's input was the plain sum of the synapse's output and others at its last call.
    """

    name: str
    site: SynapseSite
    pre: Tensor | None = None
    lent: bool = False
    steps: InputSteps | None = None
    waits: bool = False
    run: object = field(default_factory=object)
    count: int = 0
    waiting: WaitingSteps | None = None
    interrupted: bool = False
    direct: bool = False
    reached: bool | None = None
    reached_now: bool = False
    collection: Collection | None = None
    collected: Tensor | None = None

    def collect(self, weight: Tensor, decay: float) -> Tensor:
        """The weight as the steps of this sequence get it: their gradients come together in ``collection``."""
        if self.collected is None or self.collection is None or self.collection.decay != decay:
            self.collection = Collection(self.site, decay)
            self.collected = Collected.apply(self.collection, weight)
        return self.collected

    @property
    def like(self) -> Tensor | None:
        """A tensor like its input; None before the first step of a sequence."""
        return self.pre if self.steps is None else self.steps.inputs[-1]

    def settle(self) -> None:
        """Moves the trace on over all steps that have run."""
        steps, self.steps = self.steps, None
        if steps is not None and self.waits:
            self.pre, self.lent, self.waits = steps.after(len(steps.inputs) - 1), True, False

    def step(self, x: Tensor, decay: float, lend: bool, kept: bool, held: Tensor) -> tuple[InputSteps | None, int]:
        """Notes a step: ``tr_x[t] = decay * tr_x[t-1] + x[t]``.

        Args:
            x: The input, [B, ...], of at least float32.
            decay: lambda_pre.
            lend: Whether a backward pass may ask for the trace at this step.
            kept: Whether the input's memory is not used again for another, so that the trace can wait.
            held: The input, or a smaller copy of it.

        Returns:
            The steps of which this is one, and its position; None where nobody will ask.

        Raises:
            StateError: If the batch has another shape than that of this sequence.
        """
        self._check(x)
        steps = self.steps
        if steps is not None:
            if not lend or kept != self.waits or decay != steps.decay or not steps.takes(held):
                self.settle()
        self.count += 1
        if not lend:
            self._move(x, decay)
            return None, 0
        if self.steps is None:
            self.steps = InputSteps(self.pre, decay, self.count - 1, self.run, self.site.name, x.dtype)
            self.waits, self.lent = kept, True
        self.steps.add(held)
        if not kept:
            self._move(x, decay)
        return self.steps, len(self.steps.inputs) - 1

    def _move(self, x: Tensor, decay: float) -> None:
        before = self.pre
        if before is None or decay == 0.0:
            self.pre, self.lent = x.clone(), False  # the caller may use its memory again for the next input
        elif self.lent or before.dtype != x.dtype or before.device != x.device:
            self.pre, self.lent = torch.add(x, before.to(x.device, x.dtype), alpha=decay), False
        else:
            torch.add(x, before, alpha=decay, out=before)

    def window(self, x: Tensor, decay: float) -> Tensor | None:
        """Moves on over the inputs of K steps, [K, B, ...]; returns the trace before them."""
        self.settle()
        self._check(x[0])
        before = self.pre
        self.pre, self.lent = last_trace(before, x, decay), False
        self.count += len(x)
        return before

    def _check(self, x: Tensor) -> None:
        like = self.like
        if like is not None and like.shape != x.shape:
            raise StateError(
                f"Edge {self.name}: the input has shape {tuple(x.shape)}, but the trace of this sequence has "
                f"{tuple(like.shape)}. Call learner.reset() before a batch of another size."
            )

    def decay(self, decay: float) -> None:
        """A step at which the synapse is not called, which is as if its input were zero."""
        self.settle()
        self.run, self.count = object(), 0
        if self.pre is not None:
            self.pre, self.lent = self.pre * decay, False

    def set(self, trace: Tensor | None) -> None:
        """Sets the trace to something else than what the steps say; None begins a sequence."""
        self.pre, self.steps, self.waits, self.lent = trace, None, False, True
        self.run, self.count, self.interrupted = object(), 0, True

    def gradient_of_waiting(self) -> Tensor | None:
        """The weight's gradient of the steps that wait, which then wait no more; None if there are none."""
        self.interrupted = False
        return None if self.waiting is None else self.waiting.gradient()


@dataclass(slots=True)
class PostTrace:
    """tr_psi of a neuron for one choice of psi and lambda_post; shape [B, *neuron shape].

    Attributes:
        psi: psi.
        decay: lambda_post.
        trace: tr_psi before the steps that are still open; never changed in place.
    """

    psi: Psi | None
    decay: float
    trace: Tensor | None = None

    def window(self, psi: Tensor) -> Tensor | None:
        """Moves on over psi(v) of K steps, [K, B, ...]; returns the trace before them."""
        before = self.trace
        self.trace = last_trace(before, psi, self.decay)
        return before


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step of a layer has to note, as long as the same kind of synapses feed it.

    Attributes:
        called: Their rules.
        edges: Number of edges that the layer has.
        lend: Whether a backward pass may come by.
        carries: Whether psi carries the learning signal to the layer below.
        keys: The postsynaptic traces, by psi and lambda_post.
        wanted: The psi that are needed, the one that carries first.
        by_value: Whether each of them gives the same whenever it is asked.
        psis: That of each of the rules.
    """

    called: tuple[STLLRRule, ...]
    edges: int
    lend: bool
    carries: bool
    keys: list[tuple[Psi | None, float]]
    wanted: list[Psi | None]
    by_value: bool
    psis: list[Psi | None]


@dataclass(slots=True, eq=False)
class NeuronTraces:
    """All state of one neuron within one sequence.

    It follows the neuron's own state as that goes from step to step. A neuron module that serves several layers, each
    with a state of its own, has one of these for each.

    Attributes:
        number: Which of the layers is meant that the same synapses feed.
        shared: Whether the neuron module serves other layers as well.
        sequence: Number of the sequence in which the layer ran last; -1 before its first step.
        steps: Time steps that it has run since the sequence began: a count of its own, which says nothing of the time.
        last_step: The last of them; -1 before the first.
        model_call: Number of the call of the whole model in which the last of them ran.
        sites: The synapses that have fed it.
        edges: By (id of the synapse's site, number of the call within a step).
        posts: By (psi, lambda_post). To be read after :meth:`settle`.
        membranes: The last steps, whose part in ``posts`` is still to come.
        plan: What a step notes, as at the last one.
        last_membrane: Membrane that the last step returned (detached), and its version, to notice a new sequence.
            Holding it keeps its memory from being given to another tensor, which would then look like the same state.
        ended: The same of the sequence before, where another one began without a reset.
        ended_by_step: Whether ``step()`` has just ended the sequence.
        graphs: Its steps that a backward pass has used.
    """

    number: int = 0
    shared: bool = False
    sequence: int = -1
    steps: int = 0
    last_step: int = -1
    model_call: int = 0
    sites: set[SynapseSite] = field(default_factory=set)
    edges: dict[tuple[int, int], EdgeTraces] = field(default_factory=dict)
    posts: dict[tuple[Psi | None, float], PostTrace] = field(default_factory=dict)
    membranes: MembraneSteps | None = None
    plan: Plan | None = None
    last_membrane: tuple[Tensor, int] | None = None
    ended: tuple[Tensor, int] | None = None
    ended_by_step: bool = False
    graphs: GraphCount = field(default_factory=GraphCount)

    def restart(self) -> None:
        """Forgets the sequence; edges keep their names."""
        self.steps, self.sequence, self.last_step = 0, -1, -1
        self.graphs = GraphCount()  # the last loss of the sequence before may well be in the caller's variables
        self.membranes = self.plan = None
        for edge in self.edges.values():
            edge.set(None)
            edge.collected = None
        for post in self.posts.values():
            post.trace = None

    def settle(self) -> None:
        """Moves all traces on over the steps that have run."""
        for edge in self.edges.values():
            edge.settle()
        self.settle_posts()

    def settle_posts(self) -> None:
        """The same for the postsynaptic ones."""
        membranes, self.membranes = self.membranes, None
        if membranes is not None and membranes.count:
            for key in membranes.starts:
                self.posts[key].trace = membranes.end(key)

    def remember(self, membrane: Tensor | None) -> None:
        """Notes the membrane that a step returned."""
        self.last_membrane = None if membrane is None else (membrane.detach(), membrane._version)

    def returned(self, membrane: Tensor | None) -> bool:
        """Whether an incoming membrane is, untouched, the one that the last step returned."""
        return _is_same(membrane, self.last_membrane)

    def ended_with(self, membrane: Tensor | None) -> bool:
        """Whether it is the one that the sequence before ended with, and not of the running one."""
        return _is_same(membrane, self.ended)

    def clear_samples(self, mask: Tensor) -> None:
        """Zeroes the traces of the samples where mask [B] is true. Out of place, since graphs may hold the old ones."""
        self.settle()
        for edge in self.edges.values():
            edge.set(_cleared(edge.pre, mask, edge.name))
        for post in self.posts.values():
            post.trace = _cleared(post.trace, mask, "the postsynaptic trace")


def _is_same(membrane: Tensor | None, known: tuple[Tensor, int] | None) -> bool:
    if membrane is None or known is None:
        return False
    last, version = known
    return membrane.data_ptr() == last.data_ptr() and membrane._version == version


def _cleared(trace: Tensor | None, mask: Tensor, name: str) -> Tensor | None:
    if trace is None:
        return None
    if trace.shape[0] == 1 and trace.dim() > 1 and mask.shape[0] == trace.shape[1] != 1:
        return _cleared(trace[0], mask, name).unsqueeze(0)  # type: ignore[union-attr]  # of a sequence module: [1, B, ...]
    if trace.shape[0] != mask.shape[0]:
        raise StateError(f"reset(mask): the mask has {mask.shape[0]} samples, but {name} has {trace.shape[0]}.")
    rows = mask.to(trace.device).view(-1, *[1] * (trace.dim() - 1))
    return torch.where(rows, torch.zeros_like(trace), trace)
