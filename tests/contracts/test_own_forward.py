"""Layers with a forward of their own that lists of changes to a weight do not cover, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import StateError
from tests.contracts.kinds import Gradients, assert_right, copied, members, sgd
from tests.contracts.networks import RULE

T, B, N, OUT = 5, 4, 6, 5


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return (value * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Sign(torch.autograd.Function):
    """Two values with a slope, as a spike function has; here of weights."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


DIAGONAL = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]))
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded by a function": lambda weight: Rounded.apply(weight),
    "its sign by a function": lambda weight: Sign.apply(weight),
    "a product with a constant": lambda weight: DIAGONAL @ weight.abs(),
}


def network(layer: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(layer, snn.Leaky(0.9, init_hidden=True, threshold=0.3), nn.Linear(OUT, 2))


def layer_of(kind: Callable[..., nn.Module] = nn.Linear) -> nn.Module:
    torch.manual_seed(1)
    return kind(N, OUT)


def train(net: nn.Module) -> Gradients:
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    for x in 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)):
        net(x).square().sum().backward()
    found = copied(net)
    learner.step()
    return found


@pytest.mark.parametrize("change", members(WEIGHTS))
def test_the_same_as_a_parametrization(change):
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, change(self.weight), self.bias)

    other = layer_of()
    parametrize.register_parametrization(other, "weight", Apply(change))
    want = train(network(other))
    found = train(network(layer_of(Own)))
    assert_right({"weight": found["0.weight"]}, {"weight": want["0.parametrizations.weight.original"]})


def test_an_input_changed_by_a_function_of_the_users():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(Rounded.apply(x), self.weight, self.bias)

    want = train(network(nn.Sequential(Apply(Rounded.apply), layer_of())))
    assert_right({"weight": train(network(layer_of(Own)))["0.weight"]}, {"weight": want["0.1.weight"]})


class LoRA(nn.Linear):
    """Parameters of its own beside a weight that is frozen."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + (x @ self.down.T) @ self.up.T


class InModules(nn.Module):
    def __init__(self, layer: LoRA) -> None:
        super().__init__()
        self.base = nn.Linear(N, OUT)
        self.down, self.up = nn.Linear(N, 2, bias=False), nn.Linear(2, OUT, bias=False)
        for mine, its in ((self.base, layer.weight), (self.down, layer.down), (self.up, layer.up)):
            mine.weight.data.copy_(its)
        self.base.bias.data.copy_(layer.bias)
        self.base.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_products_with_other_parameters_of_the_layer():
    layer: Any = layer_of(LoRA)
    want, found = train(network(InModules(layer))), train(network(layer))
    assert_right(
        {"down": found["0.down"], "up": found["0.up"]}, {"down": want["0.down.weight"], "up": want["0.up.weight"]}
    )


def test_a_use_of_the_weight_that_is_no_product_is_refused():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, None] * self.weight).sum(-1) + self.bias

    with pytest.raises(StateError, match=r"register_parametrization.*exclude"):
        train(network(layer_of(Own)))


def test_a_forward_that_is_patched_in_the_class_while_attached(monkeypatch):
    net, other = network(layer_of()), layer_of()
    parametrize.register_parametrization(other, "weight", Apply(lambda weight: 3 * weight))
    want = train(network(other))
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    plain = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear,
        "forward",
        lambda self, x: F.linear(x, 3 * self.weight, self.bias) if self is net[0] else plain(self, x),
    )
    for x in 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)):
        net(x).square().sum().backward()
    learner.step()
    assert_right({"weight": net[0].weight.grad}, {"weight": want["0.parametrizations.weight.original"]})


def test_a_recurrence_within_a_neuron():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2 * self.weight, self.bias)

    def recurrent(layer: nn.Module) -> nn.Sequential:
        net = network(layer_of())
        net[1] = snn.RLeaky(0.9, linear_features=OUT, init_hidden=True, threshold=0.3)
        torch.manual_seed(3)
        layer.load_state_dict(nn.Linear(OUT, OUT).state_dict())
        net[1].recurrent = layer
        return net

    other = nn.Linear(OUT, OUT)
    reference = recurrent(other)
    parametrize.register_parametrization(other, "weight", Apply(lambda weight: 2 * weight))
    want, found = train(reference), train(recurrent(Own(OUT, OUT)))
    assert_right(
        {"weight": found["1.recurrent.weight"]}, {"weight": want["1.recurrent.parametrizations.weight.original"]}
    )
