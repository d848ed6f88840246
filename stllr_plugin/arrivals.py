"""Guards against gradients that reach a synapse past the neuron that it feeds: a skip, a gate, a penalty on a current.

The rule holds for what goes through the neuron. The rest would need its ordinary gradient, but comes in one sum with
it. Autograd hands a gradient on as the tensor that it got, as long as nothing else is added. So each place between a
neuron and a synapse compares what arrives with what was sent to it, by identity: no value is read, and a guard never
expires. Only where another tensor arrives are values compared.

Nothing here holds a node of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import Node

from stllr_plugin.errors import StateError
from stllr_plugin.marks import Mark

_KEY = "stllr"


class Arrivals:
    """What was sent to one place by neurons, in the backward pass that runs."""

    __slots__ = ("_sent", "_task")

    def __init__(self) -> None:
        """Nothing was sent."""
        self._task = -1
        self._sent: list[Tensor] = []

    def tell(self, gradient: Tensor | None) -> None:
        """Notes that a gradient is sent."""
        if gradient is None:
            return
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._sent = task, []
        self._sent.append(gradient)

    def take(self) -> list[Tensor]:
        """What was sent in this backward pass, and not yet taken."""
        sent, self._sent = self._sent, []
        return sent if self._task == torch._C._current_graph_task_id() else []


class Doubts:
    """Comparisons whose outcome is still on a device; read once per sequence."""

    def __init__(self) -> None:
        """There are none."""
        self._open: dict[str, Tensor] = {}

    def add(self, wrong: Tensor, message: str) -> None:
        """Takes in a comparison, with the message of the error if it shows a difference.

        Raises:
            StateError: If it does, where that can be told without waiting for a device.
        """
        if wrong.device.type == "cpu":
            if bool(wrong):
                raise StateError(message)
            return
        before = self._open.get(message)
        self._open[message] = wrong if before is None or before.device != wrong.device else before | wrong

    def settle(self) -> None:
        """Raises StateError if one does."""
        if self._open:
            found, self._open = self._open, {}
            for message, wrong in found.items():
                if bool(wrong):
                    raise StateError(message)


def compare(received: Tensor, sent: Sequence[Tensor], message: Callable[[], str], doubts: Doubts) -> None:
    """Compares what arrived with what was sent.

    Args:
        received: What arrived.
        sent: What was sent.
        message: Makes the message of the error.
        doubts: Where the outcome goes that is better read later.

    Raises:
        StateError: If more arrived than was sent, now or when the doubts are settled.
    """
    if len(sent) == 1 and sent[0] is received:
        return
    _compare_values(received, sent, message(), doubts)


def _compare_values(received: Tensor, sent: Sequence[Tensor], message: str, doubts: Doubts) -> None:
    if received.is_sparse or any(one.shape != received.shape for one in sent):
        raise StateError(message)
    if not sent:
        wrong = (received != 0).any()
    else:
        parts = [one.to(received.device, received.dtype) for one in sent]
        total, size = parts[0], parts[0].abs()
        for part in parts[1:]:
            total, size = total + part, size + part.abs()
        limit = size * (0.0 if len(parts) <= 2 else 8 * torch.finfo(received.dtype).eps)
        wrong = ((received - total).abs() > limit).any()
    if len(sent) > 1:  # several paths or neurons, at each step
        doubts.add(wrong, message)
    elif bool(wrong):
        raise StateError(message)


class Between:
    """Watches a node between a synapse and a neuron: a post-hook of the node, of which it knows nothing else.

    Attributes:
        nested: Whether a backward pass runs that belongs to one step of one neuron alone.
    """

    __slots__ = ("_doubts", "_ins", "_message", "_outs", "nested")

    def __init__(self, message: Callable[[], str], doubts: Doubts) -> None:
        """Args: what makes the message of the error, and where doubts go."""
        self.nested = False
        self._ins: dict[int, Arrivals] = {}
        self._outs: list[tuple[int, Arrivals]] = []
        self._message = message
        self._doubts = doubts

    def arrivals(self, number: int) -> Arrivals:
        """The place of one of the node's outputs."""
        return self._ins.setdefault(number, Arrivals())

    def leads_to(self, outs: list[tuple[int, Arrivals]]) -> None:
        """Sets what the node sends on, and where."""
        self._outs = outs

    def __call__(self, sent: Sequence[Tensor | None], received: Sequence[Tensor | None]) -> None:
        """After the node has run in a backward pass."""
        if self.nested:
            return
        for number, gradient in enumerate(received):
            place = self._ins.get(number)
            found = [] if place is None else place.take()
            if gradient is not None:
                compare(gradient, found, self._message, self._doubts)
        for position, arrivals in self._outs:
            arrivals.tell(sent[position])


def between_at(node: Node) -> Between | None:
    """What watches a node, if anything does."""
    notes: Any = node.metadata
    found: Between | None = notes.get(_KEY)
    return found


def watch(node: Node, message: Callable[[], str], doubts: Doubts) -> Between:
    """Begins to watch a node, if nothing does yet."""
    found = between_at(node)
    if found is None:
        found = Between(message, doubts)
        put_at(node, found)
    return found


def put_at(node: Node, watcher: Any) -> None:
    """Lets something watch a node: a post-hook of it."""
    notes: Any = node.metadata
    notes[_KEY] = watcher
    node.register_hook(watcher)


class Door:
    """Through which all gradients of a neuron's step leave it.

    Attributes:
        arrivals: Where they go; None if nobody asks.
    """

    __slots__ = ("arrivals",)

    def __init__(self) -> None:
        """Nobody asks."""
        self.arrivals: Arrivals | None = None


class Entry(Function):
    """Identity on the input of a neuron whose own code runs in the graph: all of its gradient leaves through here."""

    @staticmethod
    def forward(ctx: Any, door: Door, current: Tensor) -> Tensor:
        """Returns the input, under a new tensor."""
        ctx.stllr = Mark()
        ctx.door = door
        return current.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """See the class."""
        if ctx.door.arrivals is not None and not ctx.stllr.nested:
            ctx.door.arrivals.tell(grad)
        return None, grad
