"""What the tests of the kinds of silent mistakes share: a gradient is right, or the package refuses with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin.errors import STLLRError, STLLRWarning

Gradients = dict[str, Tensor]
LEAST = 1e-4  # relative error above which a gradient is another one


def members(table: dict[str, Any]) -> list[Any]:
    """The entries of a table as pytest parameters."""
    return [pytest.param(value, id=name) for name, value in table.items()]


def sgd(net: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    """An optimizer that leaves the weights where they are."""
    return torch.optim.SGD(net.parameters(), lr=lr)


def copied(net: nn.Module) -> Gradients:
    """The gradients by name, zeros where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def error(found: Tensor, want: Tensor) -> float:
    """Relative error; what is wanted must not be zero, or the comparison would prove nothing."""
    assert want.norm() > 0, "the reference is zero"
    return float((found - want).norm() / want.norm())


def assert_right(found: Gradients, want: Gradients, tolerance: float = LEAST) -> None:
    """Each wanted gradient was found, those that are zero too; they may not all be."""
    assert any(value.any() for value in want.values()), "the reference is zero"
    wrong = {
        name: error(found[name], value) if value.any() else float(found[name].norm()) for name, value in want.items()
    }
    wrong = {name: value for name, value in wrong.items() if not value <= tolerance}
    assert not wrong, f"wrong without a word, relative errors {wrong}"


def assert_right_or_refused(attempt: Callable[[], Gradients], want: Gradients, tolerance: float = LEAST) -> None:
    """The attempt gives the wanted gradients, or raises an error of the package."""
    try:
        found = attempt()
    except STLLRError as refusal:
        assert len(str(refusal)) > 20, "a refusal says what to do"
        return
    assert_right(found, want, tolerance)


@contextmanager
def told() -> Iterator[list[str]]:
    """The package's warnings, and the text of an error of it, which ends the block."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield texts
        except STLLRError as refusal:
            texts.append(str(refusal))
    texts += [str(one.message) for one in caught if issubclass(one.category, STLLRWarning)]
