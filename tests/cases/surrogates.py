"""Surrogate gradients for snnTorch neurons in the tests.

snnTorch's own surrogates return float32 spikes whatever their input. In a float64 network the spikes would then not fit
the next layer, so float64 networks get :func:`exact_spike_grad`: the same spike and derivative in the input's dtype.
float32 networks use snnTorch's own functions. The same holds for its quantised states (:func:`exact_state_quant`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.oracles.functions import SURROGATES


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, name: str, constant: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.name, ctx.constant = name, constant
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (v,) = ctx.saved_tensors
        return grad * SURROGATES[ctx.name](v, ctx.constant), None, None


def exact_spike_grad(name: str, constant: float) -> Callable[[Tensor], Tensor]:
    return lambda v: _Spike.apply(v, name, constant)


def snntorch_spike_grad(name: str, constant: float) -> Callable[[Tensor], Tensor]:
    from snntorch import surrogate

    if name == "atan":
        return surrogate.atan(alpha=constant)
    return getattr(surrogate, name)(slope=constant)


def exact_state_quant(library: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """snnTorch's quantiser as made by its ``state_quant``, with the same levels in the dtype of the input."""
    from snntorch.functional.quant import StateQuant

    (levels,) = (cell.cell_contents for cell in library.__closure__ or ())
    return lambda x: StateQuant.apply(x, levels.to(x.dtype))
