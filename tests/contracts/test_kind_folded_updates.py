"""Gradients that wait (fold_steps) arrive before anything reads or scales them: updates are as without folding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import error, members
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 8, 4, 6, 5, 2


def inputs(steps: int, seed: int = 1) -> Tensor:
    return 2 * torch.rand(steps, B, IN, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT))


class Run:
    """A network, its learner and a scaler; ``fold`` is None for the reference."""

    def __init__(self, fold: int | None, **options: Any) -> None:
        self.net = build(network)
        self.before = self.net[0].weight.detach().clone()
        optimizer = torch.optim.SGD(self.net.parameters(), 0.01)
        self.learner = STLLRLearner(self.net, optimizer, rule=RULE, num_steps=T, fold_steps=fold, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def forward(self, steps: int, seed: int = 1, bad: int | None = None) -> None:
        for t, x in enumerate(inputs(steps, seed)):
            loss = self.net(x).square().mean() * (float("inf") if t == bad else 1.0)
            self.scaler.scale(loss).backward()

    def update(self) -> None:
        self.scaler.step(self.learner)
        self.scaler.update()

    def change(self) -> Tensor:
        return self.net[0].weight.detach() - self.before


def early_end(run: Run) -> None:
    run.forward(5)
    run.update()


def one_step(run: Run) -> None:
    run.forward(1)
    run.update()


def unscaled_and_clipped(run: Run) -> None:
    run.forward(5)
    run.scaler.unscale_(run.learner)
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1e-2)
    run.update()


def clipped_without_a_scaler(run: Run) -> None:
    run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    run.forward(5)
    run.learner.flush()
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1e-2)
    run.learner.step()


def two_sequences(run: Run) -> None:
    run.forward(5)
    run.learner.reset()
    run.forward(7, 2)
    run.update()


def after_another_update(run: Run) -> None:
    run.forward(T)
    run.update()
    run.learner.zero_grad()
    run.forward(4, 2)
    run.update()


def to_the_end(run: Run) -> None:
    run.forward(T)
    run.update()


def overflow_that_waits(run: Run) -> None:
    """An infinite gradient that has not arrived yet: the scaler must skip the update all the same."""
    run.forward(5, bad=4)
    run.update()
    run.learner.zero_grad()
    run.forward(5, 2)
    run.update()


SCRIPTS: dict[str, Callable[[Run], None]] = {
    "ends early": early_end,
    "one step of it": one_step,
    "unscaled and clipped": unscaled_and_clipped,
    "clipped without a scaler": clipped_without_a_scaler,
    "two sequences in one update": two_sequences,
    "after another update": after_another_update,
    "to the announced end": to_the_end,
    "an overflow that waits": overflow_that_waits,
}


@pytest.mark.parametrize("fold", [2, 3, 6, 8])
@pytest.mark.parametrize("script", members(SCRIPTS))
def test_an_update_is_what_it_is_without_folding(script, fold):
    reference, run = Run(None), Run(fold)
    script(reference)
    try:
        script(run)
    except STLLRError:
        return
    assert error(run.change(), reference.change()) < 1e-4


@pytest.mark.parametrize("fold", [2, 3, 8])
def test_supervised_steps_that_end_early(fold):
    """The reference supervises the same steps of the announced length."""
    reference, run = Run(None, supervise_last=5), Run(fold, supervise_last=5)
    for one in (reference, run):
        for t, x in enumerate(inputs(6)):
            output = one.net(x)
            if t >= T - 5:
                one.scaler.scale(output.square().mean()).backward()
        one.update()
    assert error(run.change(), reference.change()) < 1e-4


@pytest.mark.parametrize("fold", [2, 3, 8])
def test_the_scale_is_halved_by_an_overflow_that_waits(fold):
    """As it is without folding."""
    run = Run(fold)
    run.forward(5, bad=4)
    run.update()
    assert run.scaler.get_scale() == 2.0**11
    assert not run.change().any()
