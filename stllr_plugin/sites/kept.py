"""Modules other than neurons that keep a state from step to step: recurrent containers, filters, dropout masks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.marks import mark_of
from stllr_plugin.neurons.base import StateKeeper
from stllr_plugin.session import Session
from stllr_plugin.walk import is_outside


class KeptStateSite(Hook):
    """Before such a module runs: cuts its state off the graph of the step before. A sequence begins with fresh ones."""

    refuses = False

    def __init__(self, session: Session, name: str, module: nn.Module, keeper: StateKeeper) -> None:
        """See the class."""
        super().__init__(name)
        self.session = session
        self.module = module
        self.keeper = keeper
        self._evaluated = False

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Cuts the state off."""
        if not self.session.is_recording:
            self._evaluated = self._evaluated or not self.session.model.training
            return
        if self._evaluated:
            self._evaluated = False
            if self.session.clock < 0:
                self.keeper.reset(module, None)  # what an evaluation between two sequences left behind
        self.keeper.change(module, _cut_if_used if self.keeper.accumulates else Tensor.detach)

    def reset(self, mask: Tensor | None) -> None:
        """Fresh states; with a mask [B], for those samples only."""
        self.keeper.reset(self.module, mask)

    def release(self) -> None:
        """Cuts the state off the graph, when the learner leaves the model."""
        self.keeper.change(self.module, Tensor.detach)


def _cut_if_used(total: Tensor) -> Tensor:
    """Cuts a running sum off the graph once a backward pass has come by; until then a loss on it needs the graph."""
    todo = [total.grad_fn]
    seen: set[Node] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen or is_outside(node, seen):
            continue
        seen.add(node)
        mark = mark_of(node)
        if mark is not None and mark.record is not None:  # the newest step in the sum: all earlier ones fared alike
            return total.detach() if mark.record.used else total
        todo += [following for following, _ in node.next_functions]
    return total
