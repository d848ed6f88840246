"""``learner.stream``: what it yields and teaches is what the oracle says, however a model keeps its states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from tests.cases.case import Case, bias, generator, settle, spike_input, weight
from tests.cases.drive import assert_equal, attach, gradients, measure, reference, relative_errors, run_steps
from tests.cases.modules import CaseNet, as_sequential_state
from tests.cases.neurons import neuron_case, readout_case
from tests.cases.rules import RULES
from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Oracle

pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")

FORGETTING = ("StateLeaky-scalar", "StateLeaky-graded-quantised", "LinearLeaky-learned")
SEQUENCES = ("LIF-sequence", "LIFRecurrent-sequence", "LIFRefracRecurrent-sequence", "LSNNRecurrent-sequence")
SINGLE_STEPS = ("Leaky-hidden-now", "DeltaLeaky-hidden", "LIFCell-triangle", "LIFAdExRefracRecurrentCell-short")
NAMES = (*FORGETTING, *SEQUENCES, *SINGLE_STEPS)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: object = "") -> None:
    errors = relative_errors(found, expected)
    assert max(errors.values()) <= 1e-9, (what, errors)


@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, way: str, supervise_last: int | None) -> None:
    case, rule = neuron_case(name, "both"), RULES["paper"]
    steps = len(case.xs)
    expected = reference(case, rule, supervised=[t >= steps - (supervise_last or steps) for t in range(steps)])
    found = measure(case, rule, way=way, stream=True, supervise_last=supervise_last, tell_num_steps=False)
    assert_equal(found, expected, 1e-9, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_is_a_new_sequence(name: str) -> None:
    """Also after one that was left half way, and after an evaluation."""
    case, rule = neuron_case(name, "both"), RULES["default"]
    expected = reference(case, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        stream = iter(learner.stream(case.xs))
        next(stream), next(stream)
        with torch.no_grad():
            evaluated = [outputs["lif2"] for outputs in learner.stream(case.xs)]
        torch.testing.assert_close(torch.stack(evaluated), expected.outputs["lif2"], rtol=1e-9, atol=1e-9)
        for _ in range(2):
            run_steps(model, case.xs, case.loss, learner=learner)
    assert_same(gradients(model), {key: 2 * value for key, value in expected.grads.items()})


@pytest.mark.parametrize("name", NAMES)
def test_one_stream_used_twice(name: str) -> None:
    """Iterating over it again runs the sequence again, from the start."""
    case, rule = neuron_case(name, "both"), RULES["default"]
    expected = reference(case, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        stream = learner.stream(case.xs)
        for _ in range(2):
            for t, outputs in enumerate(stream):
                case.loss(outputs, t).backward()
    assert_same(gradients(model), {key: 2 * value for key, value in expected.grads.items()})


@pytest.mark.parametrize("name", [*SEQUENCES, "LIFCell-triangle", "LIFAdExRefracRecurrentCell-short"])
def test_a_stream_goes_on_from_a_given_state(name: str) -> None:
    case, rule = neuron_case(name, "both"), RULES["paper"]
    expected = reference(case, rule)
    model = CaseNet(case.net)
    with attach(model, rule) as learner:
        first = learner.stream(case.xs[:3])
        for t, outputs in enumerate(first):
            case.loss(outputs, t).backward()
        for t, outputs in enumerate(learner.stream(case.xs[3:], first.state), 3):
            case.loss(outputs, t).backward()
    assert_same(gradients(model), expected.grads)


@pytest.mark.parametrize("name", [*FORGETTING, "Leaky-hidden-now", "DeltaLeaky-hidden"])
def test_some_samples_begin_anew_within_a_stream(name: str) -> None:
    """reset(mask) reaches the membranes that the stream keeps for the neurons, as it does those that they keep."""
    case, rule = neuron_case(name, "both"), RULES["paper"]
    mask = torch.tensor([True, False])
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:
        for t, outputs in enumerate(learner.stream(case.xs)):
            case.loss(outputs, t).backward()
            oracle.run(case.xs[t][None], lambda values, _, t=t: case.loss(values, t))
            if t == 2:
                learner.reset(mask)
                oracle.reset(mask)
    assert_same(gradients(model), oracle.raw_grads())


@pytest.mark.parametrize("name", ["LIF-sequence", "LIFCell-triangle"])
def test_states_of_norse_in_a_stream_are_not_reset_by_samples(name: str) -> None:
    """They are the stream's, which does not know where they begin; and nothing is reset before the error."""
    case, rule = neuron_case(name, "spikes"), RULES["paper"]
    expected = reference(case, rule)
    model = CaseNet(case.net)
    with attach(model, rule) as learner:
        for t, outputs in enumerate(learner.stream(case.xs)):
            case.loss(outputs, t).backward()
            if t == 2:
                with pytest.raises(StateError, match="Carry the states yourself"):
                    learner.reset(torch.tensor([True, False]))
    assert_same(gradients(model), expected.grads)


