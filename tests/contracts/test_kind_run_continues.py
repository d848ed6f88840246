"""run(continue_from=...) goes on with its sequence or is an error: never with another's traces and membranes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import Gradients, assert_right, copied, members, sgd
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 12, 4, 6, 5, 2


def inputs(seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "norse": lambda: norse.SequentialState(
        nn.Linear(IN, N), norse.LIFCell(parameters()), nn.Linear(N, OUT), norse.LICell()
    ),
    "norse recurrent": lambda: norse.SequentialState(
        norse.LIFRecurrentCell(IN, N, parameters()), nn.Linear(N, OUT), norse.LICell()
    ),
    "hidden states": lambda: nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT)),
    "hidden states of two kinds": lambda: nn.Sequential(
        nn.Linear(IN, N),
        snn.Synaptic(0.8, 0.9, init_hidden=True),
        nn.Linear(N, N),
        snn.Leaky(0.9, init_hidden=True),
        nn.Linear(N, OUT),
    ),
}


def loss(output: Any, y: Any) -> Tensor:
    return output.square().sum()


def parts(kind: Callable[[], nn.Module], between: Callable[..., Any], window: int, **options: Any) -> Gradients:
    """The gradient of the second half."""
    net = build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
    x = inputs()
    first = learner.run(net, x[: T // 2], None, loss, window=window)
    between(learner, net)
    learner.zero_grad()
    learner.run(net, x[T // 2 :], None, loss, window=window, continue_from=first)
    return copied(net)


def nothing(learner: STLLRLearner, net: nn.Module) -> None:
    learner.step()


def reset_twice(learner: STLLRLearner, net: nn.Module) -> None:
    learner.step()
    learner.reset()


def another(learner: STLLRLearner, net: nn.Module) -> None:
    learner.run(net, inputs(1)[:4], None, loss, window=2)


def another_by_hand(learner: STLLRLearner, net: nn.Module) -> None:
    learner.reset()
    for x in inputs(1)[:3]:
        net(x)


def streamed(learner: STLLRLearner, net: nn.Module) -> None:
    learner.reset()
    for _ in learner.stream(inputs(1)[:3]):
        pass


ENDS = {
    "step": nothing,
    "reset": lambda learner, net: learner.reset(),
    "a reset that announces a length": lambda learner, net: learner.reset(num_steps=6),
    "step and reset": reset_twice,
    "gradients thrown away": lambda learner, net: learner.zero_grad(),
    "another run": another,
    "another sequence by hand": another_by_hand,
    "a stream": streamed,
}


@pytest.mark.parametrize("end", members(ENDS))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_sequence_that_has_ended_does_not_go_on(kind, end):
    with pytest.raises(STLLRError):
        parts(kind, end, 3)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_sequence_that_was_not_ended_goes_on(kind, window):
    net = build(kind)
    STLLRLearner(net, sgd(net), rule=RULE, reset_after_step=False)
    state, half = None, []
    keeps = isinstance(net, nn.Sequential) and not isinstance(net, norse.SequentialState)
    for t, x in enumerate(inputs()):
        if t == T // 2:
            half = [value.clone() for value in copied(net).values()]
        output, state = (net(x), None) if keeps else net(x, state)
        output.square().sum().backward()
    want = {name: value - before for (name, value), before in zip(copied(net).items(), half, strict=True)}
    assert_right(parts(kind, nothing, window, reset_after_step=False), want)


def test_a_result_of_another_learner_or_none_at_all():
    net = build(NETWORKS["norse"])
    one = STLLRLearner(net, sgd(net), rule=RULE)
    result = one.run(net, inputs()[:4], None, loss)
    one.detach()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    with pytest.raises(STLLRError):
        learner.run(net, inputs()[4:], None, loss, continue_from=result)
