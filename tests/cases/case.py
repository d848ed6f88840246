"""What a case is, its loss, and random weights and inputs.

Constants and weights are exact in float32, so that a float32 network and the float64 oracle mean the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.cases.rules import RULES
from tests.oracles.spec import Net
from tests.oracles.stllr import Oracle, Rule


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


def settle(build: Callable[[int], Case], *, well_conditioned: bool = False, tries: int = 200) -> Case:
    """The first seed whose network fires, is not saturated and keeps every membrane away from its threshold.

    ``well_conditioned`` also asks for gradients that float32 can know to 1e-5.
    """
    for seed in range(tries):
        case = build(seed)
        result = Oracle(case.net, RULES["default"]).run(case.xs, None)
        rates = [spikes.mean().item() for spikes in result.spikes.values()]
        if not all(0.03 < rate < 0.8 for rate in rates) or result.margin < 2e-4:
            continue
        if not well_conditioned or all(
            sensitivity(case, RULES[rule]) < 1.5e-6 for rule in ("paper", "surrogate", "own_all")
        ):
            return case
    raise AssertionError(f"no seed settles {build(0).id}")


def sensitivity(case: Case, rule: Rule, supervised: Sequence[bool] | None = None, tries: int = 1) -> float:
    """How far the exact gradients move (relative, worst parameter) when the weights move by a float32 rounding."""
    exact_grads = Oracle(case.net, rule).run(case.xs, case.loss, supervised).grads
    worst = 0.0
    for seed in range(tries):
        rng = generator(seed)
        moved = {k: v * (1 + 6e-8 * torch.randn(v.shape, generator=rng).double()) for k, v in case.net.params.items()}
        grads = Oracle(case.net.with_params(**moved), rule).run(case.xs, case.loss, supervised).grads
        for name, value in exact_grads.items():
            if value.norm() > 0:
                worst = max(worst, ((grads[name] - value).norm() / value.norm()).item())
    return worst
