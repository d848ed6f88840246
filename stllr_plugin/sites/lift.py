"""Containers that loop over time themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from stllr_plugin.errors import SequenceInputError
from stllr_plugin.hooks import Hook, eager

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class LiftGuard(Hook):
    """Before a ``norse.torch.Lift``: refuses several time steps in one call."""

    def __init__(self, learner: STLLRLearner, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.learner = learner

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raises SequenceInputError for T > 1 in training mode."""
        x = args[0][0] if isinstance(args[0], tuple) else args[0]
        if self.learner.is_recording and x.shape[0] > 1:
            raise SequenceInputError(
                f"Lift {self.name!r} received {x.shape[0]} time steps in one call. An online rule needs one: feed "
                "slices x[t : t + 1] and carry the state."
            )
