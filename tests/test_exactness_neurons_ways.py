"""The neurons beyond the plain ones by every way of use: some steps supervised, several sequences, loops in forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases.case import Case, exact, generator
from tests.cases.drive import (
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
from tests.cases.neurons import MORE_NEURONS, neuron_case
from tests.cases.rules import RULES
from tests.oracles.stllr import Oracle

pytest.importorskip("snntorch")
pytest.importorskip("norse")

HIDDEN = ("DeltaLeaky-hidden", "Leaky-inhibition-hidden", "Leaky-around_zero-hidden", "Leaky-graded-hidden")
NAMES = (
    *HIDDEN,
    "DeltaLeaky-explicit",
    "RLeaky-inhibition-zero-now",
    "Leaky-graded-learned-subtract-now",
    "LIFExRecurrentCell-constants",
    "LIFAdExCell-constants",
    "LIFRefracCell-short",
    "LIFAdExRefracRecurrentCell-short",
    "IzhikevichRecurrentCell-volts",
    "LSNNRecurrentCell-constants",
    "LIF-sequence",
    "LIFRecurrent-sequence",
    "LIFRefracRecurrent-sequence",
    "LSNNRecurrent-sequence",
)
CARRYING = tuple(name for name in NAMES if name not in HIDDEN)
STREAMED = ("StateLeaky-scalar", "StateLeaky-graded-quantised", "LinearLeaky-learned")


def case_of(name: str, outputs: str = "both") -> Case:
    return neuron_case(name, outputs)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: object = "") -> None:
    errors = relative_errors(found, expected)
    assert max(errors.values()) <= 1e-9, (what, errors)


@pytest.mark.parametrize("name", [*NAMES, *STREAMED])
def test_supervise_last(name: str) -> None:
    case, rule = case_of(name), RULES["paper"]
    steps = len(case.xs)
    expected = reference(case, rule, supervised=[t >= steps - 2 for t in range(steps)])
    for way, told in (("a", True), ("a", False), ("b", True)):
        found = measure(case, rule, way=way, supervise_last=2, tell_num_steps=told)
        assert_equal(found, expected, 1e-9, f"{name} way {way} told {told}")


@pytest.mark.parametrize("name", [*NAMES, *STREAMED])
def test_lengths(name: str) -> None:
    """supervise_last counts from each sample's own end."""
    case, rule = case_of(name), RULES["default"]
    steps, batch = case.xs.shape[:2]
    lengths = torch.tensor([steps - 2, steps][:batch])
    for way, last in (("a", 2), ("b", None)):
        first = 0 if last is None else lengths - last
        supervised = [(t < lengths) & (t >= torch.as_tensor(first)) for t in range(steps)]
        expected = reference(case, rule, supervised=supervised)
        model = CaseNet(case.net, hidden=case.hidden)
        with attach(model, rule, supervise_last=last) as learner:
            if needs_stream(case):
                run_steps(model, case.xs, case.loss, way, learner=learner, lengths=lengths)
            else:
                learner.reset(lengths=lengths)
                run_steps(model, case.xs, case.loss, way)
        assert_same(gradients(model), expected.grads, (way, last))


@pytest.mark.parametrize("name", CARRYING)
def test_new_states_begin_a_new_sequence_without_reset(name: str) -> None:
    case, rule = case_of(name), RULES["default"]
    expected = {key: 2 * value for key, value in reference(case, rule).grads.items()}
    model = CaseNet(case.net)
    with attach(model, rule):
        run_steps(model, case.xs, case.loss)
        run_steps(model, case.xs, case.loss)
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("name", NAMES)
def test_reset_begins_a_new_sequence(name: str) -> None:
    case, rule = case_of(name), RULES["default"]
    expected = reference(case, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        run_steps(model, case.xs[:3], case.loss)
        learner.zero_grad()
        learner.reset()
        outputs = run_steps(model, case.xs, case.loss)
    for key, value in expected.outputs.items():
        torch.testing.assert_close(outputs[key], value, rtol=1e-9, atol=1e-9)
    assert_same(gradients(model), expected.grads)


@pytest.mark.parametrize("name", HIDDEN)
def test_reset_of_some_samples(name: str) -> None:
    case, rule = case_of(name), RULES["paper"]
    mask = torch.tensor([True, False])
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        for part in (case.xs[:3], case.xs[3:]):
            oracle.run(part, case.loss)
            run_steps(model, part, case.loss)
            oracle.reset(mask)
            learner.reset(mask)
    assert_same(gradients(model), oracle.raw_grads())


@pytest.mark.parametrize("name", HIDDEN)
def test_a_sequence_in_two_calls(name: str) -> None:
    case, rule = case_of(name), RULES["default"]
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule):
        for part in (case.xs[:2], case.xs[2:]):
            oracle.run(part, case.loss)
            run_steps(model, part, case.loss, "a")
    assert_same(gradients(model), oracle.raw_grads())


