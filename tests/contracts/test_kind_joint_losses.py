"""Whether a step is supervised is settled when it runs: joint losses of sequences, and resets before backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right, copied, members, sgd
from tests.contracts.networks import RULE, Deep, Explicit, Hidden, LinearReadout, NorseCells, build, labels, spikes

NETWORKS = {
    "hidden": Hidden,
    "explicit": Explicit,
    "norse": NorseCells,
    "plain readout": LinearReadout,
}


class Sequence(NamedTuple):
    """Inputs, and what ``reset()`` is told."""

    x: Tensor
    begin: dict[str, Any]


def ended(*ends: int) -> Tensor:
    return torch.tensor(ends)


SHORT, LONG, THIRD = spikes(6, seed=1), spikes(10, seed=2), spikes(7, seed=3)


class Member(NamedTuple):
    """Sequences whose losses are added up, and how the learner is made."""

    sequences: tuple[Sequence, ...]
    options: dict[str, Any]


MEMBERS = {
    "the shorter one last": Member((Sequence(LONG, {}), Sequence(SHORT, {})), {"supervise_last": 3}),
    "three sequences": Member((Sequence(SHORT, {}), Sequence(LONG, {}), Sequence(THIRD, {})), {"supervise_last": 2}),
    "lengths announced with each reset": Member(
        (Sequence(SHORT, {"num_steps": 6}), Sequence(LONG, {"num_steps": 10})), {"supervise_last": 3}
    ),
    "samples that end at other steps in each": Member(
        (
            Sequence(SHORT, {"num_steps": 6, "lengths": ended(6, 5, 4, 3, 6, 5)}),
            Sequence(spikes(6, seed=4), {"num_steps": 6, "lengths": ended(3, 4, 5, 6, 3, 4)}),
        ),
        {"supervise_last": 2},
    ),
    "one with lengths, one without": Member(
        (Sequence(SHORT, {"num_steps": 6, "lengths": ended(6, 5, 4, 3, 6, 5)}), Sequence(LONG, {"num_steps": 10})),
        {"supervise_last": 2},
    ),
    "random steps": Member(
        (Sequence(SHORT, {"num_steps": 6}), Sequence(LONG, {"num_steps": 10}), Sequence(THIRD, {"num_steps": 7})),
        {"supervise_random": 2},
    ),
}


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    state, record = None, []
    for step in x:
        output, state = net(step, state)
        record.append(output)
    return torch.stack(record)


def on_all_steps(record: Tensor) -> Tensor:
    """The learner is left to drop those that are not supervised."""
    return sum((cross_entropy(output, labels()) for output in record), torch.zeros(()))


def train(kind: Callable[..., nn.Module], member: Member, *, joint: bool, **options: Any) -> Gradients:
    net = build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE, **member.options, **options)
    total = torch.zeros(())
    for number, sequence in enumerate(member.sequences):
        torch.manual_seed(number)  # of the steps that are drawn
        learner.reset(**sequence.begin)
        loss = on_all_steps(outputs(net, sequence.x))
        if joint:
            total = total + loss
        elif loss.requires_grad:
            loss.backward()
    if joint:
        total.backward()
    return copied(net)


@pytest.mark.parametrize("kind", members(NETWORKS))
@pytest.mark.parametrize("member", members(MEMBERS))
def test_the_sum_of_losses_gives_what_one_backward_per_sequence_gives(kind, member):
    want = train(kind, member, joint=False)
    assert_right(train(kind, member, joint=True), want)


@pytest.mark.parametrize("signal", ["dfa", "sign_dfa"])
def test_the_same_with_direct_feedback(signal):
    member = Member((Sequence(SHORT, {}), Sequence(LONG, {})), {"supervise_last": 3})
    want = train(Deep, member, joint=False, learning_signal=signal, feedback_seed=0)
    assert_right(train(Deep, member, joint=True, learning_signal=signal, feedback_seed=0), want)


@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_distance_between_the_outputs_of_two_sequences(kind):
    """A contrastive loss; the reference has one backward per sequence, with what the loss is worth for its outputs."""

    def begun() -> tuple[nn.Module, STLLRLearner]:
        net = build(kind)
        return net, STLLRLearner(net, sgd(net), rule=RULE, supervise_last=3)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one.mean(0) - other[-3:].sum(0)).square().sum()

    net, learner = begun()
    first = outputs(net, SHORT)
    learner.reset()
    second = outputs(net, LONG)
    errors = torch.autograd.grad(
        distance(a := first.detach().requires_grad_(), b := second.detach().requires_grad_()), (a, b)
    )
    distance(first, second).backward()

    reference, learner = begun()
    for x, worth in zip((SHORT, LONG), errors, strict=True):
        learner.reset()
        record = outputs(reference, x)
        (record * worth).sum().backward()
    assert_right(copied(net), copied(reference))


def evaluation(net: nn.Module, learner: STLLRLearner) -> None:
    net.eval()
    outputs(net, THIRD)
    net.train()


def next_sequence(net: nn.Module, learner: STLLRLearner) -> None:
    learner.reset()
    outputs(net, THIRD)


def next_length(net: nn.Module, learner: STLLRLearner) -> None:
    learner.reset(num_steps=7, lengths=ended(1, 2, 3, 4, 5, 6))


def by_itself(net: nn.Module, learner: STLLRLearner) -> None:
    """A new sequence that shows itself: states of zeros, or None."""
    utils.reset(net)
    outputs(net, THIRD[:2])


BETWEEN = {
    "reset": lambda net, learner: learner.reset(),
    "reset of some samples": lambda net, learner: learner.reset(torch.tensor([True, False] * 3)),
    "reset that announces another length": next_length,
    "the next sequence": next_sequence,
    "a next sequence that begins by itself": by_itself,
    "an evaluation": evaluation,
    "zero_grad": lambda net, learner: learner.zero_grad(),
    "nothing": lambda net, learner: None,
}


@pytest.mark.parametrize("announced", [False, True], ids=["length unknown", "length known"])
@pytest.mark.parametrize("kind", [Hidden, NorseCells])
@pytest.mark.parametrize("between", members(BETWEEN))
def test_what_comes_between_forward_and_backward_changes_nothing(kind, between, announced):
    def train(between: Callable[[nn.Module, STLLRLearner], None]) -> Gradients:
        net = build(kind)
        learner = STLLRLearner(net, sgd(net), rule=RULE, supervise_last=3)
        learner.reset(num_steps=10 if announced else None)
        loss = on_all_steps(outputs(net, LONG))
        between(net, learner)
        loss.backward()
        return copied(net)

    assert_right(train(between), train(BETWEEN["nothing"]))


@pytest.mark.parametrize("kind", members(NETWORKS))
@pytest.mark.parametrize(
    "options", [{"supervise_last": 3}, {"supervise_random": 3, "num_steps": 10}], ids=["last", "random"]
)
def test_a_step_that_the_scaler_skipped_leaves_nothing_behind(kind, options):
    """The order of many scripts: forward, zero_grad, backward, step. The first batch's loss overflows."""

    def train(overflow: bool) -> Gradients:
        net = build(kind)
        learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        for number, x in enumerate([spikes(10, seed=9), LONG] if overflow else [LONG]):
            utils.reset(net)
            learner.reset()
            torch.manual_seed(5)
            if "supervise_random" in options:
                learner.reset(num_steps=10)
            loss = on_all_steps(outputs(net, x))
            learner.zero_grad()
            scaler.scale(loss * (float("inf") if overflow and not number else 1.0)).backward()
            if overflow and not number:
                scaler.step(learner)
                scaler.update(1.0)
        return copied(net)

    assert_right(train(True), train(False))
