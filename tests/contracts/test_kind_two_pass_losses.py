"""A loss of two_pass() that depends on more than the named module: its whole gradient arrives, or an error says so."""

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
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 8, 6, 6, 8, 3


def inputs() -> Tensor:
    return 2 * (torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def labels() -> Tensor:
    return torch.arange(B) % OUT


class Record(NamedTuple):
    """[T, ...] of everything there is."""

    out: Tensor
    out_membrane: Tensor
    hidden: Tensor
    hidden_membrane: Tensor


class Snn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(IN, N), snn.Leaky(0.9), nn.Linear(N, OUT), snn.Leaky(0.9)

    def forward(self, x: Tensor) -> Record:
        a, b = self.lif1.reset_mem(), self.lif2.reset_mem()
        rows = []
        for step in x:
            s, a = self.lif1(self.fc1(step), a)
            o, b = self.lif2(self.fc2(s), b)
            rows.append((o, b, s, a))
        self.kept = Record(*(torch.stack(column) for column in zip(*rows, strict=True)))
        return self.kept


class Norse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(IN, N), norse.LIFCell(parameters()), nn.Linear(N, OUT)
        self.lif2 = norse.LIFCell(parameters())

    def forward(self, x: Tensor) -> Record:
        a = b = None
        rows = []
        for step in x:
            s, a = self.lif1(self.fc1(step), a)
            o, b = self.lif2(self.fc2(s), b)
            rows.append((o, b.v, s, a.v))
        self.kept = Record(*(torch.stack(column) for column in zip(*rows, strict=True)))
        return self.kept


Loss = Callable[[nn.Module, Record], Tensor]


def task(net: nn.Module, record: Record) -> Tensor:
    return cross_entropy(record.out.sum(0), labels())


class Member(NamedTuple):
    """The module that is named, and the loss."""

    named: str
    loss: Loss


MEMBERS = {
    "a penalty on hidden spikes": Member("lif2", lambda net, r: task(net, r) + r.hidden.sum(0).square().mean()),
    "a hidden membrane": Member("lif2", lambda net, r: task(net, r) + r.hidden_membrane.mean().square()),
    "hidden spikes times the output": Member(
        "lif2", lambda net, r: (r.out.sum(0).mean(1) * r.hidden.sum((0, 2))).sum()
    ),
    "hidden spikes alone": Member("lif2", lambda net, r: r.hidden.sum(0).square().mean()),
    "the last layer, with a hidden one named": Member("lif1", task),
    "both, with the hidden one named": Member("lif1", lambda net, r: task(net, r) + r.hidden.sum(0).square().mean()),
    "what the network has kept": Member("lif2", lambda net, r: task(net, r) + net.kept.hidden.sum(0).square().mean()),
    "a plain layer is named": Member("fc2", lambda net, r: task(net, r) + r.hidden.sum(0).square().mean()),
    "weight decay": Member("lif2", lambda net, r: task(net, r) + sum(p.square().sum() for p in net.parameters())),
    "weight decay of the hidden layer": Member("lif2", lambda net, r: task(net, r) + net.fc1.weight.square().sum()),
}


def begun(kind: Callable[[], nn.Module]) -> tuple[nn.Module, STLLRLearner]:
    net = build(kind)
    return net, STLLRLearner(net, sgd(net), rule=RULE)


def one_backward(kind: Callable[[], nn.Module], loss: Loss) -> Gradients:
    net, learner = begun(kind)
    loss(net, net(inputs())).backward()
    return {name: value for name, value in copied(net).items() if value.any()}


def two_pass(kind: Callable[[], nn.Module], named: str, loss: Loss) -> Gradients:
    net, learner = begun(kind)
    learner.two_pass(net.get_submodule(named), lambda record: loss(net, record), lambda: net(inputs()))
    return copied(net)


@pytest.mark.parametrize("kind", [Snn, Norse])
@pytest.mark.parametrize("member", members(MEMBERS))
def test_all_of_the_gradient_or_an_error(member, kind):
    assert_right_or_refused(lambda: two_pass(kind, *member), one_backward(kind, member.loss))


@pytest.mark.parametrize("kind", [Snn, Norse])
def test_a_loss_on_the_named_module_alone(kind):
    loss: dict[str, Loss] = {"spikes": task}
    if kind is Snn:
        loss["both"] = lambda net, r: task(net, r) + r.out_membrane.max(0).values.square().mean()
    for one in loss.values():
        assert_right(two_pass(kind, "lif2", one), one_backward(kind, one))


@pytest.mark.parametrize("kind", [Snn, Norse])
def test_several_modules_may_be_named(kind):
    """A loss on both layers, and both are named."""

    def loss(net: nn.Module, record: Record) -> Tensor:
        return task(net, record) + record.hidden.sum(0).square().mean()

    net, learner = begun(kind)
    learner.two_pass([net.lif1, net.lif2], lambda record: loss(net, record), lambda: net(inputs()))
    assert_right(copied(net), one_backward(kind, loss))


def test_parameters_outside_of_the_network():
    """A temperature that the loss function learns."""
    found: list[Any] = []
    for way in ("a", "d"):
        net, learner = begun(Snn)
        temperature = torch.tensor(1.5, requires_grad=True)

        def loss(record: Record, temperature: Tensor = temperature) -> Tensor:
            return cross_entropy(record.out.sum(0) / temperature, labels())

        if way == "a":
            loss(net(inputs())).backward()
        else:
            learner.two_pass(net.lif2, loss, lambda net=net: net(inputs()))
        found.append({"temperature": temperature.grad, "fc1": net.fc1.weight.grad})
    assert found[1]["temperature"] is not None
    assert_right(found[1], found[0])
