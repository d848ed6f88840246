"""Modules that are left alone on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stllr_plugin.graft import Boundary
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import map_tensors

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class ExclusionHook(Hook):
    """After an excluded module: marks its outputs, so that neurons above do not take synapses below it for their own.

    The module itself runs and learns as it always did; gradients pass.
    """

    refuses = False

    def __init__(self, learner: STLLRLearner, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.learner = learner

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Marks the outputs."""
        return map_tensors(output, _mark) if self.learner.is_recording else None


def _mark(tensor: Tensor) -> Tensor:
    return Boundary.apply(tensor) if tensor.requires_grad else tensor
