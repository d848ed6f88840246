"""What a case is, its loss, and random weights and inputs.

Constants and weights are exact in float32, so that a float32 network and the float64 oracle mean the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.cases.rules import RULES
from tests.oracles.spec import Net
from tests.oracles.stllr import Oracle


@dataclass(frozen=True)
class Case:
    """A network with an input sequence [T, B, ...]."""

    id: str
    net: Net
    xs: Tensor
    hidden: bool = False

    def loss(self, outputs: Mapping[str, Tensor], t: int) -> Tensor:
        return case_loss(outputs, t)


def case_loss(outputs: Mapping[str, Tensor], t: int = 0) -> Tensor:
    """A smooth function of everything in ``outputs``, another one at every step, with interactions."""
    total: Tensor | float = 0.0
    mixed: Tensor | float = 0.0
    for i, value in enumerate(outputs.values()):
        flat = value.flatten(1)
        position = torch.arange(flat.shape[1], dtype=torch.float64) + 1
        weight = torch.cos(position * (1.3 + i) + t).to(flat)
        target = torch.sin(position * 0.7 + 2 * t).to(flat)
        total = total + 0.5 * ((flat - target) ** 2).sum() / len(flat)
        mixed = mixed + flat @ weight
    assert isinstance(mixed, Tensor)
    return total + torch.tanh(mixed).sum()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(values: Tensor) -> Tensor:
    """Values that float32 holds exactly."""
    return values.float().double()


def weight(shape: tuple[int, ...], rng: torch.Generator, scale: float = 1.0) -> Tensor:
    fan_in = max(1, math.prod(shape[1:]))
    values = torch.rand(shape, generator=rng, dtype=torch.float64) * 3.0 - 1.2
    return exact(values * scale / math.sqrt(fan_in))


def bias(size: int, rng: torch.Generator, scale: float = 1.0) -> Tensor:
    return exact((torch.rand(size, generator=rng, dtype=torch.float64) - 0.4) * 0.3 * scale)


def spike_input(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Spikes, some of them graded: the rule holds for real inputs too."""
    spikes = (torch.rand(shape, generator=rng, dtype=torch.float64) < 0.5).double()
    return spikes * (1 + 0.5 * (torch.rand(shape, generator=rng, dtype=torch.float64) < 0.2))


def settle(build: Callable[[int], Case], margin: float = 2e-4, tries: int = 200) -> Case:
    """The first seed whose network fires, is not saturated and keeps every membrane away from its threshold."""
    for seed in range(tries):
        case = build(seed)
        result = Oracle(case.net, RULES["default"]).run(case.xs, None)
        rates = [spikes.mean().item() for spikes in result.spikes.values()]
        if all(0.03 < rate < 0.8 for rate in rates) and result.margin > margin:
            return case
    raise AssertionError(f"no seed settles {build(0).id}")
