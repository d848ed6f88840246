"""Spike functions for neurons: a Heaviside step forward, one of our psi functions as its derivative backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stllr_plugin.activations import Psi, resolve_psi
from stllr_plugin.errors import RuleError


@dataclass(frozen=True)
class SurrogateSpike:
    """Spikes where ``v = membrane - threshold`` is above 0; its derivative is psi(v).

    ::

        snntorch.Leaky(beta=0.9, spike_grad=SurrogateSpike("dspike"))
        snntorch.Leaky(beta=0.9, spike_grad=SurrogateSpike(Triangle(height=1.0)))

    It goes wherever a library takes a callable for this, holds no tensors, can be pickled and copied, and compiles.
    The spikes have the type of v.

    Args:
        psi: One of the names in :data:`stllr_plugin.activations.NAMED`, or a callable ``v -> psi(v)``.

    Raises:
        RuleError: If it is neither.
    """

    psi: str | Psi = "dspike"

    def __post_init__(self) -> None:
        """Checks psi, and keeps the function where a name was given."""
        psi = resolve_psi(self.psi)
        if psi is None:
            raise RuleError("SurrogateSpike needs a psi: a name or a callable v -> psi(v); found None.")
        object.__setattr__(self, "psi", psi)

    def __call__(self, v: Tensor) -> Tensor:
        """Returns the spikes (0 or 1), of the shape of v."""
        spikes: Tensor = _Step.apply(v, self.psi)
        return spikes


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, psi: Psi) -> Tensor:
        ctx.save_for_backward(v)
        ctx.psi = psi
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradients[0] * ctx.psi(v), None
