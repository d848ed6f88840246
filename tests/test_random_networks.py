"""Random architectures against the oracle: dense, convolutional, recurrent, residual, normed, of mixed neurons."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.cases.case import Case
from tests.cases.random_networks import random_networks
from tests.cases.strategies import check, ways
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
