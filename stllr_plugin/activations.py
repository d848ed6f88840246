r"""Secondary activation functions psi(v), with v = membrane - threshold.

psi is what the rule's traces see of the postsynaptic neuron (the letter is the paper's capital Psi). Four classes are
those of the S-TLLR paper (Apolinario & Roy, TMLR 2025, eqs. 25 to 28), and Dspike is another family; any callable that
maps a tensor to one of the same shape works too. All are written so that they stay finite for every finite v.
:class:`stllr_plugin.surrogates.SurrogateSpike` makes a neuron's spike function from any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stllr_plugin.errors import RuleError

Psi = Callable[[Tensor], Tensor]


class _Constants:
    """The numbers of a psi, checked."""

    def __post_init__(self) -> None:
        """Raises RuleError if one of them is not positive and finite: psi would be no bump around the threshold."""
        for name, value in vars(self).items():
            number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            valid = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not valid or not 0.0 < number < math.inf:
                raise RuleError(f"{type(self).__name__}({name}={value!r}): expected a positive number.")


@dataclass(frozen=True)
class Triangle(_Constants):
    """``height * max(1 - |v| / width, 0)`` (paper eq. 26, DVS Gesture: height 0.3, width 1)."""

    height: float = 0.3
    width: float = 1.0

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape of v."""
        return torch.rsub(v.abs(), self.height, alpha=self.height / self.width).clamp_min_(0.0)


@dataclass(frozen=True)
class InverseSquare(_Constants):
    """``1 / (slope * |v| + 1)^2`` (paper eq. 25, SHD: slope 100)."""

    slope: float = 100.0

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape of v."""
        return v.abs().mul_(self.slope).add_(1.0).square_().reciprocal_()


@dataclass(frozen=True)
class SigmoidDerivative(_Constants):
    """``4 * height * s * (1 - s)`` with ``s = sigmoid(slope * v)`` (paper eq. 27, CIFAR10-DVS: slope 4, height 1)."""

    slope: float = 4.0
    height: float = 1.0

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape of v."""
        scaled = v * self.slope
        # 1 - s cancels for large v; sigmoid(-scaled) is the same without the loss.
        return torch.sigmoid(scaled).mul(torch.sigmoid(-scaled)).mul_(4.0 * self.height)


@dataclass(frozen=True)
class Rational(_Constants):
    """``1 / (1 + (slope * v)^2)`` (paper eq. 28, MVSEC: slope 10)."""

    slope: float = 10.0

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape of v."""
        return v.mul(self.slope).square_().add_(1.0).reciprocal_()


@dataclass(frozen=True)
class Dspike:
    """Derivative of Dspike: ``b / (2 tanh(b / 2)) / cosh(b * v)^2`` for ``|v| <= 1/2``, else 0; its integral is 1.

    Dspike is ``tanh(b * v)``, scaled and shifted to go from 0 at v = -1/2 to 1 at v = 1/2. With b -> 0 it is a straight
    line, so that psi is the rectangle of height 1; with growing b it approaches the step. (Li et al., "Differentiable
    Spike: Rethinking Gradient-Descent for Training Spiking Neural Networks", NeurIPS 2021.)

    Args:
        temperature: b, from 0 (the rectangle) to 10000.

    Raises:
        RuleError: If the temperature is out of range.
    """

    temperature: float = 3.0

    def __post_init__(self) -> None:
        """Checks the temperature."""
        if not isinstance(self.temperature, (int, float)) or not 0.0 <= self.temperature <= 1e4:
            raise RuleError(f"Dspike(temperature={self.temperature!r}): expected a number from 0 to 10000.")

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape of v."""
        b = self.temperature
        height = b / (2.0 * math.tanh(b / 2.0)) if b > 1e-6 else 1.0
        # 1 / cosh(z)^2 = 4 sigmoid(2z) sigmoid(-2z), which does not overflow.
        scaled = v * (2.0 * b)
        bump = torch.sigmoid(scaled).mul(torch.sigmoid(-scaled)).mul_(4.0 * height)
        return torch.where(v.abs() <= 0.5, bump, torch.zeros_like(bump))


@dataclass(frozen=True)
class Spike:
    """The spike itself, 1 where v > 0: with it the traces of the rule are those of pair-based STDP."""

    def __call__(self, v: Tensor) -> Tensor:
        """Returns psi(v), of the shape and dtype of v."""
        return (v > 0).to(v.dtype)


NAMED: dict[str, type] = {
    "triangle": Triangle,
    "inverse_square": InverseSquare,
    "sigmoid": SigmoidDerivative,
    "rational": Rational,
    "dspike": Dspike,
    "spike": Spike,
}


_BY_VALUE = frozenset(NAMED.values()) - {Spike}  # which goes by the spikes that the neuron gave out


def resolve_psi(psi: str | Psi | None) -> Psi | None:
    """Turns a name into its function; callables and None pass through.

    Args:
        psi: One of the names in :data:`NAMED`, a callable, or None for the derivative of the neuron's own surrogate.

    Raises:
        RuleError: If it is none of these.
    """
    if psi is None:
        return None
    if isinstance(psi, str):
        if psi not in NAMED:
            raise RuleError(f"psi={psi!r} is not known; use one of {sorted(NAMED)}, a callable v -> psi(v), or None.")
        return _named(psi)
    if isinstance(psi, type):
        raise RuleError(f"psi is the class {psi.__name__} itself; pass an instance, such as {psi.__name__}().")
    if not callable(psi):
        raise RuleError(f"psi must be a name, a callable v -> psi(v) or None; found {type(psi).__name__}.")
    return psi


@cache
def _named(psi: str) -> Psi:
    return NAMED[psi]()  # type: ignore[no-any-return]


def is_by_value(psi: Psi | None) -> bool:
    """Whether psi is one of this module's, which give the same for the same v whenever they are asked."""
    return type(psi) in _BY_VALUE


def describe_psi(psi: str | Psi | None) -> Any:
    """Plain data (str, dict or None) that names psi in reports and checkpoints."""
    if psi is None or isinstance(psi, str):
        return psi
    for name, kind in NAMED.items():
        if type(psi) is kind:
            return {"name": name, **asdict(psi)}  # type: ignore[call-overload]
    return getattr(psi, "__qualname__", type(psi).__qualname__)
