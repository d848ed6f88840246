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
        pre: tr_x, shape of the synapse's input [B, ...]; None before the first step.
        lent: Whether somebody else may hold ``pre``, which must then not be changed in place.
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

    def advance(self, x: Tensor, decay: float, lend: bool) -> tuple[Tensor | None, Tensor]:
        """``tr_x[t] = decay * tr_x[t-1] + x[t]`` for K steps.

        Args:
            x: The inputs, [K, B, ...], of at least float32.
            decay: lambda_pre.
            lend: Whether the caller keeps what is returned beyond the next step.

        Returns:
            The trace before these steps (None at the beginning of a sequence; of no use where it is not lent) and the
            one at their end.

        Raises:
            StateError: If the batch has another shape than that of this sequence.
        """
        before = self.pre
        if before is not None and before.shape != x.shape[1:]:
            raise StateError(
                f"Edge {self.name}: the input has shape {tuple(x.shape[1:])}, but the trace of this sequence has "
                f"{tuple(before.shape)}. Call learner.reset() before a batch of another size."
            )
        if len(x) == 1:
            self.pre, self.lent = _moved_on(before, x[0], decay, self.lent, lend)
        else:
            self.pre, self.lent = last_trace(before, x, decay), False
        return before, self.pre

    def decay(self, decay: float, lend: bool) -> None:
        """A step at which the synapse is not called, which is as if its input were zero."""
        if self.pre is not None:
            if self.lent or lend:
                self.pre, self.lent = self.pre * decay, lend
            else:
                self.pre.mul_(decay)

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
        trace: tr_psi.
        lent: Whether somebody else may hold ``trace``, which must then not be changed in place.
    """

    psi: Psi | None
    decay: float
    trace: Tensor | None = None
    lent: bool = False

    def advance(self, psi: Tensor, lend: bool) -> Tensor | None:
        """Moves on to ``tr_psi[t] = decay * tr_psi[t-1] + psi(v[t])`` over K steps; returns the trace before them.

        Args:
            psi: psi(v), [K, B, ...].
            lend: Whether the caller keeps what is returned. If not, it is of no use.
        """
        before = self.trace
        if len(psi) == 1:
            self.trace, self.lent = _moved_on(before, psi[0], self.decay, self.lent, lend)
        else:
            self.trace, self.lent = last_trace(before, psi, self.decay), False
        return before


def _moved_on(before: Tensor | None, x: Tensor, decay: float, lent: bool, lend: bool) -> tuple[Tensor, bool]:
    """The trace after one more step, and whether somebody else may hold it."""
    if decay == 0.0:
        return x, True
    if before is None:
        return x.clone(), lend  # the caller may use the memory of the input again for the next one
    if lent or lend or before.dtype != x.dtype or before.device != x.device:
        return torch.add(x, before.to(x.device, x.dtype), alpha=decay), lend
    return torch.add(x, before, alpha=decay, out=before), False


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
        posts: By (psi, lambda_post).
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
    last_membrane: tuple[Tensor, int] | None = None
    ended: tuple[Tensor, int] | None = None
    ended_by_step: bool = False
    graphs: GraphCount = field(default_factory=GraphCount)

    def restart(self) -> None:
        """Forgets the sequence; edges keep their names."""
        self.steps, self.sequence, self.last_step = 0, -1, -1
        self.graphs = GraphCount()  # the last loss of the sequence before may well be in the caller's variables
        for edge in self.edges.values():
            edge.pre, edge.interrupted, edge.collected = None, True, None
        for post in self.posts.values():
            post.trace = None

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
        for edge in self.edges.values():
            edge.pre, edge.interrupted = _cleared(edge.pre, mask, edge.name), True
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
