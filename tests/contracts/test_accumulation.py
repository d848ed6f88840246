"""Gradients accumulate as in torch: micro-batches add up to the full batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.networks import (
    RULE,
    STEPPING,
    LinearReadout,
    Looping,
    assert_close,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
    values,
)

ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])
WAYS = pytest.mark.parametrize("way", ["a", "b"])


@ALL
@WAYS
@pytest.mark.parametrize("signal", ["bp", "dfa"])
def test_micro_batches_equal_the_full_batch(kind, way, signal):
    x, y = spikes(5, batch=7), labels(7)
    options = {"learning_signal": signal, "feedback_seed": 3}
    full = trained_gradients(kind, x, y, way=way, reduction="sum", options=options)
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, **options)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
        run_steps(net, x[:, rows], y[rows], way=way, reduction="sum")
        learner.reset()
    assert_close(gradients(net), full)


@ALL
def test_micro_batches_equal_the_full_batch_online(kind):
    x, y = spikes(5, batch=6), labels(6)
    full = trained_gradients(kind, x, y, reduction="sum")
    net = build(kind)
    looping = Looping(net)
    learner = STLLRLearner(looping, rule=RULE)
    for rows in (slice(0, 4), slice(4, 6)):
        with learner.online(net, lambda output, _, y=y[rows]: cross_entropy(output, y, reduction="sum")):
            looping(x[:, rows])
        learner.reset()
    assert_close(gradients(net), full)


@ALL
def test_several_sequences_before_one_step_equal_their_sum(kind):
    net, expected = build(kind), {}
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    for seed in range(3):
        single = trained_gradients(kind, spikes(4, seed=seed), labels(seed=seed))
        expected = {name: expected.get(name, 0) + gradient for name, gradient in single.items()}
        run_steps(net, spikes(4, seed=seed), labels(seed=seed))
        learner.reset()
    assert_close(gradients(net), expected)
    learner.step()
    learner.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


@WAYS
def test_an_earlier_gradient_in_grad_stays_part_of_the_sum(way):
    kind = STEPPING["snntorch-explicit-recurrent"]
    net, x, y = build(kind), spikes(4), labels()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    with STLLRLearner(net, rule=RULE):
        run_steps(net, x, y, way=way)
    assert_close(gradients(net), {n: 1 + g for n, g in trained_gradients(kind, x, y, way=way).items()})


def test_a_training_loop_with_accumulation_equals_one_with_large_batches():
    def train(pieces: int) -> dict[str, torch.Tensor]:
        net: nn.Module = build(STEPPING["snntorch-hidden"])
        learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), rule=RULE)
        for seed in range(3):
            x, y = spikes(4, seed=seed), labels(seed=seed)
            for rows in torch.arange(6).chunk(pieces):
                run_steps(net, x[:, rows], y[rows], reduction="sum")
                if rows[-1] != 5:
                    learner.reset()
            learner.step()
            learner.zero_grad()
        return values(net)

    assert_close(train(2), train(1))
