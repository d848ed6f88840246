"""Secondary activations, surrogate derivatives and the spike, each written from its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]


def psi_triangle(v: Tensor) -> Tensor:
    return 0.3 * (1 - v.abs()).clamp(min=0)


def psi_inverse_square(v: Tensor) -> Tensor:
    return 1 / (100 * v.abs() + 1) ** 2


def psi_sigmoid(v: Tensor) -> Tensor:
    return 4 * torch.sigmoid(4 * v) * torch.sigmoid(-4 * v)  # 1 - s = sigmoid(-4v), without cancellation


def psi_rational(v: Tensor) -> Tensor:
    return 1 / (1 + (10 * v) ** 2)


PSI: dict[str, Elementwise] = {
    "triangle": psi_triangle,
    "inverse_square": psi_inverse_square,
    "sigmoid": psi_sigmoid,
    "rational": psi_rational,
}


def _circ(v: Tensor, alpha: float) -> Tensor:
    square = alpha**2 + v**2
    return (-(v**2) / (2 * square**1.5) + 1 / (2 * square.sqrt())) * 2 * alpha


def _sigmoid(v: Tensor, slope: float) -> Tensor:
    return slope * torch.sigmoid(slope * v) * torch.sigmoid(-slope * v)


# name -> derivative of the spike with respect to v, with the constant of the neuron as second argument
SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda v, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * v) ** 2),
    "fast_sigmoid": lambda v, slope: 1 / (slope * v.abs() + 1) ** 2,
    "sigmoid": _sigmoid,
    "super": lambda v, _: 1 / (v.abs() + 1) ** 2,
    "triangle": lambda v, alpha: alpha * (1 - v.abs()).clamp(min=0),
    "tanh": lambda v, alpha: 1 - torch.tanh(alpha * v) ** 2,
    "circ": _circ,
    # Norse takes the root of a float32 pi
    "heavi_erfc": lambda v, k: (
        2 * torch.exp(-((k * v) ** 2)) / torch.tensor(math.pi, dtype=torch.float32).sqrt().item()
    ),
}


def surrogate(name: str, constant: float) -> Elementwise:
    """The derivative ``name`` with its constant filled in."""
    return lambda v: SURROGATES[name](v, constant)


def heaviside(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


def spike(v: Tensor, derivative: Elementwise) -> Tensor:
    """1 where v > 0, else 0; differentiates as ``derivative(v)``. The added term is exactly zero."""
    return heaviside(v.detach()) + derivative(v.detach()) * (v - v.detach())


def quantisation_levels(
    num_bits: int,
    *,
    uniform: bool = True,
    thr_centered: bool = True,
    threshold: float = 1.0,
    lower_limit: float = 0.0,
    upper_limit: float = 0.2,
    multiplier: float = 0.5,
) -> Tensor:
    """The values that a quantised state may take, held in float32.

    Uniform: evenly spaced. Otherwise two geometric series that become denser towards the centre, which is the threshold
    or zero: below it the first step is the widest, above it the last.
    """
    lowest, highest = -threshold * (1 + lower_limit), threshold * (1 + upper_limit)
    number = 2**num_bits
    if uniform:
        levels = torch.tensor([lowest + (highest - lowest) * n / (number - 1) for n in range(number)])
        return levels.double()
    centre = threshold if thr_centered else 0.0
    below = math.floor(number * (centre - lowest) / (highest - lowest))
    above = number - below
    m = multiplier
    values = [lowest + (centre - lowest) * (1 - m**n) / (1 - m**below) for n in range(below)]
    values += [centre + (highest - centre) * (m ** (above - 1 - n) - m**above) / (1 - m**above) for n in range(above)]
    return torch.tensor(values).double()


def quantise(x: Tensor, levels: Tensor) -> Tensor:
    """The nearest level; differentiates as the identity."""
    nearest = levels[(x.detach()[..., None] - levels).abs().argmin(-1)]
    return x + (nearest - x.detach())
