"""Spike functions that the learner does not know are noticed on the way, and refused with the adapter named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch.functional.lif import lif_feed_forward_step
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 8, 4, 6, 6, 3


class Heaviside(torch.autograd.Function):
    """With the derivative of a triangle."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient * (1 - v.abs()).clamp(min=0)


class Sign(torch.autograd.Function):
    """Of a binarised network: it has no state, and passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Exact(torch.autograd.Function):
    """A function of one's own whose derivative is its own: no spikes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class Own(nn.Module):
    """A leaky neuron that the user wrote."""

    detached = True

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spike, self.v = spike, torch.zeros(())

    def begin(self) -> None:
        self.v = torch.zeros(())

    def forward(self, current: Tensor) -> Tensor:
        v = 0.9 * self.v + current
        spikes = self.spike(v - 1.0)
        self.v = v * (1 - spikes)
        if self.detached:
            self.v = self.v.detach()
        return spikes


class Undetached(Own):
    detached = False


class Stateless(Own):
    def forward(self, current: Tensor) -> Tensor:
        return self.spike(current - 0.5)


def straight_through(v: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * v)
    return soft + ((v > 0).float() - soft).detach()


SPIKES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "snnTorch's atan": surrogate.atan,
    "snnTorch's fast sigmoid": surrogate.fast_sigmoid,
    "an autograd function": lambda: Heaviside.apply,
    "Norse's": lambda: lambda v: norse.functional.threshold.superspike_fn(v, torch.tensor(100.0)),
    "straight through": lambda: straight_through,
}


class Net(nn.Module):
    """Two layers; ``make`` gives the neurons."""

    def __init__(
        self, first: nn.Module, second: nn.Module | None, around: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.fc1, self.l1, self.fc2 = nn.Linear(IN, N), first, nn.Linear(N, N)
        self.l2, self.out = second, nn.Linear(N, OUT)
        self.around = around or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Own):
                module.begin()
            if isinstance(module, snn.Leaky):
                module.reset_mem()
        record = []
        for step in x:
            hidden = self.fc2(self.around(self.l1(self.fc1(step))))
            record.append(self.out(hidden if self.l2 is None else self.l2(hidden)))
        return torch.stack(record)


def known() -> nn.Module:
    return snn.Leaky(0.9, init_hidden=True)


def train(net: nn.Module, way: str = "a") -> None:
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    x = 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        learner.zero_grad()
        if way == "online":
            with learner.online(net.out, lambda output: output.square().sum()):
                net(x)
        else:
            cross_entropy(net(x).sum(0), torch.arange(B) % OUT).backward()
        learner.step()


def assert_refused_with_the_way_out(make: Callable[[], nn.Module], way: str = "a") -> None:
    with pytest.raises(STLLRError, match="(?i)adapter"):
        train(build(make), way)


@pytest.mark.parametrize("kind", [Own, Undetached, Stateless])
@pytest.mark.parametrize("spike", members(SPIKES))
def test_between_two_layers(spike, kind):
    assert_refused_with_the_way_out(lambda: Net(kind(spike()), known()))


@pytest.mark.parametrize("kind", [Own, Undetached])
@pytest.mark.parametrize("spike", members(SPIKES))
def test_behind_the_last_layer(spike, kind):
    assert_refused_with_the_way_out(lambda: Net(known(), kind(spike())))


@pytest.mark.parametrize("kind", [Own, Undetached])
def test_in_a_network_with_no_other_neuron(kind):
    assert_refused_with_the_way_out(lambda: Net(kind(surrogate.atan()), kind(surrogate.atan())))


@pytest.mark.parametrize("function", [Heaviside.apply, Sign.apply])
def test_within_the_models_forward(function):
    """No module of its own."""
    assert_refused_with_the_way_out(lambda: Net(nn.Identity(), known(), lambda x: function(x - 0.5)))


def test_between_spikes_and_the_next_layer():
    """Behind a known neuron: its spikes are made binary once more."""
    assert_refused_with_the_way_out(lambda: Net(known(), known(), lambda x: Heaviside.apply(x - 0.5)))


@pytest.mark.parametrize("spike", members(SPIKES))
def test_in_the_loop_within_forward(spike):
    assert_refused_with_the_way_out(lambda: Net(Own(spike()), known()), "online")


def norse_function(current: Tensor) -> Tensor:
    """Norse's functional step, as written in a forward of the user's."""
    rest = norse.LIFFeedForwardState(v=torch.zeros_like(current), i=10 * current)
    spikes, _ = lif_feed_forward_step(current * 10, rest, norse.LIFParameters())
    return spikes


def test_a_functional_step_of_norse():
    assert_refused_with_the_way_out(lambda: Net(nn.Identity(), known(), norse_function))


HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "an exact function of one's own": Exact.apply,
    "a layer norm": lambda x: nn.functional.layer_norm(x, x.shape[1:]),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "max over pairs": lambda x: x.unflatten(1, (-1, 2)).amax(2).repeat_interleave(2, 1),
    "clamp": lambda x: x.clamp(0.0, 0.7),
    "dropout": lambda x: nn.functional.dropout(x, 0.3),
}


@pytest.mark.parametrize("place", ["before the neuron", "behind it"])
@pytest.mark.parametrize("function", members(HARMLESS))
def test_what_is_no_spike_is_let_through(function, place):
    """An ordinary function of the current or of the spikes."""

    class Applied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    if place == "behind it":
        train(build(lambda: Net(known(), known(), function)))
    else:
        train(build(lambda: Net(nn.Sequential(Applied(), known()), known())))
