"""Guards never expire, and refuse nothing that is right, whatever lies between a synapse and its neurons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import StateError
from tests.contracts.kinds import members, sgd
from tests.contracts.networks import RULE, build

T, B, N = 4, 3, 6


class Net(nn.Module):
    """Gives its output and the tensor that a penalty may be on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.fc2 = nn.Linear(N, N), nn.Linear(N, N)
        self.norm = nn.BatchNorm1d(N)
        self.lif, self.lif2 = snn.Leaky(0.9, init_hidden=True), snn.Synaptic(0.6, 0.8, init_hidden=True)
        self.out = nn.Linear(N, 2)

    def current(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def between(self, current: Tensor) -> Tensor:
        return current

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.current(x)
        return self.out(self.lif(self.between(current))), current


class Normed(Net):
    def between(self, current: Tensor) -> Tensor:
        return self.norm(current)


class Residual(Net):
    def between(self, current: Tensor) -> Tensor:
        return self.norm(current) + current


class Scaled(Net):
    def between(self, current: Tensor) -> Tensor:
        return 2 * nn.functional.avg_pool1d(current, 3, 1, 1).relu()


class InSeries(Net):
    def between(self, current: Tensor) -> Tensor:
        return self.fc2(current)


class Summed(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        return self.out(self.lif(current + self.fc2(x.flip(1)))), current


class TwoNeurons(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        return self.out(self.lif(current) + self.lif2(current)), current


class TwoNeuronsBehindANorm(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        shown = self.norm(current)
        return self.out(self.lif(shown) + self.lif2(shown)), current


class Live(Net):
    """A neuron that runs in the graph."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.fc(x)
        return self.out(self.lif2(self.norm(current))), current


class Functional(Net):
    def current(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fc.weight, self.fc.bias)


class OwnForward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc.forward = lambda x: nn.functional.linear(x, 2 * self.fc.weight, self.fc.bias)


class Autocast(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            current = self.fc(x)
            return self.out(self.lif(current)).float(), current


KINDS: dict[str, type[Net]] = {
    kind.__name__: kind
    for kind in (
        *(Net, Normed, Residual, Scaled, InSeries, Summed, TwoNeurons, TwoNeuronsBehindANorm, Live, Functional),
        *(OwnForward, Autocast),
    )
}


def train(
    kind: type[Net], batches: int, penalty: Callable[[int, Tensor], Tensor] | None = None, way: str = "a"
) -> None:
    net = build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for batch in range(batches):
        total = torch.zeros(())
        for x in 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(batch)):
            output, current = net(x)
            loss = output.square().mean()
            if penalty is not None:
                loss = loss + penalty(batch, current)
            if way == "a":
                total = total + loss
            else:
                loss.backward()
        if way == "a":
            total.backward()
        learner.step()
        learner.zero_grad()


@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("kind", members(KINDS))
def test_nothing_is_refused_without_a_reason(kind, way):
    train(kind, 3, way=way)


@pytest.mark.parametrize("factor", [1.0, 1e-5])
@pytest.mark.parametrize("kind", members(KINDS))
def test_a_penalty_is_refused_whenever_it_begins(kind, factor):
    with pytest.raises(StateError, match="past the neuron"):
        train(kind, 6, lambda batch, current: factor * current.float().square().mean() * (batch == 4))


def test_a_norm_behind_a_constant_input_is_no_bypass():
    """In training its gradient is all rounding, which says nothing."""
    net = build(Normed)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for _ in range(T):
        net(torch.ones(B, N))[0].square().mean().backward()
    learner.step()


def test_two_losses_of_a_step_and_two_backward_passes():
    net = build(TwoNeurons)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for x in torch.rand(T, B, N):
        output, _ = net(x)
        output.mean().backward(retain_graph=True)
        output.square().mean().backward()
    learner.step()


def test_gradients_of_one_layer_alone():
    """A backward pass that asks for some parameters only visits some of the nodes."""
    net = build(Normed)
    STLLRLearner(net, rule=RULE)
    output, _ = net(torch.rand(B, N))
    loss = output.square().mean()
    (alone,) = torch.autograd.grad(loss, [net.fc.weight], retain_graph=True)
    (bias,) = torch.autograd.grad(loss, [net.fc.bias], retain_graph=True)
    loss.backward()
    assert torch.equal(alone, net.fc.weight.grad) and torch.equal(bias, net.fc.bias.grad)
