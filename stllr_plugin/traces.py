"""Traces: the only memory that the rule keeps between time steps.

Per neuron and sequence there is one presynaptic trace per incoming synapse (of the size of that synapse's input) and
one postsynaptic trace (of the size of the layer). Nothing here grows with the number of time steps or with the number
of synapses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stllr_plugin.activations import Psi
from stllr_plugin.errors import StateError

if TYPE_CHECKING:
    from stllr_plugin.folding import FoldedSteps


@dataclass(slots=True)
class EdgeTraces:
    """State of one edge, a synapse feeding a neuron.

    Attributes:
        name: ``"<synapse>-><neuron>"``.
        pre: tr_x, shape of the synapse's input [B, ...]; None before the first step.
        lent: Whether somebody else may hold ``pre``, which must then not be changed in place.
        waiting: Gradients of the last steps that have not been multiplied yet (``fold_steps``).
        interrupted: Whether the trace has been changed since, other than by a step.
    """

    name: str
    pre: Tensor | None = None
    lent: bool = False
    waiting: FoldedSteps | None = None
    interrupted: bool = False

    def advance(self, x: Tensor, decay: float, lend: bool = True) -> Tensor:
        """``tr_x[t] = decay * tr_x[t-1] + x[t]``; returns tr_x[t]. Kept in float32 for half-precision inputs.

        Args:
            x: The input.
            decay: lambda_pre.
            lend: Whether the caller keeps what is returned beyond the next step.
        """
        x = full_precision(x.detach())
        if self.pre is not None and self.pre.shape != x.shape:
            raise StateError(
                f"Edge {self.name}: the input has shape {tuple(x.shape)}, but the trace of this sequence has "
                f"{tuple(self.pre.shape)}. Call learner.reset() before a batch of another size."
            )
        # The graph of an earlier step may still hold the old trace. The first trace is a copy, since the caller may use
        # the memory of the input again for the next one.
        lent, self.lent = self.lent, lend
        if decay == 0.0:
            self.pre = x
        elif self.pre is None:
            self.pre = x.clone()
        elif lent or lend or self.pre.dtype != x.dtype or self.pre.device != x.device:
            self.pre = torch.add(x, self.pre.to(x.device, x.dtype), alpha=decay)
        else:
            torch.add(x, self.pre, alpha=decay, out=self.pre)
        return self.pre

    def gradient_of_waiting(self) -> Tensor | None:
        """The weight's gradient of the steps that wait, which then wait no more; None if there are none."""
        self.interrupted = False
        if self.waiting is None or self.waiting.call is None:
            return None
        call = self.waiting.call
        weight, (x, g) = call.trained_weight().detach(), self.waiting.take()
        if call.site.is_batched(x[0], weight):  # without a batch the steps are one
            x, g = x.flatten(0, 1), g.flatten(0, 1)
        return call.site.product(weight, [(x, g)])


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

    def advance(self, psi: Tensor, lend: bool) -> tuple[Tensor | None, Tensor]:
        """Moves on to ``tr_psi[t] = decay * tr_psi[t-1] + psi(v[t])``; returns tr_psi[t-1] and tr_psi[t].

        Args:
            psi: psi(v[t]).
            lend: Whether the caller keeps them. If not, the first is of no use.
        """
        before = self.trace
        lent, self.lent = self.lent, lend
        if before is None or self.decay == 0.0:
            self.trace, self.lent = psi, True
        elif lent or lend or before.dtype != psi.dtype or before.device != psi.device:
            self.trace = torch.add(psi, before.to(psi.device, psi.dtype), alpha=self.decay)
        else:
            torch.add(psi, before, alpha=self.decay, out=before)
        assert self.trace is not None
        return before, self.trace


@dataclass(slots=True)
class NeuronTraces:
    """All state of one neuron within one sequence.

    A neuron module that serves several layers has one of these for each.

    Attributes:
        number: Which of the layers that the same synapses feed this is.
        steps: Time steps seen since the sequence began.
        model_call: Number of the call of the whole model in which the last of them ran.
        edges: By (id of the synapse's site, number of the call within a step).
        posts: By (psi, lambda_post).
        last_membrane: Membrane that the last step returned (detached), and its version, to notice a new sequence.
            Holding it keeps its memory from being given to another tensor, which would then look like the same state.
        ended_by_step: Whether ``step()`` has just ended the sequence.
    """

    number: int = 0
    steps: int = 0
    model_call: int = 0
    edges: dict[tuple[int, int], EdgeTraces] = field(default_factory=dict)
    posts: dict[tuple[Psi | None, float], PostTrace] = field(default_factory=dict)
    last_membrane: tuple[Tensor, int] | None = None
    ended_by_step: bool = False

    def restart(self) -> None:
        """Forgets the sequence; edges keep their names."""
        self.steps = 0
        for edge in self.edges.values():
            edge.pre, edge.interrupted = None, True
        for post in self.posts.values():
            post.trace = None

    def remember(self, membrane: Tensor | None) -> None:
        """Notes the membrane that a step returned."""
        self.last_membrane = None if membrane is None else (membrane.detach(), membrane._version)

    def returned(self, membrane: Tensor | None) -> bool:
        """Whether an incoming membrane is, untouched, the one that the last step returned."""
        if membrane is None or self.last_membrane is None:
            return False
        last, version = self.last_membrane
        return membrane.data_ptr() == last.data_ptr() and membrane._version == version

    def clear_samples(self, mask: Tensor) -> None:
        """Zeroes the traces of the samples where mask [B] is true. Out of place, since graphs may hold the old ones."""
        for edge in self.edges.values():
            edge.pre, edge.interrupted = _cleared(edge.pre, mask, edge.name), True
        for post in self.posts.values():
            post.trace = _cleared(post.trace, mask, "the postsynaptic trace")


def _cleared(trace: Tensor | None, mask: Tensor, name: str) -> Tensor | None:
    if trace is None:
        return None
    if trace.shape[0] == 1 and trace.dim() > 1 and mask.shape[0] == trace.shape[1] != 1:
        return _cleared(trace[0], mask, name).unsqueeze(0)  # type: ignore[union-attr]  # of a sequence module: [1, B, ...]
    if trace.shape[0] != mask.shape[0]:
        raise StateError(f"reset(mask): the mask has {mask.shape[0]} samples, but {name} has {trace.shape[0]}.")
    rows = mask.to(trace.device).view(-1, *[1] * (trace.dim() - 1))
    return torch.where(rows, torch.zeros_like(trace), trace)


def full_precision(tensor: Tensor) -> Tensor:
    """Float32 for half-precision (and non-float) tensors; float32 and float64 pass through."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
