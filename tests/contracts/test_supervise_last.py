"""Only the last k steps teach, counted from the end of the sequence or from each sample's own end."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import RuleError, StateError, STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Hidden,
    LinearReadout,
    Looping,
    adam,
    assert_close,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
)

T, LAST = 7, 3


class RecurrentCalledTwice(nn.Module):
    """With reset_mechanism="zero" snnTorch calls the recurrent layer twice in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.RLeaky(0.9, linear_features=HIDDEN, reset_mechanism="zero", init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.lif2(self.fc2(self.lif1(self.fc1(x)))), None


class Siamese(nn.Module):
    """One synapse called on two inputs in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS // 2, HIDDEN), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        left, right = x.chunk(2, 1)
        return self.lif2(self.fc2(self.lif1(self.fc1(left) + 0.5 * self.fc1(right)))), None


KINDS = {**STEPPING, "linear-readout": LinearReadout, "called-twice": RecurrentCalledTwice, "siamese": Siamese}
ALL = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def by_way(kind: Any, way: str, x: Tensor, y: Tensor, begin: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """The gradients of one sequence, its loss on every step that can have one, summed over the batch."""
    net = build(kind)
    looping = Looping(net)
    learner = STLLRLearner(net, rule=RULE, **options)
    if begin:
        learner.reset(**begin)
    if way == "c":
        with learner.online(net, lambda output, _: cross_entropy(output, y, reduction="sum")):
            looping(x)
    elif way == "a":
        outputs = looping(x)
        sum(cross_entropy(output, y, reduction="sum") for output in outputs).backward()
    else:
        state = None
        for step in x:
            output, state = net(step, state)
            if output.requires_grad:
                cross_entropy(output, y, reduction="sum").backward()
    return gradients(net)


@ALL
@pytest.mark.parametrize("way", ["a", "b", "c"])
@pytest.mark.parametrize("signal", ["bp", "dfa"])
@pytest.mark.parametrize("told", ["to the learner", "to reset"])
def test_the_steps_before_teach_nothing(kind, way, signal, told):
    direct = {"learning_signal": signal, "feedback_seed": 1}
    x, y = spikes(T), labels()
    expected = trained_gradients(kind, x, y, supervised=range(T - LAST, T), reduction="sum", options=direct)
    options, begin = {**direct, "supervise_last": LAST}, {}
    (options if told == "to the learner" else begin)["num_steps"] = T
    assert_close(by_way(kind, way, x, y, begin, **options), expected)


@ALL
@pytest.mark.parametrize("signal", ["bp", "dfa"])
def test_one_backward_needs_no_length(kind, signal):
    direct = {"learning_signal": signal, "feedback_seed": 1}
    x, y = spikes(T), labels()
    expected = trained_gradients(kind, x, y, supervised=range(T - LAST, T), reduction="sum", options=direct)
    assert_close(by_way(kind, "a", x, y, {}, supervise_last=LAST, **direct), expected)


@ALL
def test_backward_at_the_supervised_steps_needs_no_length(kind):
    x, y = spikes(T), labels()
    supervised = range(T - LAST, T)
    expected = trained_gradients(kind, x, y, supervised=supervised)
    assert_same(trained_gradients(kind, x, y, supervised=supervised, options={"supervise_last": LAST}), expected)


@ALL
def test_outputs_of_the_steps_before_require_no_gradient(kind):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, supervise_last=LAST, num_steps=T)
    run_steps(net, spikes(T), labels(), supervised=[T - 1])  # shows which layers are readouts
    learner.reset()
    state, requires = None, []
    for step in spikes(T):
        output, state = net(step, state)
        requires.append(output.requires_grad)
    assert requires == [False] * (T - LAST) + [True] * LAST


@ALL
def test_supervising_more_steps_than_there_are_supervises_all(kind):
    x, y = spikes(3), labels()
    expected = trained_gradients(kind, x, y, reduction="sum")
    assert_close(by_way(kind, "a", x, y, {}, supervise_last=10, num_steps=3), expected)
    assert_close(by_way(kind, "a", x, y, {}, supervise_last=10), expected)


LENGTHS = torch.tensor([7, 3, 5, 1, 6, 7])


def each_alone(kind: Any, x: Tensor, y: Tensor, last: int | None, **options: Any) -> dict[str, Tensor]:
    parts = []
    for n, length in enumerate(LENGTHS.tolist()):
        supervised = range(0 if last is None else max(0, length - last), length)
        parts.append(
            trained_gradients(
                kind, x[:length, n : n + 1], y[n : n + 1], supervised=supervised, reduction="sum", options=options
            )
        )
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@ALL
@pytest.mark.parametrize("way", ["a", "b", "c"])
@pytest.mark.parametrize("last", [None, 1, LAST])
def test_lengths_equal_each_sample_trained_alone(kind, way, last):
    x, y = spikes(T), labels()
    expected = each_alone(kind, x, y, last)
    assert_close(by_way(kind, way, x, y, {"lengths": LENGTHS}, supervise_last=last), expected)
    with_length = {"lengths": LENGTHS, "num_steps": T}
    assert_close(by_way(kind, way, x, y, with_length, supervise_last=last), expected)


@pytest.mark.parametrize("way", ["a", "b"])
def test_lengths_under_direct_feedback(way):
    direct = {"learning_signal": "dfa", "feedback_seed": 1}
    x, y = spikes(T), labels()
    expected = each_alone(Hidden, x, y, LAST, **direct)
    assert_close(by_way(Hidden, way, x, y, {"lengths": LENGTHS}, supervise_last=LAST, **direct), expected)


def test_steps_that_no_sample_needs_keep_no_graph():
    net = build(Hidden)
    learner = STLLRLearner(net, rule=RULE, supervise_last=2)
    learner.reset(lengths=torch.tensor([5, 4, 6, 5, 5, 5]))
    assert [net(step)[0].requires_grad for step in spikes(6)] == [False, False, True, True, True, True]


def test_lengths_belong_to_one_sequence():
    net = build(Hidden)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE, supervise_last=LAST)
    learner.reset(lengths=LENGTHS)
    run_steps(net, spikes(T), labels(), way="a")
    learner.step()
    learner.zero_grad()
    run_steps(net, spikes(T), labels(), way="a")
    expected = trained_gradients(Hidden, spikes(T), labels(), supervised=range(T - LAST, T), way="a")
    assert_close(gradients(net), expected)


def test_the_length_may_change_from_batch_to_batch():
    net = build(Hidden)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE, supervise_last=LAST)
    for steps in (4, 9, 2, T):
        learner.reset(num_steps=steps)
        learner.zero_grad()
        run_steps(net, spikes(steps), labels(), way="a")
        learner.step()
    expected = trained_gradients(Hidden, spikes(T), labels(), supervised=range(T - LAST, T), way="a")
    assert_close(gradients(net), expected)


@pytest.mark.parametrize("announced", [{"lengths": LENGTHS}, {"num_steps": T}], ids=["lengths", "num_steps"])
def test_what_was_announced_survives_zero_grad(announced):
    """Also where gradients of the sequence before are thrown away, as after a step that a GradScaler skipped."""
    net = build(Hidden)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE, supervise_last=LAST)
    run_steps(net, spikes(4, seed=5), labels())
    learner.reset(**announced)
    learner.zero_grad()
    run_steps(net, spikes(T), labels(), way="a", reduction="sum")
    assert_close(gradients(net), by_way(Hidden, "a", spikes(T), labels(), announced, supervise_last=LAST))


@ALL
def test_a_sequence_longer_than_announced_is_an_error(kind):
    net = build(kind)
    STLLRLearner(net, rule=RULE, supervise_last=LAST, num_steps=4)
    with pytest.raises(StateError, match=r"runs step 5 of a sequence announced with num_steps=4") as caught:
        run_steps(net, spikes(5), labels(), supervised=range(1, 4))
    assert "learner.reset()" in str(caught.value)


@ALL
def test_lengths_of_another_batch_are_an_error(kind):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, supervise_last=LAST)
    learner.reset(lengths=torch.tensor([3, 4]))
    with pytest.raises(StateError, match="2 lengths for a batch of 6"):
        run_steps(net, spikes(4), labels(), supervised=[3])


@pytest.mark.parametrize("name", ["supervise_last", "num_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_counts_are_checked(name, value):
    net: nn.Module = build(Hidden)
    with pytest.raises(RuleError, match=f"{name}={value!r}: expected a positive number of time steps, or None"):
        STLLRLearner(net, adam(net), rule=RULE, **{name: value})
