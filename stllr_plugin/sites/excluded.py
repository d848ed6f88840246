"""Modules that are left alone on request."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.marks import Boundary
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.session import Session


class ExclusionHook(Hook):
    """After an excluded module: marks its outputs, so that neurons above do not take synapses below it for their own.

    The module itself runs and learns as it always did; gradients pass.
    """

    refuses = False

    def __init__(self, session: Session, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.session = session

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Marks the outputs."""
        return map_tensors(output, _mark) if self.session.is_recording else None


def _mark(tensor: Tensor) -> Tensor:
    return Boundary.apply(tensor) if tensor.requires_grad else tensor
