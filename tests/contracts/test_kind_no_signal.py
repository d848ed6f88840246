"""A layer that could learn and gets nothing in a whole sequence is named: a warning or an error, and the report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import members, sgd, told
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 8, 4, 6, 5, 3


class Chain(nn.Module):
    """Two layers and a readout; what lies between the two is the matter."""

    nothing_for = "fc1"

    def __init__(self) -> None:
        super().__init__()
        hidden = {"init_hidden": True}
        self.fc1, self.lif1 = nn.Linear(IN, N), snn.Leaky(0.9, **hidden)
        self.fc2, self.lif2 = nn.Linear(N, N), snn.Leaky(0.9, **hidden)
        self.out, self.past = nn.Linear(N, OUT), deque(maxlen=4)

    def begin(self) -> None:
        self.past.clear()

    def between(self, spikes: Tensor) -> Tensor:
        return spikes

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lif2(self.fc2(self.between(self.lif1(self.fc1(x))))))


class LastSteps(Chain):
    """The spikes of the step before."""

    def between(self, spikes: Tensor) -> Tensor:
        late = self.past[-1] if self.past else torch.zeros_like(spikes)
        self.past.append(spikes.detach())
        return late


class ThreeSteps(Chain):
    """An axonal delay of three steps."""

    def between(self, spikes: Tensor) -> Tensor:
        self.past.append(spikes.detach())
        return self.past[0] if len(self.past) == 4 else torch.zeros_like(spikes)


class Detached(Chain):
    def between(self, spikes: Tensor) -> Tensor:
        return spikes.detach()


class Rounded(Chain):
    """Counts, through numpy."""

    def between(self, spikes: Tensor) -> Tensor:
        return torch.as_tensor(spikes.detach().numpy() * 1.0)


class Compared(Chain):
    """A comparison has no derivative."""

    def between(self, spikes: Tensor) -> Tensor:
        return (spikes > 0.5).float()


class ALookUp(Chain):
    def between(self, spikes: Tensor) -> Tensor:
        return torch.eye(2)[spikes.long()][..., 1]


class NoGrad(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            spikes = self.lif1(self.fc1(x))
        return self.out(self.lif2(self.fc2(spikes)))


class DeadBranch(Chain):
    """A layer whose output nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.lif3 = nn.Linear(N, N), snn.Leaky(0.9, init_hidden=True)

    nothing_for = "aside"

    def between(self, spikes: Tensor) -> Tensor:
        self.lif3(self.aside(spikes))
        return spikes


class TimesZero(Chain):
    """A gate that is closed: the gradient is zero, and there is one."""

    nothing_for = ""

    def between(self, spikes: Tensor) -> Tensor:
        return 0.0 * spikes


class LaterStates(Chain):
    """Feedback that arrives at the next step, as the only way on."""

    def forward(self, x: Tensor) -> Tensor:
        late = self.past[-1] if self.past else x.new_zeros(len(x), N)
        self.past.append(self.lif1(self.fc1(x)).detach())
        return self.out(self.lif2(self.fc2(late)))


class Norse(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.lif1, self.lif2, self.state = norse.LIFCell(parameters()), norse.LIFCell(parameters()), (None, None)

    def begin(self) -> None:
        super().begin()
        self.state = (None, None)

    def forward(self, x: Tensor) -> Tensor:
        spikes, a = self.lif1(self.fc1(x), self.state[0])
        late = self.past[-1] if self.past else torch.zeros_like(spikes)
        self.past.append(spikes.detach())
        spikes, b = self.lif2(self.fc2(late), self.state[1])
        self.state = (a, b)
        return self.out(spikes)


NETWORKS: dict[str, Callable[[], Chain]] = {
    kind.__name__: kind
    for kind in (LastSteps, ThreeSteps, Detached, Rounded, Compared, ALookUp, NoGrad, DeadBranch, LaterStates, Norse)
}


def train(
    kind: Callable[[], Chain], sequences: int = 3, way: str = "a", **options: Any
) -> tuple[list[str], STLLRLearner]:
    net = build(kind)
    with told() as texts:
        learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
        for seed in range(sequences):
            learner.zero_grad()
            net.begin()
            total = torch.zeros(())
            for t, x in enumerate(2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed))):
                loss = net(x).square().sum()
                if t < T - options.get("supervise_last", T):
                    continue
                total = total + (loss if way == "a" else loss.detach())
                if way == "b":
                    loss.backward()
            if way == "a":
                total.backward()
            learner.step()
    return texts, learner


@pytest.mark.parametrize(
    "how",
    members(
        {"one backward": {"way": "a"}, "a backward at each step": {"way": "b"}, "the last steps": {"supervise_last": 3}}
    ),
)
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_the_layer_that_gets_nothing_is_named_once(kind, how):
    texts, _ = train(kind, **how)
    assert len(texts) == 1, texts
    assert kind.nothing_for in texts[0]


@pytest.mark.parametrize("kind", [Chain, TimesZero])
def test_nothing_is_said_where_a_gradient_arrives(kind):
    assert not train(kind)[0]


def test_nothing_is_said_of_frozen_layers():
    class Frozen(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.fc1.requires_grad_(False)

    assert not train(Frozen)[0]


def test_nothing_is_said_where_the_layers_below_learn_from_feedback():
    """With direct feedback no signal has to pass between the layers."""
    assert not train(LastSteps, learning_signal="dfa", output="out", feedback_seed=0)[0]


@pytest.mark.parametrize("kind", [LastSteps, Detached, DeadBranch])
def test_without_an_optimizer_the_next_sequence_tells(kind):
    net = build(kind)
    with told() as texts:
        learner = STLLRLearner(net, rule=RULE)
        for _ in range(3):
            net.begin()
            for x in 2 * torch.rand(T, B, IN):
                net(x).square().sum().backward()
            learner.reset()
    assert len(texts) == 1 and kind.nothing_for in texts[0], texts


class OnlyAtTheEnd(Chain):
    """A head that is run at the last step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(N, OUT), 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        spikes = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return self.out(spikes) if self.steps % T else self.out(spikes) + self.head(spikes)


@pytest.mark.parametrize("kind", [OnlyAtTheEnd, Chain, LastSteps])
def test_updates_within_a_sequence_are_not_taken_for_its_end(kind):
    net = build(kind)
    with told() as texts:
        learner = STLLRLearner(net, sgd(net), rule=RULE, reset_after_step=False)
        for _ in range(3):
            learner.reset()
            net.begin()
            for x in 2 * torch.rand(T, B, IN):
                learner.zero_grad()
                net(x).square().sum().backward()
                learner.step()
    assert len(texts) == (kind is LastSteps), texts


@pytest.mark.parametrize("kind", [LastSteps, Detached, DeadBranch])
def test_the_report_shows_it(kind):
    """In words or figures, in the line of the edge."""
    texts, learner = train(kind, 1)
    row = next((line for line in str(learner.report()).splitlines() if f"{kind.nothing_for}->" in line), "")
    other = next(line for line in str(learner.report()).splitlines() if "fc2->" in line)
    assert any(word in row.lower() for word in ("nothing", "no signal", "none")), row
    assert not any(word in other.lower() for word in ("nothing", "no signal", "none")), other


def test_spikingjellys_delay():
    layer = pytest.importorskip("spikingjelly.activation_based.layer")

    class Delayed(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.delay = layer.Delay(delay_steps=2)

        def begin(self) -> None:
            self.delay.reset()

        def between(self, spikes: Tensor) -> Tensor:
            return self.delay(spikes.detach())

    texts, _ = train(Delayed)
    assert len(texts) == 1 and "fc1" in texts[0], texts
