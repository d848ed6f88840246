"""The learner's work grows with the number of steps and no faster, whatever graph stands around its part.

Work is counted as lines of the package that run, which needs no clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import stllr_plugin
from stllr_plugin import STLLRLearner
from tests.contracts.kinds import members, sgd
from tests.contracts.networks import RULE

PACKAGE = str(Path(stllr_plugin.__file__).parent)
B, IN, N, OUT = 3, 4, 5, 2


def lines_run(work: Callable[[], None]) -> int:
    """How many lines of the package are run."""
    count = 0

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return lines

    def calls(frame: FrameType, event: str, _: Any) -> Any:
        return lines if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class Head(nn.Module):
    """The part that the learner trains."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.l1 = nn.Linear(N, N), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.l2 = nn.Linear(N, OUT), snn.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.fc2(self.l1(self.fc1(x))))[1]


class Behind(nn.Module):
    """Something with a memory, trained by BPTT, in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.ann = Head(), nn.ModuleList([nn.GRUCell(IN, N), nn.LSTMCell(IN, N), nn.Linear(IN, N)])


class GRU(Behind):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[0](x, state)
        return self.head(state), state


class LSTM(Behind):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[1](x, state)
        return self.head(state[0]), state


class RunningSum(Behind):
    """An embedding that adds up."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[2](x) + (0.0 if state is None else state)
        return self.head(torch.tanh(state)), state


class Stacked(Behind):
    """Two recurrent cells above each other, and a way around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.GRUCell(N, N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        one, two = (None, None) if state is None else state
        one = self.ann[0](x, one)
        two = self.upper(one, two)
        return self.head(one + two), (one, two)


class PastExcluded(Behind):
    """A spiking layer that is left alone and trains through time."""

    def __init__(self) -> None:
        super().__init__()
        self.left_fc, self.left_lif = nn.Linear(IN, N), snn.Leaky(0.9)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, state = self.left_lif(self.left_fc(x), self.left_lif.reset_mem() if state is None else state)
        return self.head(spikes), state


class Between(Behind):
    """A skip connection from a recurrent cell into the last layer of the head."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[0](x, state)
        spikes = self.head.l1(self.head.fc1(state.detach()))
        return self.head.l2(self.head.fc2(spikes + state))[1], state


class ReadBy(Behind):
    """A recurrent cell that reads the head, and is trained through time by a loss at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.GRUCell(OUT, OUT)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.reader(self.head(self.ann[2](x)), state)
        return state, state


class Direct(Behind):
    """The neuron's input is a layer of the learner's at each step, on the input itself, plus something else."""

    def __init__(self) -> None:
        super().__init__()
        self.head.fc1 = nn.Linear(IN, N)

    def into(self, current: Tensor) -> Tensor:
        return self.head.l2(self.head.fc2(self.head.l1(current)))[1]


class IntoNeuron(Direct):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[0](x, state)
        return self.into(self.head.fc1(x) + state), state


class SumIntoNeuron(Direct):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[2](x) + (0.0 if state is None else state)
        return self.into(self.head.fc1(x) + state), state


class Gain(Direct):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[0](x, state)
        return self.into(self.head.fc1(x) * torch.sigmoid(state)), state


class GainBehind(Behind):
    """What a recurrent cell says multiplies what the head gives out."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.ann[0](x, state)
        return self.head(self.ann[2](x)) * torch.sigmoid(state[:, :OUT]), state


class LeakySum(Behind):
    """The output is a leaky sum over time of what the head gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.head(self.ann[2](x)) + (0.0 if state is None else torch.sigmoid(self.leak) * state)
        return state, state


class WholeSequence(Behind):
    """A causal convolution over time, once for the sequence; its graph is that of all steps."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        steps = torch.unbind(torch.cumsum(self.ann[2](x), 0))
        return torch.stack([self.head(step) for step in steps]), None


ABOVE = (Between, ReadBy, IntoNeuron, SumIntoNeuron, Gain, GainBehind, LeakySum)
KINDS = (GRU, LSTM, RunningSum, Stacked, PastExcluded, *ABOVE)
NETWORKS = {kind.__name__: kind for kind in KINDS}


def left_alone(net: nn.Module) -> list[str]:
    """What the learner shall not train: everything but the head."""
    return [name for name, _ in net.named_modules() if name and not name.startswith("head")]


def sequence(kind: Callable[[], nn.Module], steps: int, way: str) -> Callable[[], None]:
    torch.manual_seed(0)
    net = kind()
    learner = STLLRLearner(net, sgd(net), rule=RULE, exclude=left_alone(net))

    def one(steps: int) -> None:
        state, total = None, torch.zeros(())
        for x in torch.rand(steps, B, IN):
            output, state = net(x, state)
            total = total + output.square().sum()
        if kind is ReadBy:
            total = output.square().sum()
        total.backward()
        learner.step()

    one(3)  # what is found out once
    return lambda: one(steps)


@pytest.mark.parametrize("kind", members(NETWORKS))
def test_four_times_as_many_steps_are_four_times_the_work(kind):
    short, long = (lines_run(sequence(kind, steps, "a")) for steps in (10, 40))
    assert long < 5 * short, f"{short} lines for 10 steps, {long} for 40"


def test_a_graph_of_the_whole_sequence_before_the_loop():
    def work(steps: int) -> Callable[[], None]:
        torch.manual_seed(0)
        net = WholeSequence()
        learner = STLLRLearner(net, sgd(net), rule=RULE, exclude=left_alone(net))

        def one(steps: int) -> None:
            net(torch.rand(steps, B, IN), None)[0].square().sum().backward()
            learner.step()

        one(3)
        return lambda: one(steps)

    short, long = lines_run(work(10)), lines_run(work(40))
    assert long < 5 * short, f"{short} lines for 10 steps, {long} for 40"


@pytest.mark.parametrize("kind", [GRU, RunningSum])
def test_a_longer_graph_in_front_costs_nothing(kind):
    """As much work as with the input detached."""

    def work(detached: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        net = kind()
        head = net.head
        learner = STLLRLearner(head, sgd(net), rule=RULE)
        forward = head.forward
        if detached:
            head.forward = lambda x: forward(x.detach())

        def one() -> None:
            state, total = None, torch.zeros(())
            for x in torch.rand(30, B, IN):
                output, state = net(x, state)
                total = total + output.square().sum()
            total.backward()
            learner.step()

        one()
        return one

    assert lines_run(work(False)) < 1.3 * lines_run(work(True))
