"""Verification without a learner at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stllr_plugin.learner import STLLRLearner
from stllr_plugin.rule import STLLRRule
from stllr_plugin.verify.check import verify_with
from stllr_plugin.verify.result import Verification


def verify(
    model: nn.Module,
    inputs: Any,
    loss_fn: Callable[..., Tensor | None],
    *,
    rule: str | STLLRRule,
    **options: Any,
) -> Verification:
    """As :meth:`STLLRLearner.verify`, for a model to which no learner is attached.

    Args:
        model: The network.
        inputs: One batch.
        loss_fn: The loss.
        rule: The rule to try.
        **options: ``layer_rules``, ``exclude``, ``supervise_last``, ``forward``, ``steps`` and ``num_steps``, as for
            :func:`stllr_plugin.verify.check.verify_with`.
    """
    return verify_with(STLLRLearner, model, inputs, loss_fn, rule=rule, **options)
