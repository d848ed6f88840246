"""Two limits in which the rule is something else, for every supported neuron.

Without a second term and without a presynaptic trace it is plain autograd with states detached between steps (SLTT).
Without a second term and with the neuron's leak as decay of the trace it is OTTT.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.cases import wiring  # noqa: F401  registers more structures
from tests.cases.case import Case
from tests.cases.drive import attach, gradients, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.neurons import NEURONS, READOUTS, neuron_case, readout_case
from tests.cases.plain import ottt, run_detached
from tests.cases.rules import SLTT
from tests.cases.structures import STRUCTURES, structure_case
from tests.oracles.stllr import Oracle, Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

SPIKES_ONLY = tuple(name for name in NEURONS if name.endswith("spikes-only"))
BOTH = tuple(name for name in NEURONS if name not in SPIKES_ONLY)


def cases() -> list[tuple[str, str]]:
    return [("neuron", f"{name}:all") for name in BOTH] + [
        *[("neuron", f"{name}:spikes") for name in SPIKES_ONLY],
        *[("readout", name) for name in READOUTS],
        *[("structure", name) for name in STRUCTURES],
    ]


def find(kind: str, name: str) -> Case:
    if kind == "neuron":
        return neuron_case(*name.split(":"))
    return readout_case(name) if kind == "readout" else structure_case(name)


def leak_of(case: Case) -> float:
    """The decay of the membrane of the case's first neuron, rounded; any number would do."""
    options = next(node.options for node in case.net.nodes if node.is_neuron)
    if "tau_mem_inv" in options:
        return 1 - 0.001 * options["tau_mem_inv"]
    return float(options["beta"]) if options.get("beta") else 0.9


def learner_gradients(case: Case, rule: Rule) -> dict[str, torch.Tensor]:
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule):
        run_steps(model, case.xs, case.loss)
    return gradients(model)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    errors = relative_errors(found, expected)
    assert all(error <= 1e-9 for error in errors.values()), errors


@pytest.mark.parametrize(("kind", "name"), cases())
def test_without_traces_it_is_plain_autograd_with_detached_states(kind: str, name: str) -> None:
    case = find(kind, name)
    model = CaseNet(case.net, hidden=case.hidden)
    run_detached(model, case.xs, case.loss)
    assert_same(learner_gradients(case, SLTT), gradients(model))


@pytest.mark.parametrize(("kind", "name"), cases())
def test_with_the_leak_as_decay_it_is_ottt(kind: str, name: str) -> None:
    case = find(kind, name)
    if any(node.is_synapse and "shares" in node.options for node in case.net.nodes):
        pytest.skip("one synapse called on two inputs has two traces; the written-out OTTT here has one")
    decay = leak_of(case)
    model = CaseNet(case.net, hidden=case.hidden)
    with ottt(model, decay) as clock:

        def loss(outputs, t):
            clock[0] = t + 1
            return case.loss(outputs, t)

        run_detached(model, case.xs, loss)
    expected = gradients(model)
    assert_same(learner_gradients(case, replace(SLTT, lambda_pre=decay)), expected)


@pytest.mark.parametrize(("kind", "name"), cases())
def test_the_oracle_has_the_first_limit_too(kind: str, name: str) -> None:
    case = find(kind, name)
    model = CaseNet(case.net, hidden=case.hidden)
    outputs = run_detached(model, case.xs, case.loss)
    oracle = Oracle(case.net, SLTT).run(case.xs, case.loss)
    for output, value in outputs.items():
        torch.testing.assert_close(oracle.outputs[output], value, rtol=1e-12, atol=1e-12)
    assert_same(oracle.grads, gradients(model))