@pytest.mark.parametrize("name", [*NAMES, *STREAMED])
def test_direct_feedback(name: str) -> None:
    """delta of the first layer is a fixed matrix times the output error, at the output of its neurons."""
    case = case_of(name, "spikes")
    run = Oracle(case.net, RULES["default"]).run(case.xs, None)
    size, shape = run.outputs["lif2"].shape[2], run.spikes["lif1"].shape[2:]
    feedback = {"lif1": exact(torch.randn((size, *shape), generator=generator(7), dtype=torch.float64))}
    for rule, way in (("default", "a"), ("surrogate", "b")):
        expected = Oracle(case.net, RULES[rule], signal="dfa", feedback=feedback).run(case.xs, case.loss)
        model = CaseNet(case.net, hidden=case.hidden)
        with attach(model, RULES[rule], learning_signal="dfa", output="lif2") as learner:
            learner.feedback["lif1"] = feedback["lif1"]
            run_steps(model, case.xs, case.loss, way, learner=learner if needs_stream(case) else None)
        assert_same(gradients(model), expected.grads, (rule, way))


class Sequence(nn.Module):
    """The time loop inside forward; returns the outputs of all steps."""

    def __init__(self, net: CaseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, xs: Tensor) -> Tensor:
        state: Any = None
        record = []
        for x in xs:
            outputs, state = self.net(x, state)
            record.append(outputs["lif2"])
        return torch.stack(record)


@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_online(name: str, supervise_last: int | None) -> None:
    case, rule = case_of(name, "spikes"), RULES["paper"]
    steps = len(case.xs)
    times = [t for t in range(steps) if supervise_last is None or t >= steps - supervise_last]
    expected = reference(case, rule, supervised=[t in times for t in range(steps)])
    model, clock = Sequence(CaseNet(case.net, hidden=case.hidden)), iter(times)
    with attach(model, rule, supervise_last=supervise_last) as learner:

        def loss(spikes: Tensor, *states: Any) -> Tensor:
            spikes = spikes.squeeze(0) if model.net.runs_sequences else spikes
            return case.loss({"lif2": spikes}, next(clock))

        with learner.online("net.lif2", loss, num_steps=steps):
            model(case.xs)
    assert_same(gradients(model.net), expected.grads)


@pytest.mark.parametrize("name", NAMES)
def test_two_pass(name: str) -> None:
    case, rule = case_of(name, "spikes"), RULES["paper"]

    def count_loss(spikes: Tensor) -> Tensor:
        counts = spikes.sum(0)
        return torch.exp(-counts).sum() + (counts**2).sum()

    recorded = reference(case, rule).outputs["lif2"].clone().requires_grad_()
    count_loss(recorded).backward()
    expected = Oracle(case.net, rule).run(case.xs, lambda outputs, t: (outputs["lif2"] * recorded.grad[t]).sum())
    model = Sequence(CaseNet(case.net, hidden=case.hidden))
    with attach(model, rule) as learner:
        learner.two_pass("net.lif2", count_loss, lambda: model(case.xs))
    assert_same(gradients(model.net), expected.grads)


def test_the_names_are_those_of_cases() -> None:
    assert {*NAMES, *STREAMED} <= set(MORE_NEURONS)
