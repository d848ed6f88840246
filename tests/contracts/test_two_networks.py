"""Two networks side by side do not touch each other's state."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    RULE,
    STEPPING,
    Hidden,
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

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


def everything(net: nn.Module, learner: STLLRLearner) -> dict[str, Tensor]:
    """Hidden states, traces, weights and gradients."""
    found = {f"buffer {n}": b.clone() for n, b in net.named_buffers()}
    found |= {
        f"{edge} {side}": t for edge, both in learner.traces().items() for side, t in both.items() if t is not None
    }
    return found | values(net) | {f"grad {n}": g for n, g in gradients(net).items()}


@ALL
@pytest.mark.parametrize("act", ["reset", "step", "detach", "reset-mask", "zero_grad", "disable"])
def test_what_is_done_to_one_leaves_the_other_bit_for_bit(kind, act):
    one, other = build(kind), build(kind, seed=1)
    first, second = (STLLRLearner(net, adam(net), rule=RULE) for net in (one, other))
    for net in (one, other):
        run_steps(net, spikes(4), labels())
    before = everything(other, second)
    if act == "reset-mask":
        first.reset(torch.arange(6) < 3)
    else:
        getattr(first, act)()
    assert_same(everything(other, second), before)
    assert second.enabled


@pytest.mark.parametrize(
    ("kind", "neighbour"),
    list(product(STEPPING.values(), repeat=2)),
    ids=["+".join(names) for names in product(STEPPING, repeat=2)],
)
def test_interleaved_training_equals_training_alone(kind, neighbour):
    one, other = build(kind), build(neighbour, seed=1)
    learners = [STLLRLearner(net, rule=RULE) for net in (one, other)]
    states = [None, None]
    x, z = spikes(5), spikes(5, seed=7)
    for t in range(5):
        outputs = []
        for i, (net, data) in enumerate(((one, x), (other, z))):
            output, states[i] = net(data[t], states[i])
            outputs.append(output)
        sum(cross_entropy(output, labels()) for output in outputs).backward()
        if t == 2:
            learners[1].reset()
            states[1] = None
    assert_same(gradients(one), trained_gradients(kind, x, labels()))


def test_a_network_that_feeds_another_is_trained_through_it():
    """Two attached networks in a row are one network: the signal passes through the second at the same step."""

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = Hidden(), nn.Sequential(nn.Linear(CLASSES, 3))

        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            return self.above(self.below.lif2(self.below.fc2(self.below.lif1(self.below.fc1(x))))[0]), None

    y = torch.randint(3, (6,), generator=torch.Generator().manual_seed(0))
    whole, parts = build(Row), build(Row)
    with STLLRLearner(whole, rule=RULE):
        run_steps(whole, spikes(4), y)
    with STLLRLearner(parts.below, rule=RULE):
        run_steps(parts, spikes(4), y)
    assert_close(gradients(parts), gradients(whole))


def test_a_network_that_is_not_attached_keeps_its_states():
    one, alone = build(Hidden), build(Hidden, seed=1)
    learner = STLLRLearner(one, adam(one), rule=RULE)
    with torch.no_grad():
        alone(spikes(1)[0])
    before = alone.lif1.mem.clone()
    run_steps(one, spikes(3), labels())
    learner.step()
    learner.reset()
    assert before.any()
    assert torch.equal(alone.lif1.mem, before)
