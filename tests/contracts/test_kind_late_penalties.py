"""A loss on a layer's current is refused, or adds its plain gradient, whenever it begins: guards do not expire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 5, 4, 6, 5, 3


def inputs() -> Tensor:
    return torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.arange(B) % OUT


class Dense(nn.Module):
    """Gives its output and the current that is penalised."""

    penalised = "fc1"

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.l1 = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.l2 = nn.Linear(N, OUT), snn.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        current = self.fc1(x)
        return self.l2(self.fc2(self.l1(current)))[1], current, None


class LastCurrent(Dense):
    penalised = "fc2"

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        current = self.fc2(self.l1(self.fc1(x)))
        return self.l2(current)[1], current, None


class Conv(nn.Module):
    penalised = "fc1"

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.l1 = nn.Conv1d(1, 2, 3), snn.Leaky(0.9, init_hidden=True)
        self.fc2 = nn.Linear(2 * (IN - 2), OUT)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        current = self.fc1(x[:, None])
        return self.fc2(self.l1(current).flatten(1)), current, None


class Normed(Dense):
    """The penalty is on what lies behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(N, elementwise_affine=False)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        current = self.norm(self.fc1(x))
        return self.l2(self.fc2(self.l1(current)))[1], current, None


class Norse(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = norse.LIFCell(parameters()), norse.LICell()

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        a, b = (None, None) if state is None else state
        current = self.fc1(x)
        spikes, a = self.l1(current, a)
        membrane, b = self.l2(self.fc2(spikes), b)
        return membrane, current, (a, b)


class Member(NamedTuple):
    """A network, the batch and the step at which the penalty begins, and its size."""

    kind: Callable[[], nn.Module]
    batch: int = 2
    step: int = 0
    factor: float = 0.5
    way: str = "a"


MEMBERS = {
    "from the start": Member(Dense, 0),
    "in the second batch": Member(Dense, 1),
    "after twelve batches": Member(Dense, 12),
    "in the middle of a sequence": Member(Dense, 3, 2),
    "at the last step": Member(Dense, 3, T - 1),
    "with a backward at each step": Member(Dense, 4, way="b"),
    "on the last layer": Member(LastCurrent, 4),
    "on a convolution": Member(Conv, 4),
    "behind a norm": Member(Normed, 4),
    "norse": Member(Norse, 4),
    "a small one": Member(Dense, 4, factor=1e-3),
}


def train(member: Member, batches: int, begins: bool) -> Gradients:
    net = build(member.kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for batch in range(batches):
        learner.zero_grad()
        state, total = None, torch.zeros(())
        for t, step in enumerate(inputs()):
            output, current, state = net(step, state)
            loss = cross_entropy(output, labels())
            if begins and batch >= member.batch and (batch > member.batch or t >= member.step):
                loss = loss + member.factor * current.square().mean()
            total = total + loss
            if member.way == "b":
                loss.backward()
        if member.way == "a":
            total.backward()
        found = copied(net)
        learner.step()
    return found


def plain_gradient(member: Member) -> Gradients:
    """Of the penalty, through the penalised layer alone and whatever stands between it and the current."""
    net = build(member.kind)
    layer: nn.Module = getattr(net, member.kind.penalised)
    fed: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    state = None
    with torch.no_grad():
        for step in inputs():
            _, _, state = net(step, state)
    handle.remove()
    for x in fed[member.step :]:
        current = layer(x)
        (member.factor * (net.norm(current) if member.kind is Normed else current).square().mean()).backward()
    return {name: value for name, value in copied(net).items() if name.startswith(f"{member.kind.penalised}.weight")}


@pytest.mark.parametrize("member", members(MEMBERS))
def test_the_penalty_arrives_or_is_refused(member):
    """Compared with the penalty's own gradient, so that a small one counts as well."""
    without = train(member, member.batch + 1, False)

    def arrived() -> Gradients:
        found = train(member, member.batch + 1, True)
        return {name: found[name] - without[name] for name in want}

    want = plain_gradient(member)
    assert_right_or_refused(arrived, want, tolerance=0.02)
