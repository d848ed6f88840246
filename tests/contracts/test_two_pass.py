"""``two_pass()`` is exact for losses that mix time steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import StateError, STLLRLearner
from stllr_plugin.nn import SequenceDropout
from tests.contracts.meter import MemoryMeter, collector_off
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Explicit,
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
    values,
)

T = 6
ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "of-the-count": lambda outputs: cross_entropy(outputs.sum(0), labels()),
    "of-the-maximum": lambda outputs: cross_entropy(outputs.max(0).values, labels()),
    "of-the-mean": lambda outputs: cross_entropy(outputs.mean(0), labels()),
    "of-the-last-step": lambda outputs: cross_entropy(outputs[-1], labels()),
    "of-products-over-time": lambda outputs: (outputs[1:] * outputs[:-1]).mean() + outputs.std(0).mean(),
}


def one_backward(kind: Any, loss_fn: Callable[[Tensor], Tensor], **options: Any) -> dict[str, Tensor]:
    looping = Looping(build(kind))
    STLLRLearner(looping.net, rule=RULE, **options)
    loss_fn(looping(spikes(T))).backward()
    return gradients(looping.net)


@ALL
@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("signal", ["bp", "dfa"])
def test_it_equals_one_backward_at_the_end(kind, loss_fn, signal):
    options = {"learning_signal": signal, "feedback_seed": 0}
    looping = Looping(build(kind))
    learner = STLLRLearner(looping.net, rule=RULE, **options)
    loss = learner.two_pass(looping.net, loss_fn, lambda: looping(spikes(T)))
    assert_close(gradients(looping.net), one_backward(kind, loss_fn, **options))
    with torch.no_grad():
        torch.testing.assert_close(loss, loss_fn(Looping(build(kind))(spikes(T))))
    assert not loss.requires_grad


@pytest.mark.parametrize("place", ["lif2", "net"])
def test_a_loop_outside_of_the_model(place):
    """forward() is any function: here the caller's own loop over a model of one step, with states passed by hand."""
    net = build(Explicit)
    learner = STLLRLearner(net, rule=RULE)

    def forward() -> tuple[Tensor, Tensor]:
        state, spk, mem = None, [], []
        for step in spikes(T):
            output, state = net(step, state)
            spk.append(output)
            mem.append(state[2])
        return torch.stack(spk), torch.stack(mem)

    def loss_fn(record: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(record[0].sum(0), labels()) + cross_entropy(record[1].max(0).values, labels())

    learner.two_pass(net.lif2 if place == "lif2" else "lif2", loss_fn, forward)
    other = build(Explicit)
    STLLRLearner(other, rule=RULE)
    net, expected = other, gradients(net)
    loss_fn(forward()).backward()
    assert_close(expected, gradients(other))


@ALL
def test_several_sequences_in_training(kind):
    def train(two_pass: bool) -> dict[str, Tensor]:
        looping = Looping(build(kind))
        learner = STLLRLearner(looping, torch.optim.SGD(looping.parameters(), lr=0.1), rule=RULE)
        for seed in range(3):
            learner.zero_grad()
            if two_pass:
                learner.two_pass(looping.net, LOSSES["of-the-count"], lambda seed=seed: looping(spikes(T, seed=seed)))
            else:
                LOSSES["of-the-count"](looping(spikes(T, seed=seed))).backward()
            learner.step()
        return values(looping.net)

    assert_close(train(True), train(False), 1e-5)


@ALL
def test_it_goes_on_from_the_states_and_traces_before(kind):
    """Two passes over the second half of a sequence equal one backward over it."""

    def second_half(two_pass: bool) -> dict[str, Tensor]:
        net = build(kind)
        learner = STLLRLearner(net, rule=RULE)
        start = None
        with torch.enable_grad():
            for step in spikes(3, seed=4):
                _, start = net(step, start)

        def forward() -> Tensor:
            state, outputs = list(start) if isinstance(start, list) else start, []
            for step in spikes(T):
                output, state = net(step, state)
                outputs.append(output)
            return torch.stack(outputs)

        if two_pass:
            learner.two_pass(net, LOSSES["of-the-count"], forward)
        else:
            LOSSES["of-the-count"](forward()).backward()
        return gradients(net)

    assert_close(second_half(True), second_half(False))


class Noisy(nn.Module):
    """Dropout in each step, dropout over the sequence, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.lif1 = (
            nn.Linear(INPUTS, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            snn.Leaky(0.9, init_hidden=True),
        )
        self.dropout, self.sequence_dropout = nn.Dropout(0.3), SequenceDropout(0.3)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        hidden = self.lif1(self.norm(self.fc1(self.sequence_dropout(x))))
        return self.lif2(self.fc2(self.dropout(hidden))), None


def noisy(sequences: int, two_pass: bool) -> tuple[nn.Module, list[float], Tensor]:
    net = Noisy()
    looping = Looping(net)
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.1), rule=RULE)
    losses = []
    for seed in range(sequences):
        learner.zero_grad()
        x = spikes(T, seed=seed)
        if two_pass:
            losses.append(learner.two_pass(net, LOSSES["of-the-count"], lambda x=x: looping(x)).item())
        else:
            loss = LOSSES["of-the-count"](looping(x))
            loss.backward()
            losses.append(loss.item())
        learner.step()
    return net, losses, torch.rand(3)


def test_dropout_and_batch_norm_are_as_in_one_pass():
    """Also the random numbers that are drawn afterwards, and the running statistics, which count each step once."""
    once, losses, then = noisy(1, two_pass=False)
    twice, losses2, then2 = noisy(1, two_pass=True)
    assert losses2 == pytest.approx(losses)
    expected = {name: value for name, value in gradients(once).items() if name != "fc1.bias"}  # norm takes it out
    assert_close({name: gradients(twice)[name] for name in expected}, expected, 1e-5)
    for (name, found), (_, wanted) in zip(twice.named_buffers(), once.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    assert twice.norm.num_batches_tracked == T
    assert torch.equal(then2, then)


def test_each_sequence_has_its_own_dropout_mask():
    _, losses, then = noisy(4, two_pass=False)
    _, losses2, then2 = noisy(4, two_pass=True)
    assert losses2 == pytest.approx(losses, rel=1e-4)
    assert torch.equal(then2, then)


def test_a_forward_that_does_not_repeat_itself_is_an_error():
    looping, generator = Looping(build(Hidden)), random.Random(0)
    learner = STLLRLearner(looping.net, rule=RULE)

    def forward() -> Tensor:
        return looping(spikes(T, seed=generator.randrange(1000)))

    with pytest.raises(
        StateError, match=r"second pass differs from the first at step \d+\. forward\(\) must give the same"
    ):
        learner.two_pass(looping.net, LOSSES["of-the-count"], forward)


@pytest.mark.parametrize("steps", [(T, T - 1), (T - 1, T)], ids=["shorter", "longer"])
def test_passes_of_different_length_are_an_error(steps):
    looping, lengths = Looping(build(Hidden)), iter(steps)
    learner = STLLRLearner(looping.net, rule=RULE)
    with pytest.raises(StateError, match=r"second pass"):
        learner.two_pass(looping.net, LOSSES["of-the-count"], lambda: looping(spikes(next(lengths))))


def test_a_loss_that_does_not_depend_on_the_module_is_an_error():
    looping = Looping(build(Hidden))
    learner = STLLRLearner(looping.net, rule=RULE)
    with pytest.raises(StateError, match=r"does not depend on the outputs of the given Leaky"):
        learner.two_pass("lif2", lambda outputs: torch.ones(()), lambda: looping(spikes(T)))


@pytest.mark.parametrize("in_pass", [1, 2])
def test_an_error_inside_leaves_the_learner_working(in_pass):
    net = build(Hidden)
    looping = Looping(net)
    learner = STLLRLearner(net, rule=RULE)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    calls = []

    def forward() -> Tensor:
        calls.append(1)
        if len(calls) == in_pass:
            raise ZeroDivisionError
        return looping(spikes(T))

    with pytest.raises(ZeroDivisionError):
        learner.two_pass(net, LOSSES["of-the-count"], forward)
    assert learner.enabled
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert torch.is_grad_enabled()
    learner.reset()
    net.zero_grad()
    run_steps(net, spikes(T), labels())
    assert_same(gradients(net), trained_gradients(Hidden, spikes(T), labels()))


@pytest.mark.parametrize("kind", [Hidden, Explicit, LinearReadout])
def test_it_needs_the_same_memory_for_any_length_but_for_the_outputs(kind):
    net = build(kind)
    looping = Looping(net)
    learner = STLLRLearner(net, rule=RULE)

    def peak(steps: int) -> int:
        learner.reset()
        x = spikes(steps)
        with collector_off(), MemoryMeter([x]) as meter:
            learner.two_pass(net, LOSSES["of-the-count"], lambda: looping(x))
        return meter.peak

    peak(3)
    outputs = 4 * CLASSES * len(labels())
    assert peak(110) - peak(10) <= 100 * 6 * outputs  # kept: outputs, gradients, the caller's list and stack
    assert 100 * 6 * outputs < 100 * 4 * HIDDEN * len(labels()) * 3  # a graph would hold several hidden layers a step


def test_with_supervise_last():
    looping = Looping(build(Hidden))
    learner = STLLRLearner(looping.net, rule=RULE, supervise_last=2, num_steps=T)
    learner.two_pass(
        looping.net, lambda outputs: cross_entropy(outputs[-2:].sum(0), labels()), lambda: looping(spikes(T))
    )
    expected = one_backward(Hidden, lambda outputs: cross_entropy(outputs[-2:].sum(0), labels()))
    assert_close(gradients(looping.net), expected)


def test_as_an_optimizer():
    looping = Looping(build(Hidden))
    learner = STLLRLearner(looping, adam(looping), rule=RULE)
    before = values(looping)
    learner.two_pass(looping.net, LOSSES["of-the-count"], lambda: looping(spikes(T)))
    learner.step()
    assert all(not torch.equal(value, before[name]) for name, value in values(looping).items())


def test_a_disabled_learner_refuses():
    looping = Looping(build(Hidden))
    learner = STLLRLearner(looping.net, rule=RULE)
    learner.disable()
    with pytest.raises(StateError, match=r"disabled; call learner.enable\(\)"):
        learner.two_pass(looping.net, LOSSES["of-the-count"], lambda: looping(spikes(T)))
    assert not learner.enabled


def test_a_running_sum_counts_one_of_the_two_passes() -> None:
    norse = pytest.importorskip("norse.torch")

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif, self.counter = nn.Linear(4, 3), norse.LIFBoxCell(), norse.RegularizationCell()
            nn.init.constant_(self.fc.weight, 10.0)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for step in x:
                y, state = self.lif(self.fc(step), state)
                outputs.append(self.counter(y, state)[0])
            return torch.stack(outputs)

    net, x = Counted(), torch.ones(6, 2, 4)
    STLLRLearner(net, rule=RULE).two_pass(net.counter, torch.sum, lambda: net(x))
    with torch.no_grad():
        spikes = Counted().eval()(x).sum()
    assert spikes > 0
    assert net.counter.state == spikes
