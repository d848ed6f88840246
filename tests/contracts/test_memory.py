"""Memory does not grow with the number of time steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.meter import MemoryMeter, collector_off, new_tensors
from tests.contracts.networks import (
    CLASSES,
    RULE,
    STEPPING,
    Explicit,
    Hidden,
    LinearReadout,
    Looping,
    NorseCells,
    build,
    labels,
    spikes,
)

SHORT, LONG = 18, 306  # steps that nobody has used yet wait in groups of eight: as many in the last group of both
ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])


class Alive(NamedTuple):
    """What is alive at the end of a sequence, and the most that was at any time."""

    tensors: int
    storages: int
    bytes: int
    peak: int


def measure(run: Callable[[list[Tensor]], object], steps: int) -> Alive:
    """What a function of the input of each step leaves alive; ``run`` returns what the caller's loop would hold."""
    x = [step.clone() for step in spikes(steps)]
    with collector_off():
        with MemoryMeter(x) as meter:
            kept = run(x)
            alive = Alive(new_tensors(), meter.storages, meter.bytes, meter.peak)
        del kept
    return alive


def way_b(net: nn.Module, supervised: int | None = None) -> Callable[[list[Tensor]], object]:
    y = labels()

    def run(x: list[Tensor]) -> object:
        state = None
        for t, step in enumerate(x):
            output, state = net(step, state)
            if supervised is None or t >= len(x) - supervised:
                cross_entropy(output, y).backward()
        return output, state

    return run


def prepared(kind: Callable[[], nn.Module], **options) -> tuple[nn.Module, STLLRLearner]:
    """A network that was measured before, so that states, traces and gradients exist already."""
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, **options)
    learner.reset(num_steps=8)
    measure(way_b(net, supervised=2), 8)
    learner.reset()
    return net, learner


@ALL
def test_backward_at_each_step_needs_the_same_memory_for_any_length(kind):
    net, learner = prepared(kind)
    short = measure(way_b(net), SHORT)
    learner.reset()
    assert measure(way_b(net), LONG) == short


def test_direct_feedback_needs_the_same_memory_for_any_length():
    net, learner = prepared(Explicit, learning_signal="dfa")
    short = measure(way_b(net), SHORT)
    learner.reset()
    assert measure(way_b(net), LONG) == short


@pytest.mark.parametrize("kind", [Explicit, STEPPING["norse-recurrent"], LinearReadout])
def test_online_needs_the_same_memory_for_any_length_but_for_the_outputs(kind):
    net, y = build(kind), labels()
    looping = Looping(net)
    learner = STLLRLearner(looping, rule=RULE)

    def online(x: list[Tensor]) -> None:
        with learner.online(net, lambda output, state: cross_entropy(output, y)):
            looping(x)

    def run(steps: int) -> Alive:
        learner.reset()
        return measure(online, steps)

    run(3)
    short, long = run(SHORT), run(LONG)
    assert long[:3] == short[:3]
    outputs = 2 * 4 * CLASSES * len(y) * (LONG - SHORT)  # float32: the list in Looping.forward, and its stack
    assert long.peak - short.peak <= outputs


@pytest.mark.parametrize("kind", [Explicit, NorseCells], ids=["explicit", "norse"])
def test_steps_without_backward_keep_no_graph(kind):
    net, learner = prepared(kind)
    short = measure(way_b(net, supervised=2), SHORT)
    learner.reset()
    assert measure(way_b(net, supervised=2), LONG) == short


@ALL
def test_one_backward_at_the_end_keeps_the_graph_of_the_supervised_steps_only(kind):
    net, learner = prepared(kind, supervise_last=5)
    y = labels()

    def run(x: list[Tensor]) -> object:
        state, total = None, torch.zeros(())
        for t, step in enumerate(x):
            output, state = net(step, state)
            if t >= len(x) - 5:
                total = total + cross_entropy(output, y)
        return total, state

    learner.reset(num_steps=20)
    short = measure(run, 20)
    learner.reset(num_steps=200)
    assert measure(run, 200) == short


def keep_outputs(net: nn.Module) -> Callable[[list[Tensor]], object]:
    def run(x: list[Tensor]) -> object:
        state, outputs = None, []
        for step in x:
            output, state = net(step, state)
            outputs.append(output)
        return outputs, state

    return run


@ALL
def test_outputs_kept_from_unsupervised_steps_hold_nothing_else(kind):
    net, learner = prepared(kind, supervise_last=5)
    learner.reset(num_steps=20)
    short = measure(keep_outputs(net), 20)
    learner.reset(num_steps=120)
    long = measure(keep_outputs(net), 120)
    assert long.tensors - short.tensors == 100
    assert long.bytes - short.bytes == 100 * 4 * CLASSES * len(labels())


@pytest.mark.parametrize("kind", [Hidden, NorseCells], ids=["hidden", "norse"])
def test_the_meter_sees_a_graph_of_all_steps(kind):
    """So the tests above could fail."""
    net, learner = prepared(kind)
    short = measure(keep_outputs(net), 10)
    learner.reset()
    assert measure(keep_outputs(net), 40).bytes > 3 * short.bytes