@pytest.mark.parametrize("name", ["LIF-sequence", "LIFCell-triangle"])
def test_the_state_is_there_after_the_loop(name: str) -> None:
    """Also when the weights have been updated; a loop of the user's own is then no longer the stream's."""
    case, rule = neuron_case(name, "spikes"), RULES["paper"]
    model = CaseNet(case.net)
    with attach(model, rule, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)) as learner:
        stream = learner.stream(case.xs)
        for t, outputs in enumerate(stream):
            case.loss(outputs, t).backward()
        state = stream.state
        learner.step()
        assert stream.state is state and state is not None
        run_steps(model, case.xs[:2], case.loss)
        learner.reset(torch.tensor([True, False]))


@pytest.mark.parametrize("name", NAMES)
def test_online_around_a_stream(name: str) -> None:
    case, rule = neuron_case(name, "spikes"), RULES["default"]
    expected = reference(case, rule)
    model, clock = CaseNet(case.net, hidden=case.hidden), iter(range(len(case.xs)))
    with attach(model, rule) as learner:

        def loss(spikes: Tensor, *states: Any) -> Tensor:
            return case.loss({"lif2": spikes[0] if model.runs_sequences else spikes}, next(clock))

        with learner.online("lif2", loss):
            for _ in learner.stream(case.xs):
                pass
    assert_same(gradients(model), expected.grads)


@pytest.mark.parametrize("name", NAMES)
def test_two_passes_of_a_stream(name: str) -> None:
    case, rule = neuron_case(name, "spikes"), RULES["paper"]

    def count_loss(spikes: Tensor) -> Tensor:
        counts = spikes.sum(0)
        return torch.exp(-counts).sum() + (counts**2).sum()

    recorded = reference(case, rule).outputs["lif2"].clone().requires_grad_()
    count_loss(recorded).backward()
    expected = Oracle(case.net, rule).run(case.xs, lambda outputs, t: (outputs["lif2"] * recorded.grad[t]).sum())
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule) as learner:

        def forward() -> Tensor:
            return torch.stack([outputs["lif2"] for outputs in learner.stream(case.xs)])

        learner.two_pass("lif2", count_loss, forward)
    assert_same(gradients(model), expected.grads)


# ------------------------------------------------------------------------------------------------ Norse's containers
def stream_of_sequential_state(case: Case, model: nn.Module, rule: str, way: str) -> dict[str, Tensor]:
    (output,) = case.net.outputs
    names = [node.name for node in case.net.nodes]
    with attach(model, RULES[rule]) as learner:

        def outputs() -> Iterator[dict[str, Tensor]]:
            for out in learner.stream(case.xs):
                assert out.shape[0] == case.xs.shape[1]
                yield {output: out}

        losses = []
        for t, values in enumerate(outputs()):
            losses.append(case.loss(values, t))
            if way == "b":
                losses.pop().backward()
        if way == "a":
            torch.stack(losses).sum().backward()
    return {
        ".".join([names[int(key.split(".")[0])], key.split(".")[-1]]): value for key, value in gradients(model).items()
    }


@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", [*SEQUENCES, "LI-sequence", "LIFAdExRefracRecurrent-sequence", "LIFCell-triangle"])
def test_sequential_state(name: str, way: str) -> None:
    case = readout_case(name) if name == "LI-sequence" else neuron_case(name, "spikes")
    found = stream_of_sequential_state(case, as_sequential_state(case.net), "paper", way)
    assert_same(found, reference(case, RULES["paper"]).grads)


def lifted_case() -> Case:
    """A convolution and a flattening that Norse's Lift runs step by step, between sequence modules."""
    p = {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_th": 0.75}

    def build(seed: int) -> Case:
        rng = generator(seed)
        params = {"conv.weight": weight((2, 3, 3, 3), rng, 8.0), "conv.bias": bias(2, rng, 8.0)}
        params |= {"fc.weight": weight((3, 8), rng, 8.0), "fc.bias": bias(3, rng, 8.0)}
        nodes = (
            Node("conv", "Conv2d", ("x",)),
            Node("lif1", "LIF", ("conv",), p),
            Node("flat", "Flatten", ("lif1",)),
            Node("fc", "Linear", ("flat",)),
            Node("lif2", "LIF", ("fc",), p),
        )
        return Case("lifted", Net(nodes, params, ("lif2",)), spike_input((5, 2, 3, 4, 4), rng))

    return settle(build)


@pytest.mark.parametrize("way", ["a", "b"])
def test_lifted_layers(way: str) -> None:
    case = lifted_case()
    plain = as_sequential_state(case.net)
    lifted = [norse.Lift(module) if index in (0, 2) else module for index, module in enumerate(plain)]
    found = stream_of_sequential_state(case, norse.SequentialState(*lifted), "default", way)
    assert_same(found, reference(case, RULES["default"]).grads)
