"""What the learner notes on autograd nodes of its own.

A node of a :class:`torch.autograd.Function` keeps the attributes that its forward pass set on ``ctx``. Ours set one,
``stllr``, which holds a :class:`Mark`; whoever walks a graph asks :func:`mark_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import Node

from stllr_plugin.supervision import Span


class StepsTaken(Protocol):
    """The record of a neuron's steps, as far as a walk over the graph looks at it."""

    span: Span
    used: bool

    def is_binary(self, output: int) -> bool:
        """Whether one of the outputs is spikes, of which each is 0 or 1."""


class Mark:
    """The note on one node.

    Attributes:
        call: The synapse call whose output this is; None for others.
        record: The record of the neuron whose outputs these are; None for others.
        ends: Whether the walk from a membrane back to the synapses that feed it ends here.
        nested: Whether a backward pass runs that belongs to one step of one neuron alone. It ends where the walk ends.
    """

    __slots__ = ("call", "ends", "nested", "record")

    def __init__(self, *, call: Any = None, record: Any = None, ends: bool = False) -> None:
        """See the class."""
        self.call = call
        self.record: StepsTaken | None = record
        self.ends = ends
        self.nested = False


def mark_of(node: Node) -> Mark | None:
    """The note on a node, or None if it is not one of ours."""
    return getattr(node, "stllr", None)


class Quiet(Protocol):
    """What keeps quiet in a backward pass that belongs to one step of one neuron alone."""

    nested: bool


@contextmanager
def nested(marks: Iterable[Quiet]) -> Iterator[None]:
    """Marks the nodes of one step for a backward pass that belongs to it alone.

    A current may skip past a neuron that is fed by the same synapse, and what goes through that neuron is none of this
    step's business. The marks are on the nodes, since other nodes may run in other threads.
    """
    marks = list(marks)
    for mark in marks:
        mark.nested = True
    try:
        yield
    finally:
        for mark in marks:
            mark.nested = False


class Boundary(Function):
    """Identity on the output of a module that is left alone; the walk to the synapses of a neuron ends here."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Returns the tensor, under a new one."""
        ctx.stllr = Mark(ends=True)
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Passes the gradient on."""
        return None if ctx.stllr.nested else grad
