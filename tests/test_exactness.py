"""The gradients of an attached network against the oracle, which writes out e_ij[t] for every weight.

Tolerance: 1e-9 in float64 and 1e-5 in float32, norm of the difference over norm, worst parameter.

float64 and snnTorch: its surrogates return float32 spikes whatever their input, so that a float64 network would fail at
the next layer. The float64 networks of these tests therefore use a ``spike_grad`` of the tests' own with the same
derivative, which keeps the dtype; the float32 ones use snnTorch's functions (tests/cases/surrogates.py). Norse keeps
the dtype of its input, and its constants are given as float64.

float32: constants are exact in binary and no membrane of a case lies within 2e-4 of its threshold, so that rounding
flips no spike. The outputs are compared first. The rule "narrow" (psi = 1/(100|v|+1)^2) multiplies a rounding of v by
up to 200; it is left to float64 here, and to the golden files in float32.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch

from tests.cases import wiring  # noqa: F401  registers more structures
from tests.cases.case import Case
from tests.cases.drive import TOLERANCE, assert_equal, measure, reference
from tests.cases.modules import CaseNet
from tests.cases.neurons import NEURONS, READOUTS, neuron_case, readout_case
from tests.cases.plain import run_detached
from tests.cases.rules import FLOAT32_RULES, RULES
from tests.cases.structures import STRUCTURES, structure_case
from tests.cases.synapses import SYNAPSES, synapse_case
from tests.oracles.stllr import Result

pytest.importorskip("snntorch")
pytest.importorskip("norse")

DTYPES = {"f64": torch.float64, "f32": torch.float32}
NETWORKS = [*[f"structure:{name}" for name in STRUCTURES], *[f"readout:{name}" for name in READOUTS]]
OUTPUTS = ("spikes", "membranes", "both", "all")


@lru_cache(maxsize=512)
def expected(kind: str, name: str, rule: str) -> tuple[Case, Result]:
    case = {"readout": readout_case, "structure": structure_case, "synapse": synapse_case}[kind](name)
    return case, reference(case, RULES[rule])


@lru_cache(maxsize=512)
def expected_of_neuron(name: str, outputs: str, rule: str) -> tuple[Case, Result]:
    case = neuron_case(name, outputs)
    return case, reference(case, RULES[rule])


def outputs_of(name: str) -> tuple[str, ...]:
    return ("spikes",) if name.endswith("spikes-only") else OUTPUTS


def some_combinations(name: str, dtype: str) -> list[tuple[str, str, str]]:
    """Every rule once in float64 and two of them in float32, each with another loss and way of use."""
    start = list(NEURONS).index(name)
    rules = list(RULES) if dtype == "f64" else [FLOAT32_RULES[(start + i) % len(FLOAT32_RULES)] for i in (0, 3)]
    outputs = outputs_of(name)
    return [(rule, outputs[(start + i) % len(outputs)], "ab"[(start + i // 2) % 2]) for i, rule in enumerate(rules)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEURONS)
def test_neuron(name: str, dtype: str) -> None:
    for rule, outputs, way in some_combinations(name, dtype):
        case, result = expected_of_neuron(name, outputs, rule)
        found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype])
        assert_equal(found, result, TOLERANCE[DTYPES[dtype]], f"{case.id} rule {rule} way {way}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEURONS)
def test_neuron_in_all_combinations(name: str, dtype: str) -> None:
    rules = list(RULES) if dtype == "f64" else list(FLOAT32_RULES)
    for rule, outputs, way in itertools.product(rules, outputs_of(name), "ab"):
        case, result = expected_of_neuron(name, outputs, rule)
        found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype])
        assert_equal(found, result, TOLERANCE[DTYPES[dtype]], f"{case.id} rule {rule} way {way}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SYNAPSES)
def test_synapse(name: str, dtype: str) -> None:
    for rule, way in (("default", "b"), ("own_all", "a")):
        case, result = expected("synapse", name, rule)
        found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype])
        assert_equal(found, result, TOLERANCE[DTYPES[dtype]], f"{case.id} rule {rule} way {way}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind_and_name", [*[f"structure:{n}" for n in STRUCTURES], *[f"readout:{n}" for n in READOUTS]]
)
def test_network(kind_and_name: str, dtype: str) -> None:
    kind, name = kind_and_name.split(":")
    for rule, way in (("default", "a"), ("paper", "b"), ("surrogate", "a"), ("own_all", "b")):
        case, result = expected(kind, name, rule)
        found = measure(case, RULES[rule], way=way, dtype=DTYPES[dtype])
        assert_equal(found, result, TOLERANCE[DTYPES[dtype]], f"{case.id} rule {rule} way {way}")


def test_the_comparison_can_fail() -> None:
    """Plain gradients, or those of another rule, are far from the oracle's."""
    case, result = expected_of_neuron("Leaky-subtract-late", "both", "default")
    model = CaseNet(case.net)
    run_detached(model, case.xs, case.loss)
    plain = (model.fc1.weight.grad - result.grads["fc1.weight"]).norm() / result.grads["fc1.weight"].norm()
    assert plain > 0.1
    with pytest.raises(AssertionError, match="relative errors"):
        assert_equal(measure(case, RULES["paper"]), result, 1e-2, case.id)
