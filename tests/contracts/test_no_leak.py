"""Attaching and detaching leaves nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest
from torch import nn

from stllr_plugin import STLLRLearner
from tests.contracts.meter import new_tensors
from tests.contracts.networks import RULE, STEPPING, Deep, adam, build, labels, run_steps, spikes

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


def hooks_of(net: nn.Module) -> int:
    return sum(
        len(table)
        for module in net.modules()
        for name, table in module.__dict__.items()
        if "hooks" in name and isinstance(table, dict)
    )


@pytest.mark.parametrize(("kind", "signal"), [
    *((kind, "bp") for kind in STEPPING.values()), (Deep, "dfa"),
], ids=[*STEPPING, "direct-feedback"])  # fmt: skip
def test_fifty_cycles_leave_no_learner_no_hook_and_no_tensor(kind, signal):
    net, x, y = build(kind), spikes(2), labels()
    optimizer = adam(net)
    learners = []

    def cycle() -> None:
        learner = STLLRLearner(net, optimizer, rule=RULE, learning_signal=signal)
        run_steps(net, x, y)
        learner.step()
        learner.detach()
        learners.append(weakref.ref(learner))

    cycle()
    gc.collect()
    gc.freeze()
    for _ in range(50):
        cycle()
        net.zero_grad()
    gc.collect()
    tensors = new_tensors()
    gc.unfreeze()
    assert [learner() for learner in learners] == [None] * 51
    assert hooks_of(net) == 0
    assert tensors < 50


@ALL
def test_a_model_dies_with_its_learner(kind):
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    run_steps(net, spikes(3), labels())
    learner.step()
    found = [weakref.ref(net), weakref.ref(learner), *map(weakref.ref, net.parameters())]
    for module in net.modules():
        if hasattr(type(module), "instances"):  # snnTorch's own list of all neurons
            type(module).instances.clear()
    del net, learner, module
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)
