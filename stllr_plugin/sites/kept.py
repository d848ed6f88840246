"""Modules other than neurons that keep a state from step to step: recurrent containers, filters, dropout masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import StateKeeper

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class KeptStateSite(Hook):
    """Before such a module runs: cuts its state off the graph of the step before. A sequence begins with fresh ones."""

    refuses = False

    def __init__(self, learner: STLLRLearner, name: str, module: nn.Module, keeper: StateKeeper) -> None:
        """See the class."""
        super().__init__(name)
        self.learner = learner
        self.module = module
        self.keeper = keeper
        self._evaluated = False

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Cuts the state off."""
        if not self.learner.is_recording:
            self._evaluated = self._evaluated or not self.learner.model.training
            return
        if self._evaluated:
            self._evaluated = False
            if self.learner.supervision.clock < 0:
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
    while todo:
        node = todo.pop()
        if node is None:
            continue
        record = getattr(node, "record", None)
        if record is not None:  # the newest step that is in the sum: all earlier ones fared alike
            return total.detach() if record.used else total
        todo += [following for following, _ in node.next_functions]
    return total
