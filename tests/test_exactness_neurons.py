"""The gradients of the neurons beyond the plain ones, as tests.test_exactness compares those of the others.

Inhibited, quantised and graded neurons, those that adapt or are refractory, and modules that run sequences, driven one
step at a time, by a loop or by ``learner.stream``. Also that without traces the rule is plain autograd with states
detached between the steps.

Membranes in millivolts are compared in float64 only: a rounding of a v that is far from zero moves a psi that is tiny.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases.case import Case
from tests.cases.drive import (
    TOLERANCE,
    assert_equal,
    attach,
    gradients,
    measure,
    needs_stream,
    reference,
    relative_errors,
    run_steps,
)
from tests.cases.modules import CaseNet
from tests.cases.more_neurons import MORE_READOUTS
from tests.cases.neurons import MORE_NEURONS, neuron_case, readout_case
from tests.cases.plain import detach_hidden, detached, run_detached, run_detached_late
from tests.cases.rules import RULES, SLTT
from tests.oracles.stllr import Result, Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

DTYPES = {"f64": torch.float64, "f32": torch.float32}
NAMES = (*MORE_NEURONS, *MORE_READOUTS)
NAMES_AND_DTYPES = [
    (name, dtype) for name in NAMES for dtype in DTYPES if not (name.endswith("millivolts") and dtype == "f32")
]
CHOSEN = ("default", "paper", "surrogate", "own_all")


def outputs_of(name: str) -> tuple[str, ...]:
    """What the loss sees. Membranes do not depend on the factor of the spikes, and zero is no measure of an error."""
    return ("spikes", "both", "all") if "graded-learned" in name else ("spikes", "membranes", "both", "all")


@lru_cache(maxsize=512)
def expected(name: str, outputs: str, rule: str) -> tuple[Case, Result]:
    case = readout_case(name) if name in MORE_READOUTS else neuron_case(name, outputs)
    return case, reference(case, RULES[rule])


def compare(name: str, outputs: str, rule: str, way: str, dtype: str) -> None:
    case, result = expected(name, outputs, rule)
    stream = name.endswith("sequence") and rule in ("paper", "own_all")
    found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype], stream=stream)
    assert_equal(found, result, TOLERANCE[DTYPES[dtype]], f"{case.id} rule {rule} way {way}")


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_neuron(name: str, dtype: str) -> None:
    """Four rules in float64 and one of them in float32, each with another loss and way of use."""
    start = NAMES.index(name)
    outputs = outputs_of(name)
    chosen = enumerate(CHOSEN) if dtype == "f64" else [(start % 4, CHOSEN[start % 4])]
    for i, rule in chosen:
        compare(name, outputs[(start // 4 + i) % len(outputs)], rule, "ab"[(start + i // 2) % 2], dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_neuron_in_all_combinations(name: str, dtype: str) -> None:
    for outputs, rule, way in itertools.product(outputs_of(name), CHOSEN, "ab"):
        compare(name, outputs, rule, way, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_without_traces_it_is_plain_autograd_with_detached_states(name: str) -> None:
    case = readout_case(name) if name in MORE_READOUTS else neuron_case(name, "all")
    model = CaseNet(case.net, hidden=case.hidden)
    late = any(node.is_late for node in case.net.nodes)
    (run_detached_late if late else run_detached)(model, case.xs, case.loss)
    attached = CaseNet(case.net, hidden=case.hidden)
    with attach(attached, SLTT) as learner:
        run_steps(attached, case.xs, case.loss, learner=learner if needs_stream(case) else None)
    errors = relative_errors(gradients(attached), gradients(model))
    assert all(error <= 1e-9 for error in errors.values()), errors


def leaves(state: Any) -> list[Tensor]:
    """All tensors of a nest of states."""
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return [leaf for item in items for leaf in leaves(item)]


def loss_on_states(outputs: dict[str, Tensor], state: dict[str, Any], t: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, value in enumerate([*outputs.values(), *leaves(state)]):
        weight = torch.cos(1.3 * torch.arange(value.numel(), dtype=torch.float64) + i + t).reshape(value.shape)
        total = total + (weight * value + 0.1 * value**2).sum()
    return total


def gradients_of_states(case: Case, rule: Rule | None) -> dict[str, Tensor]:
    """With a loss on all that the neurons return; by plain autograd with states detached between steps if no rule."""
    model, state = CaseNet(case.net, hidden=case.hidden), None
    with nullcontext() if rule is None else attach(model, rule):
        for t, x in enumerate(case.xs):
            outputs, state = model(x, state)
            loss_on_states(outputs, state, t).backward()
            if rule is None:
                state = detached(state)
                detach_hidden(model)
    return gradients(model)


# LSNN's synaptic current holds the input of this step, its membrane that of the step before
RETURNING = [name for name in MORE_NEURONS if not name.startswith(("StateLeaky", "LinearLeaky", "LSNN"))]


@pytest.mark.parametrize("name", RETURNING)
def test_a_loss_on_everything_that_is_returned(name: str) -> None:
    """Synaptic and adaptation currents, recovery variables, counters: without traces, plain autograd."""
    case = neuron_case(name, "all")
    errors = relative_errors(gradients_of_states(case, SLTT), gradients_of_states(case, None))
    assert all(error <= 1e-9 for error in errors.values()), errors
