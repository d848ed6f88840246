"""A layer whose weight is used without calling the layer follows the rule, or is refused: no other rule in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 6, 4, 6, 5, 2

Use = Callable[[nn.Linear, Tensor, int], Tensor]

USES: dict[str, Use] = {
    "F.linear": lambda layer, x, t: F.linear(x, layer.weight, layer.bias),
    "matmul": lambda layer, x, t: x @ layer.weight.t() + layer.bias,
    "einsum": lambda layer, x, t: torch.einsum("bi,oi->bo", x, layer.weight) + layer.bias,
    "addmm": lambda layer, x, t: torch.addmm(layer.bias, x, layer.weight.t()),
    "its forward": lambda layer, x, t: layer.forward(x),
    "nn.Linear.forward": lambda layer, x, t: nn.Linear.forward(layer, x),
    "functional_call on itself": lambda layer, x, t: functional_call(layer, dict(layer.named_parameters()), (x,)),
    "F.linear at odd steps": lambda layer, x, t: F.linear(x, layer.weight, layer.bias) if t % 2 else layer(x),
    "a scaled weight": lambda layer, x, t: F.linear(x / 0.5, 0.5 * layer.weight, layer.bias),
    "one half of the inputs": lambda layer, x, t: (
        F.linear(x[:, :3], layer.weight[:, :3]) + F.linear(x[:, 3:], layer.weight[:, 3:], layer.bias)
    ),
    "the weight of now": lambda layer, x, t: F.linear(x, layer._parameters["weight"], layer.bias),
}


class Net(nn.Module):
    """The layer of that name is used in the given way, the others are called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.la = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.b, self.lb = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True, output=True)
        self.use: tuple[str, Use] | None = None

    def apply_layer(self, name: str, x: Tensor, t: int) -> Tensor:
        layer = getattr(self, name)
        return self.use[1](layer, x, t) if self.use is not None and self.use[0] == name else layer(x)

    def forward(self, x: Tensor, t: int) -> Tensor:
        return self.lb(self.apply_layer("b", self.la(self.apply_layer("a", x, t)), t))[1]


def train(use: tuple[str, Use] | None, **options: object) -> Gradients:
    net = build(Net)
    net.use = use
    learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
    x = 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))
    for t, step in enumerate(x):
        net(step, t).square().sum().backward()
    found = copied(net)
    learner.step()
    return found


@pytest.mark.parametrize("layer", ["a", "b"])
@pytest.mark.parametrize("use", members(USES))
def test_the_rule_or_an_error(use, layer):
    assert_right_or_refused(lambda: train((layer, use)), train(None))


class Convolution(nn.Module):
    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.a, self.la = nn.Conv1d(1, 2, 3, padding=1), snn.Leaky(0.9, init_hidden=True)
        self.out, self.direct = nn.Linear(2 * IN, OUT), direct

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        current = F.conv1d(x, self.a.weight, self.a.bias, padding=1) if self.direct else self.a(x)
        return self.out(self.la(current).flatten(1))


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, transposed, in front of a neuron of its own."""

    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.a, self.la, self.lb = (
            nn.Linear(IN, N, bias=False),
            snn.Leaky(0.9, init_hidden=True),
            snn.Leaky(0.8, init_hidden=True),
        )
        self.out = nn.Linear(IN, OUT)
        self.back = None if direct else nn.Linear(N, IN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.la(self.a(x))
        return self.out(self.lb(F.linear(spikes, self.a.weight.t()) if self.back is None else self.back(spikes)))


def of_direct(kind: Callable[[bool], nn.Module], direct: bool) -> nn.Module:
    net = build(lambda: kind(False))
    if isinstance(net, Tied):
        net.back.weight.data.copy_(net.a.weight.t())
    if direct:
        state = {name: value for name, value in net.state_dict().items() if not name.startswith("back")}
        net = build(lambda: kind(True))
        net.load_state_dict(state)
    return net


@pytest.mark.parametrize("kind", [Convolution, Tied])
def test_convolutions_and_decoders_that_borrow_a_weight(kind):
    def train(direct: bool) -> Gradients:
        net = of_direct(kind, direct)
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
            net(step).square().sum().backward()
        found = copied(net)
        learner.step()
        return found

    want = train(False)
    if "back.weight" in want:
        want["a.weight"] = want["a.weight"] + want.pop("back.weight").t()
    assert_right_or_refused(lambda: train(True), want)


def test_a_regulariser_on_the_weight_is_no_use_of_the_layer():
    """Weight decay in the loss stays what it is: its own gradient is added."""

    def train(factor: float) -> Gradients:
        net = build(Net)
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        total = torch.zeros(())
        for t, step in enumerate(2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))):
            total = total + net(step, t).square().sum()
        (total + factor * net.a.weight.square().sum()).backward()
        learner.step()
        return copied(net)

    plain, decayed, weight = train(0.0), train(0.5), build(Net).a.weight.detach()
    assert torch.allclose(decayed["a.weight"] - plain["a.weight"], weight, atol=1e-4)
