"""A learner and its network are gone when nobody holds them, and nothing that a call was given outlives it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import members, sgd
from tests.contracts.meter import collector_off
from tests.contracts.networks import RULE, parameters

T, B, IN, N, OUT = 4, 2, 4, 4, 2


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT))


def recurrent() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, N), snn.RLeaky(0.9, linear_features=N, init_hidden=True), nn.Linear(N, OUT))


def of_norse() -> nn.Module:
    return norse.SequentialState(nn.Linear(IN, N), norse.LIFCell(parameters()), nn.Linear(N, OUT))


NETWORKS = {"hidden states": hidden, "recurrent": recurrent, "norse": of_norse}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def square(output: Any, y: Any = None) -> Tensor:
    return first(output).square().sum()


def nothing(net: nn.Module, learner: STLLRLearner) -> None:
    pass


def a_batch(net: nn.Module, learner: STLLRLearner) -> None:
    state = None
    for x in torch.rand(T, B, IN):
        output = net(x) if isinstance(net[1], snn.SpikingNeuron) else net(x, state)
        state = None if isinstance(net[1], snn.SpikingNeuron) else output[1]
        square(output).backward()
    learner.step()


def half_a_batch(net: nn.Module, learner: STLLRLearner) -> None:
    square(net(torch.rand(B, IN))).backward()


def without_backward(net: nn.Module, learner: STLLRLearner) -> None:
    net(torch.rand(B, IN))


def run(net: nn.Module, learner: STLLRLearner) -> None:
    learner.run(net, torch.rand(T, B, IN), None, square, window=2)
    learner.step()


def stream(net: nn.Module, learner: STLLRLearner) -> None:
    for output in learner.stream(torch.rand(T, B, IN)):
        square(output).backward()


def broken_stream(net: nn.Module, learner: STLLRLearner) -> None:
    for output in learner.stream(torch.rand(T, B, IN)):
        square(output).backward()
        break


def online(net: nn.Module, learner: STLLRLearner) -> None:
    with learner.online(net, lambda *output: output[0].square().sum()):
        a_batch_of_calls(net)


def a_batch_of_calls(net: nn.Module) -> Tensor:
    return torch.stack([first(net(x)) for x in torch.rand(T, B, IN)])


def two_pass(net: nn.Module, learner: STLLRLearner) -> None:
    x = torch.rand(T, B, IN)
    learner.two_pass(net[2], lambda output: output.square().sum(), lambda: torch.stack([first(net(s)) for s in x]))


def an_error(net: nn.Module, learner: STLLRLearner) -> None:
    try:
        net(torch.rand(B, IN + 1))
    except (RuntimeError, STLLRError):
        pass


USES = {
    use.__name__: use
    for use in (
        nothing,
        a_batch,
        half_a_batch,
        without_backward,
        run,
        stream,
        broken_stream,
        online,
        two_pass,
        an_error,
    )
}


def made_and_left(kind: Callable[[], nn.Module], use: Callable[..., None], end: str) -> list[weakref.ref[Any]]:
    net = kind()
    optimizer = torch.optim.Adam(net.parameters())
    learner = STLLRLearner(net, optimizer, rule=RULE)
    use(net, learner)
    if end == "detached":
        learner.detach()
    return [weakref.ref(thing) for thing in (net, net[0], net[0].weight, learner, optimizer)]


TRIED = [(hidden, use, end) for use in USES.values() for end in ("left attached",)]
TRIED += [(hidden, use, "detached") for use in (nothing, a_batch, run)]
TRIED += [(kind, use, "left attached") for kind in (recurrent, of_norse) for use in (nothing, a_batch)]


@pytest.mark.parametrize("kind, use, end", TRIED, ids=["-".join((k.__name__, u.__name__, e)) for k, u, e in TRIED])
def test_forty_of_forty_are_gone(kind, use, end):
    """snnTorch keeps the neurons in a list of its own; they must not keep the rest."""
    left = [made_and_left(kind, use, end) for _ in range(5 if use is not nothing else 40)]
    gc.collect()
    alive = [sum(ref() is not None for ref in row) for row in zip(*left, strict=True)]
    assert alive == [0] * 5, f"alive of {len(left)}: network, layer, weight, learner, optimizer {alive}"


@pytest.mark.parametrize("use", [nothing, a_batch, run])
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_without_the_garbage_collector_once_detached(kind, use):
    made_and_left(kind, use, "detached")  # whatever is imported or compiled once
    with collector_off():
        left = made_and_left(kind, use, "detached")
        alive = [ref() is not None for ref in left]
    assert not any(alive), alive


class Held:
    """Something that a closure holds."""


def closures(net: nn.Module, learner: STLLRLearner, way: str) -> list[weakref.ref[Held]]:
    """Twelve sequences, each with functions of its own."""
    left = []
    for _ in range(12):
        held = Held()
        left.append(weakref.ref(held))

        def loss(output: Any, y: Any = None, held: Held = held) -> Tensor:
            return first(output).square().sum()

        def model(x: Tensor, held: Held = held) -> Any:
            return net(x)

        x = torch.rand(T, B, IN)
        if way == "run, its model":
            learner.run(model, x, None, square, window=2)
        elif way == "run, its loss":
            learner.run(net, x, None, loss, window=2)
        elif way == "stream":
            for output in learner.stream(x, model=model):
                square(output).backward()
        elif way == "online":
            with learner.online(net, loss):
                a_batch_of_calls(net)
        else:
            learner.two_pass(net[2], loss, lambda x=x, held=held: torch.stack([first(net(s)) for s in x]))
        learner.step()
        learner.zero_grad()
    return left


@pytest.mark.parametrize("way", ["run, its model", "run, its loss", "stream", "online", "two_pass"])
def test_functions_that_were_given_to_a_call(way):
    net = hidden()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    left = closures(net, learner, way)
    gc.collect()
    assert sum(ref() is not None for ref in left) <= 1


@pytest.mark.parametrize("use", [a_batch, run, stream, online, two_pass])
def test_inputs_and_outputs_of_past_sequences(use):
    """What is alive after seven sequences is what was alive after two."""
    net = hidden()
    learner = STLLRLearner(net, sgd(net), rule=RULE)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    counts = []
    for sequences in (2, 5):
        for _ in range(sequences):
            use(net, learner)
            learner.zero_grad()
            learner.reset()
        counts.append(tensors())
    assert counts[1] <= counts[0], counts


def test_a_learner_made_anew_for_each_trial():
    """A search over settings: one model, many learners."""
    net = hidden()
    left = []
    for _ in range(10):
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        a_batch(net, learner)
        learner.detach()
        left.append(weakref.ref(learner))
    del learner
    gc.collect()
    assert not any(ref() for ref in left)
