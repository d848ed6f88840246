"""Norse's containers: one that loops over time itself, and one that feeds its output back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stllr_plugin.errors import SequenceInputError
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.session import Session


class LiftGuard(Hook):
    """Before a ``norse.torch.Lift``: refuses several time steps in one call."""

    def __init__(self, session: Session, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.session = session

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raises SequenceInputError for T > 1 in training mode."""
        x = args[0][0] if isinstance(args[0], tuple) else args[0]
        if self.session.is_recording and x.shape[0] > 1:
            raise SequenceInputError(
                f"Lift {self.name!r} received {x.shape[0]} time steps in one call. An online rule needs one: loop with "
                "`for output in learner.stream(x)`, or feed slices x[t : t + 1] and carry the state."
            )


class RecurrenceCut(Hook):
    """Before a ``norse.torch.RecurrentSequential``: cuts the outputs that it feeds back off the step before."""

    refuses = False

    def __init__(self, session: Session, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.session = session

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Detaches all arguments but the input."""
        if not self.session.is_recording:
            return None
        states = map_tensors(args[1:], Tensor.detach)
        named = {name: value if name == "x" else map_tensors(value, Tensor.detach) for name, value in kwargs.items()}
        return (*args[:1], *states), named
