"""run() takes windows only where nothing speaks against them, and its trial leaves everything as it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import StateError, STLLRWarning
from tests.contracts.kinds import assert_right, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 12, 4, 6, 8, 3


def data(quiet: int = 0) -> tuple[Tensor, Tensor]:
    x = 3 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))
    x[:quiet] = 0.0
    return x, torch.arange(B) % OUT


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.l1 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9, threshold=0.3, init_hidden=True)
        self.fc2 = nn.Linear(N, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.l1(self.fc1(x)))


class FrameNorm(Base):
    """Divides by the largest value of all samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / (x.amax() + 1e-6))


class Counter(Base):
    """A gain per time step, all equal at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.t = nn.Parameter(torch.ones(T)), 0

    def forward(self, x: Tensor) -> Tensor:
        current, self.t = self.gain[self.t] * self.fc1(x), self.t + 1
        return self.fc2(self.l1(current))


class PrivateCounter(Base):
    def __init__(self) -> None:
        super().__init__()
        self._t = 0

    def forward(self, x: Tensor) -> Tensor:
        self._t += 1
        return super().forward(x * (1.0 + 0.1 * self._t))


class Delay(Base):
    """The input of the step before, from a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.past: deque[Tensor] = deque(maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.past.append(x)
        return super().forward(self.past[0])


class Holder:
    """An object that is no module."""

    def __init__(self) -> None:
        self.last: Any = None


class InAnObject(Base):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def forward(self, x: Tensor) -> Tensor:
        before, self.holder.last = self.holder.last, x.detach()
        return super().forward(x if before is None or before.shape != x.shape else x + before)


def begin(net: nn.Module) -> None:
    for name, value in (("t", 0), ("_t", 0)):
        if name in net.__dict__:
            setattr(net, name, value)
    if isinstance(net, Delay):
        net.past.clear()
    if isinstance(net, InAnObject):
        net.holder.last = None


@pytest.mark.parametrize("quiet", [0, 6])
@pytest.mark.parametrize("kind", [FrameNorm, Counter, PrivateCounter, Delay, InAnObject])
def test_as_one_step_after_the_other(kind: Callable[[], nn.Module], quiet: int) -> None:
    x, y = data(quiet)
    net, reference = build(kind), build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    STLLRLearner(reference, sgd(reference), rule=RULE)
    begin(net)
    result = learner.run(net, x, y, cross_entropy, window=4)
    begin(reference)
    for step in x:
        cross_entropy(reference(step), y).backward()
    assert result.steps_because is not None
    assert_right(copied(net), copied(reference))


@pytest.mark.parametrize("kind", [Counter, Delay, InAnObject])
def test_the_trial_puts_everything_back(kind: Callable[[], nn.Module]) -> None:
    x, y = data()
    net = build(kind)
    seen: list[Any] = []
    net.register_forward_pre_hook(
        lambda module, args: seen.append((getattr(net, "t", 0), len(getattr(net, "past", ()))))
    )
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    begin(net)
    learner.run(net, x, y, cross_entropy, window=4)
    first = (0, 0)
    assert seen[-T] == first, "as the caller left it"


def test_plain_networks_keep_their_windows() -> None:
    x, y = data(6)
    net = build(Base)
    assert STLLRLearner(net, sgd(net), rule=RULE).run(net, x, y, cross_entropy, window=4).steps_because is None


def test_a_function_around_the_model_runs_step_by_step_and_leaves_nothing() -> None:
    x, y = data()
    net = build(Base)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for _ in range(3):
        assert "function of your own" in str(learner.run(lambda z: net(z), x, y, cross_entropy).steps_because)
    assert not learner.window_checks


def test_another_network_is_refused() -> None:
    x, y = data()
    net = build(Base)
    with pytest.raises(StateError, match="not the attached"):
        STLLRLearner(net, sgd(net), rule=RULE).run(build(Base), x, y, cross_entropy)


def test_a_switch_is_noticed_at_once() -> None:
    class Switched(Base):
        mixes = False

        def __init__(self) -> None:
            super().__init__()
            self.on = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / x.amax() if self.on else x)

    x, y = data()
    net = build(Switched)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    assert learner.run(net, x, y, cross_entropy).steps_because is None
    net.on = True
    assert learner.run(net, x, y, cross_entropy).steps_because is not None


def test_what_changes_later_is_found_by_trying_again() -> None:
    mixing = {"on": False}

    class Late(Base):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / x.amax() if mixing["on"] else x)

    x, y = data()
    net = build(Late)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    assert learner.run(net, x, y, cross_entropy).steps_because is None
    mixing["on"] = True
    with pytest.warns(STLLRWarning, match="step by step"):
        reasons = [learner.run(net, x, y, cross_entropy).steps_because for _ in range(20)]
    assert reasons[-1] is not None


@pytest.mark.parametrize("ended", members({"by step()": "step", "by reset()": "reset", "by another run": "run"}))
def test_going_on_with_a_sequence_that_has_ended(ended: str) -> None:
    x, y = data()
    net = build(Base)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    result = learner.run(net, x[:6], y, cross_entropy)
    if ended == "run":
        learner.run(net, x[:6], y, cross_entropy)
    else:
        getattr(learner, ended)()
    with pytest.raises(StateError, match="has ended"):
        learner.run(net, x[6:], y, cross_entropy, continue_from=result)
    with pytest.raises(StateError, match="continue_from=3"):
        learner.run(net, x[6:], y, cross_entropy, continue_from=3)
