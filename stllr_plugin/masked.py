"""An identity whose backward pass drops the gradient of steps and samples that are not supervised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

Mask = Callable[[Tensor], "Tensor | None"]


def masked(tensor: Tensor, mask: Mask) -> Tensor:
    """The tensor, under a new one; its gradient goes through the mask on its way back."""
    return _Masked.apply(mask, tensor) if tensor.requires_grad else tensor


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, mask: Mask, tensor: Tensor) -> Tensor:
        ctx.mask = mask
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, ctx.mask(grad)
