"""The gradients of the neurons beyond the plain ones, as tests.test_exactness compares those of the others.

Inhibited, quantised and graded neurons, those that adapt or are refractory, and modules that run sequences, driven one
step at a time. Also that without traces the rule is plain autograd with states detached between the steps.
Membranes in millivolts are compared in float64 only: a rounding of a v that is far from zero moves a psi that is tiny.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch

from tests.cases.case import Case
from tests.cases.drive import TOLERANCE, assert_equal, attach, gradients, measure, reference, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.more_neurons import MORE_READOUTS
from tests.cases.neurons import MORE_NEURONS, neuron_case, readout_case
from tests.cases.plain import run_detached, run_detached_late
from tests.cases.rules import RULES, SLTT
from tests.oracles.stllr import Result

pytest.importorskip("snntorch")
pytest.importorskip("norse")

DTYPES = {"f64": torch.float64, "f32": torch.float32}
# the learner does not know these yet
PENDING = ("StateLeaky", "LinearLeaky")
NAMES = [name for name in (*MORE_NEURONS, *MORE_READOUTS) if name.partition("-")[0] not in PENDING]
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
    found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype])
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
    with attach(attached, SLTT):
        run_steps(attached, case.xs, case.loss)
    errors = relative_errors(gradients(attached), gradients(model))
    assert all(error <= 1e-9 for error in errors.values()), errors
