"""Graphs of earlier steps that the user's code keeps alive are told of, once, with the layer's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import members, sgd, told
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 11, 4, 6, 5, 3


def inputs() -> Tensor:
    return 2 * (torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def labels() -> Tensor:
    return torch.arange(B) % OUT


class Monitored(nn.Module):
    """``monitor`` sees the first layer's spikes and membrane at each step, and keeps what it likes in a dictionary."""

    def __init__(self, monitor: Callable[[dict[str, Any], Tensor, Tensor], None]) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(IN, N), snn.Leaky(0.9), nn.Linear(N, OUT), snn.Leaky(0.9)
        self.monitor, self.kept = monitor, {}

    def begin(self) -> None:
        self.kept.clear()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif1.reset_mem(), self.lif2.reset_mem()) if state is None else state
        spikes, a = self.lif1(self.fc1(x), a)
        self.monitor(self.kept, spikes, a)
        _, b = self.lif2(self.fc2(spikes), b)
        return b, (a, b)

    def forward(self, x: Tensor) -> Tensor:
        state, record = None, []
        for step in x:
            output, state = self.step(step, state)
            record.append(output)
        return torch.stack(record)


class MonitoredNorse(Monitored):
    def __init__(self, monitor: Callable[[dict[str, Any], Tensor, Tensor], None]) -> None:
        super().__init__(monitor)
        self.lif1, self.lif2 = norse.LIFCell(parameters()), norse.LICell()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (None, None) if state is None else state
        spikes, a = self.lif1(self.fc1(x), a)
        self.monitor(self.kept, spikes, a.v)
        membrane, b = self.lif2(self.fc2(spikes), b)
        return membrane, (a, b)


def summed(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["sum"] = kept.get("sum", 0.0) + spikes.sum()


def listed(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept.setdefault("spikes", []).append(spikes)


def membranes(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept.setdefault("membranes", []).append(membrane)


def largest(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["largest"] = membrane if "largest" not in kept else torch.maximum(kept["largest"], membrane)


def smoothed(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["rate"] = 0.9 * kept.get("rate", 0.0) + 0.1 * spikes.mean(0)


def every_fifth(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["t"] = kept.get("t", -1) + 1
    if kept["t"] % 5 == 0:
        kept.setdefault("rates", []).append(spikes.mean())


KEEPING = {
    "a sum": summed,
    "a list of spikes": listed,
    "a list of membranes": membranes,
    "the largest membrane": largest,
}
KEEPING |= {"a moving average": smoothed, "each fifth step": every_fifth}


def detached(keep: Callable[..., None]) -> Callable[..., None]:
    return lambda kept, spikes, membrane: keep(kept, spikes.detach(), membrane.detach())


def numbers(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["sum"] = kept.get("sum", 0.0) + spikes.sum().item()


def the_last(kept: dict[str, Any], spikes: Tensor, membrane: Tensor) -> None:
    kept["last"] = spikes, membrane


HARMLESS = {name: detached(keep) for name, keep in KEEPING.items()} | {"numbers": numbers, "the last step": the_last}


def at_each_step(net: Monitored, learner: STLLRLearner) -> None:
    state = None
    for step in inputs():
        output, state = net.step(step, state)
        cross_entropy(output, labels()).backward()


def online(net: Monitored, learner: STLLRLearner) -> None:
    def loss(*output: Any) -> Tensor:
        membrane = output[0] if isinstance(net, MonitoredNorse) else output[1]
        return cross_entropy(membrane, labels())

    with learner.online(net.lif2, loss):
        net(inputs())


def two_pass(net: Monitored, learner: STLLRLearner) -> None:
    def forward() -> Tensor:
        net.begin()
        return net(inputs())

    learner.two_pass(net.lif2, lambda record: cross_entropy(record.mean(0), labels()), forward)


WAYS = {"a backward at each step": at_each_step, "online": online, "two_pass": two_pass}


def warnings_of(kind: Callable[[Any], Monitored], monitor: Callable[..., None], way: Callable[..., None]) -> list[str]:
    net = build(lambda: kind(monitor))
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    with told() as texts:
        for _ in range(2):
            net.begin()
            learner.zero_grad()
            way(net, learner)
            learner.step()
    return texts


@pytest.mark.parametrize("way", members(WAYS))
@pytest.mark.parametrize("kind", [Monitored, MonitoredNorse])
@pytest.mark.parametrize("monitor", members(KEEPING))
def test_one_warning_names_the_layer_whose_steps_are_kept(monitor, kind, way):
    texts = warnings_of(kind, monitor, way)
    assert len(texts) == 1, texts
    assert "lif1" in texts[0]


@pytest.mark.parametrize("way", members(WAYS))
@pytest.mark.parametrize("monitor", members(HARMLESS))
def test_what_keeps_no_graph_is_left_in_peace(monitor, way):
    assert not warnings_of(Monitored, monitor, way)


@pytest.mark.parametrize("monitor", members(KEEPING))
def test_one_backward_at_the_end_keeps_all_steps_anyway(monitor):
    def at_the_end(net: Monitored, learner: STLLRLearner) -> None:
        sum((cross_entropy(output, labels()) for output in net(inputs())), torch.zeros(())).backward()

    assert not warnings_of(Monitored, monitor, at_the_end)
