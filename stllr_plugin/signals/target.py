"""Signals made from the target of the batch, and direct random target projection.

"drtp" gives each hidden layer a fixed random projection of the target itself, ``delta = (Y @ M) / B`` with Y one-hot.
(Frenkel, Lefebvre & Bol, "Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward Training of
Deep Neural Networks", Frontiers in Neuroscience 2021.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.registry import register_signal
from stllr_plugin.signals.base import SignalCost, SignalSetup
from stllr_plugin.signals.direct import DirectSignal, Hidden, Projection


class TargetSignal(DirectSignal):
    """A direct signal that knows the target of the batch.

    All of them are divided by the batch size, as a loss is that is averaged over the batch.
    """

    needs_target = True

    def __init__(self, setup: SignalSetup) -> None:
        """See the base class."""
        super().__init__(setup)
        self.scale: float | Tensor = 1.0
        self.loss_scale = 1.0
        self._target: Tensor | None = None
        self._used = False

    def set_target(self, target: Tensor, scale: float | Tensor, loss_scale: float) -> None:
        """Sets the target of the batch: class numbers [B] (integers), or values [B, C]; a factor, or one a sample.

        Raises:
            RuleError: If a value has another form.
        """
        target, loss_scale = _as_target(target), _number("loss_scale", loss_scale)
        labels = target.dim() == 1 and not target.is_floating_point() and target.dtype != torch.bool
        if not labels and not (target.dim() == 2 and target.is_floating_point()):
            raise RuleError(
                f"set_target() takes class numbers, an integer tensor [B], or values, a float tensor [B, C]; found "
                f"{target.dtype} of shape {tuple(target.shape)}."
            )
        if isinstance(scale, Tensor) and scale.dim() > 0:
            if scale.shape != target.shape[:1]:
                raise RuleError(
                    f"set_target(): scale is a number, or a tensor of one value per sample, [{target.shape[0]}]; found "
                    f"shape {tuple(scale.shape)}."
                )
            scale = scale.detach().unsqueeze(1)
        elif not isinstance(scale, Tensor):
            scale = _number("scale", scale)
        self._target, self.scale, self.loss_scale = target.detach(), scale, loss_scale
        self._used = False

    def begins_anew(self) -> None:
        """See the base class; a target that has served one sequence is not taken for the next one's."""
        if self._used:
            self._target = None

    def restart(self, *, keep_target: bool = False) -> None:
        """See the base class."""
        super().restart()
        if not keep_target:
            self._target = None

    def scale_rows(self, like: Tensor) -> float | Tensor:
        """The factor of each sample's signal, divided by the batch size."""
        scale = self.scale.to(like.device, like.dtype) if isinstance(self.scale, Tensor) else self.scale
        return scale / like.shape[0]

    def target_rows(self, outputs: int, like: Tensor) -> Tensor:
        """The target as [B, C] for a batch like ``like`` [B, ...]; class numbers become one-hot rows of ``outputs``.

        Raises:
            StateError: If there is none, or it does not fit.
        """
        target = self._target
        self._used = True
        if target is None:
            raise StateError(
                f"learning_signal={self.name!r} needs the target of the batch: call learner.set_target(target) before "
                "the first step of each sequence (and after reset(), which forgets it, as step() does)."
            )
        if target.shape[0] != like.shape[0]:
            raise StateError(f"set_target() was given {target.shape[0]} targets for a batch of {like.shape[0]}.")
        if target.dim() == 1:
            lowest, highest = (int(value) for value in torch.aminmax(target))
            if lowest < 0 or highest >= outputs:
                raise StateError(
                    f"set_target() was given class numbers from {lowest} to {highest}, but module "
                    f"{self.output_name!r}, which is taken for the output, has {outputs} outputs. If the loss sees "
                    "another module, name it with output=."
                )
            target = self._target = nn.functional.one_hot(target.long(), outputs).to(like.dtype)
        return target.to(like.device, like.dtype)


def _as_target(target: Any) -> Tensor:
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RuleError(
            "set_target() takes class numbers, an integer tensor [B], or values, a float tensor [B, C]; found a "
            f"{type(target).__name__}."
        ) from error


def _number(name: str, value: Any) -> Any:
    number = value if isinstance(value, Tensor) else None
    if number is None and not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
        return value
    if number is not None and number.numel() == 1:
        return number.detach()
    raise RuleError(f"set_target(): {name}={value!r}; expected a finite number.")


@register_signal("drtp")
class TargetProjection(TargetSignal):
    """The signal "drtp"."""

    def projection(self, spikes: Hidden, outputs: int) -> Projection:
        """See the base class."""
        first = spikes[0][1]
        target = self.target_rows(outputs, first)
        scale = self.scale_rows(first) * self.loss_scale
        classes = target.shape[1]
        matrices = [self.feedback.matrix(name, classes, y).to(y.dtype) for name, y in spikes]
        return lambda error: [target @ matrix.flatten(1) * scale for matrix in matrices]

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost:
        """See the base class: one row of the matrix, that of the class."""
        return SignalCost(spikes[0].numel(), 0)
