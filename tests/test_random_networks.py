"""Random architectures against the oracle: dense, convolutional, recurrent, residual, normed, of mixed neurons."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stllr_plugin import STLLRLearner
from tests.cases.case import Case
from tests.cases.drive import attach, gradients, learner_rule, measure, reference, run_steps
from tests.cases.modules import CaseNet
from tests.cases.random_networks import random_networks
from tests.cases.strategies import beyond_float64, check, rules, ways
from tests.oracles.stllr import Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

# the default run tries the same networks every time; the slow one looks for new ones
FEW = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
MANY = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))


@FEW
@given(case=random_networks(), **ways)
def test_random_networks(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


GROWN = settings(
    deadline=None, max_examples=15, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@GROWN
@given(case=random_networks(grown=True), **ways)
def test_random_networks_with_constants_per_unit_and_inputs_of_other_layouts(
    case: Case, rule: Rule, way: str, last: int | None
) -> None:
    check(case, rule, way, last, torch.float64)


def by_run(case: Case, rule: Rule, window: int) -> dict[str, Tensor]:
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        learner.run(model, case.xs, list(range(len(case.xs))), case.loss, window=window)
    return gradients(model)


@GROWN
@given(case=random_networks(grown=True), rule=rules, window=st.integers(1, 6), fold=st.integers(2, 4))
def test_random_networks_in_every_way(case: Case, rule: Rule, window: int, fold: int) -> None:
    """One backward, one at each step, folded, in a stream, in windows: each as the oracle."""
    steps = len(case.xs)
    expected = reference(case, rule)
    assume(beyond_float64(case, rule, expected, None) is None)
    found = {
        "one backward": measure(case, rule, way="a").grads,
        "at each step": measure(case, rule, way="b").grads,
        "stream": measure(case, rule, stream=True).grads,
        "run": by_run(case, rule, window),
    }
    model = CaseNet(case.net, hidden=case.hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with STLLRLearner(model, optimizer, rule=learner_rule(rule), num_steps=steps, fold_steps=fold):
        run_steps(model, case.xs, case.loss)
        found["folded"] = gradients(model)
    for way, grads in found.items():
        for name, value in expected.grads.items():
            scale = max(value.norm().item(), 1e-6)
            assert (grads[name] - value).norm() <= 1e-8 * scale, f"{way}: {name} of {case.net} with {rule}"


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(case=random_networks(grown=True), **ways)
def test_two_hundred_grown_networks(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


@pytest.mark.slow
def test_three_hundred_random_networks_in_float32() -> None:
    """None above 1e-5; those that float32 cannot know so well are left out and counted by reason (shown with -rP)."""
    tally: Counter[str] = Counter()
    worst = 0.0

    @MANY
    @given(case=random_networks(), **ways)
    def compare(case: Case, rule: Rule, way: str, last: int | None) -> None:
        nonlocal worst
        worst = max(worst, check(case, rule, way, last, torch.float32, tally=tally))

    compare()
    print(f"worst relative error {worst:.1e}", *[f"{count} x {reason}" for reason, count in tally.items()], sep="\n")
    assert tally["compared"] >= 300, tally
