"""A layer with a forward of its own gets the gradient through that forward, or is refused: no structure is assumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE

T, B, N, OUT = 8, 4, 6, 3
MASK = (torch.arange(N * N).reshape(N, N) % 3 != 0).float()
SIGNS = torch.where(torch.arange(N) % 3 < 2, 1.0, -1.0)


def through(value: Tensor, weight: Tensor) -> Tensor:
    """The value, with the derivative of the weight."""
    return weight + (value - weight).detach()


def standardised(weight: Tensor) -> Tensor:
    return 1.5 * (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True) * N + 1e-4).sqrt()


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a mask": lambda weight: weight * MASK,
    "a constant scale": lambda weight: 0.5 * weight,
    "a sign flipped": lambda weight: -weight,
    "Dale's law": lambda weight: weight.abs() * SIGNS,
    "only excitation": lambda weight: 0.7 * weight.clamp(min=0.0) - 0.3,
    "softplus": lambda weight: F.softplus(weight) - 0.5,
    "fake quantisation": lambda weight: through((weight * 8).round() / 8, weight),
    "binary weights": lambda weight: through(weight.sign() * weight.abs().mean(), weight),
    "standardised": standardised,
    "of norm one": lambda weight: 3 * weight / weight.norm(dim=1, keepdim=True),
    "without its mean": lambda weight: weight - weight.mean(),
    "symmetric": lambda weight: (weight + weight.t()) / 2,
    "transposed": lambda weight: weight.t(),
}


class Changed(nn.Module):
    """The same change as a parametrization, which docs/usage.md allows."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, weight: Tensor) -> Tensor:
        return self.change(weight)


class Applied(nn.Module):
    """A function as a layer of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def with_weight(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, change(self.weight), self.bias)

    return Own(N, N)


def patched(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    layer = nn.Linear(N, N)
    layer.forward = lambda x: F.linear(x, change(layer.weight), layer.bias)
    return layer


def other_class(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    """The class of a layer that exists is changed, as some pruning tools do."""
    layer = nn.Linear(N, N)
    layer.__class__ = type(with_weight(change))
    return layer


def computed_before(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    """Puts the changed weight in the parameter's place for the call, and takes it away after."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            weight = self._parameters.pop("weight")
            self.weight = change(weight)
            try:
                return super().forward(x)
            finally:
                del self.weight
                self.weight = weight

    return Own(N, N)


def parametrized(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    layer = nn.Linear(N, N)
    parametrize.register_parametrization(layer, "weight", Changed(change), unsafe=True)
    return layer


class Net(nn.Module):
    """The layer in question feeds the first or the second neuron."""

    def __init__(self, layer: nn.Module, place: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        other = nn.Linear(N, N)
        self.fc1, self.fc2 = (layer, other) if place == 1 else (other, layer)
        self.lif1, self.lif2 = snn.Leaky(0.9, init_hidden=True), snn.Leaky(0.8, init_hidden=True)
        self.out = nn.Linear(N, OUT)
        with torch.no_grad():
            for parameter in (*other.parameters(), *self.out.parameters()):
                parameter.mul_(2)
            for name, parameter in layer.named_parameters():
                rng = torch.Generator().manual_seed(7)
                if "bias" in name:
                    parameter.fill_(0.2)
                elif "weight" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x)))))


def short(name: str) -> str:
    """parametrizations.weight.original is the weight, and so is the weight of a Linear within."""
    place = name.split(".")[0]
    return f"{place}.{'bias' if 'bias' in name else 'weight'}"


def train(layer: nn.Module, place: int, x: Tensor | None = None) -> Gradients:
    net = Net(layer, place)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    x = 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)) if x is None else x
    for step in x:
        net(step).square().sum().backward()
    found = copied(net)
    learner.step()
    return {short(name): value for name, value in found.items() if name.endswith(("weight", "original", "bias"))}


def weights_only(gradients: Gradients) -> Gradients:
    return {name: value for name, value in gradients.items() if name.endswith("weight")}


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("change", members(WEIGHTS))
def test_a_weight_that_is_changed_in_forward(change, place):
    assert_right(train(with_weight(change), place), train(parametrized(change), place))


@pytest.mark.parametrize("how", [patched, other_class, computed_before])
@pytest.mark.parametrize("name", ["a mask", "Dale's law", "standardised"])
def test_ways_to_change_it(how, name):
    assert_right(train(how(WEIGHTS[name]), 1), train(parametrized(WEIGHTS[name]), 1))


def layer_norm(x: Tensor) -> Tensor:
    return 1.2 * F.layer_norm(x, (N,))


class Around(NamedTuple):
    """What a forward does before and after the product."""

    before: Callable[[Tensor], Tensor] = lambda x: x
    after: Callable[[Tensor], Tensor] = lambda y: y


AROUND = {
    "the input scaled": Around(before=lambda x: 0.5 * x),
    "the input squashed": Around(before=lambda x: torch.tanh(x - 0.3)),
    "the input permuted": Around(before=lambda x: x.flip(1)),
    "the output scaled": Around(after=lambda y: 1.5 * y),
    "the output of each unit scaled": Around(after=lambda y: y * torch.linspace(0.5, 1.5, N)),
    "the output negated": Around(after=lambda y: -y),
    "a norm inside": Around(after=layer_norm),
    "the output squashed": Around(after=lambda y: 2 * torch.tanh(y)),
    "the output clipped": Around(after=lambda y: y.clamp(-0.8, 0.8)),
}


def own_around(around: Around) -> nn.Linear:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return around.after(super().forward(around.before(x)))

    return Own(N, N)


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("around", members(AROUND))
def test_what_happens_around_the_product(around, place):
    """The same in three modules."""
    apart = nn.Sequential(Applied(around.before), nn.Linear(N, N), Applied(around.after))
    assert_right(train(own_around(around), place), train(apart, place))


class LearnableScale(nn.Linear):
    def __init__(self) -> None:
        super().__init__(N, N)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, N))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class WithShortcut(nn.Linear):
    def __init__(self) -> None:
        super().__init__(N, N)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x


class TwoProducts(nn.Linear):
    """Its weight acts on the input and on the input turned round."""

    def __init__(self) -> None:
        super().__init__(N, N)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * super().forward(x.flip(1))


class Apart(nn.Module):
    """The same three with a plain layer inside a module that is no layer."""

    def __init__(self, function: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(N, N), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear, x)


STRUCTURES: dict[str, tuple[type[nn.Linear], Callable[[nn.Linear, Tensor], Tensor]]] = {
    "a learnable scale": (LearnableScale, lambda linear, x: linear(x) * torch.linspace(0.5, 1.5, N)),
    "a shortcut": (WithShortcut, lambda linear, x: linear(x) + 0.5 * x),
    "two products": (TwoProducts, lambda linear, x: linear(x) + 0.5 * linear(x.flip(1))),
}


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("structure", members(STRUCTURES))
def test_structures_of_a_users_own(structure, place):
    own, apart = structure
    want = weights_only(train(Apart(apart), place))
    assert_right(train(own(), place), want)


class Renamed(nn.Linear):
    """Nothing is changed."""


class Spelled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Noting(nn.Linear):
    """Looks at what goes through."""

    seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().mean()
        return super().forward(x)


@pytest.mark.parametrize("kind", [Renamed, Spelled, Noting])
def test_a_subclass_that_changes_nothing(kind):
    assert_right(train(kind(N, N), 1), train(nn.Linear(N, N), 1))


def test_a_subclass_without_a_forward_of_its_own_is_the_layer_that_it_is():
    found, want = train(Renamed(N, N), 1), train(nn.Linear(N, N), 1)
    assert all(torch.equal(found[name], value) for name, value in want.items())


class StandardisedConv(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return F.conv1d(x, weight / (weight.std((1, 2), keepdim=True) + 0.1), self.bias, padding=1)


class OwnProduct(nn.Conv1d):
    """Changes the inner method."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight - weight.mean((1, 2), keepdim=True)
        return super()._conv_forward(input, weight / (weight.std((1, 2), keepdim=True) + 0.1), bias)


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (2, 0)), self.weight, self.bias)


class Masked(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([1.0, 0.0, 1.0])
        return F.conv1d(x, self.weight * mask, self.bias, padding=1)


class OnePixel(nn.Module):
    """[B, N] to the layer's [B, 2, N / 2] and back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unflatten(1, (2, N // 2))).flatten(1)


def conv_standard(weight: Tensor) -> Tensor:
    weight = weight - weight.mean((1, 2), keepdim=True)
    return weight / (weight.std((1, 2), keepdim=True) + 0.1)


def conv_apart(change: Callable[[Tensor], Tensor] | None = None, padding: int = 1) -> nn.Module:
    layer = nn.Conv1d(2, 2, 3, padding=padding)
    if change is not None:
        parametrize.register_parametrization(layer, "weight", Changed(change))
    return layer


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "standardised": (lambda: StandardisedConv(2, 2, 3, padding=1), lambda: conv_apart(conv_standard)),
    "the inner method": (lambda: OwnProduct(2, 2, 3, padding=1), lambda: conv_apart(conv_standard)),
    "masked": (lambda: Masked(2, 2, 3, padding=1), lambda: conv_apart(lambda w: w * torch.tensor([1.0, 0.0, 1.0]))),
    "causal": (
        lambda: Causal(2, 2, 3),
        lambda: nn.Sequential(Applied(lambda x: F.pad(x, (2, 0))), conv_apart(None, 0)),
    ),
}


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("pair", members(CONVOLUTIONS))
def test_convolutions(pair, place):
    own, apart = pair
    assert_right(train(OnePixel(own()), place), train(OnePixel(apart()), place))


@pytest.mark.parametrize("way", ["run", "folded"])
@pytest.mark.parametrize("name", ["a mask", "standardised"])
def test_several_steps_at_once(name, way):
    """run() and fold_steps know no other layer than single steps do."""
    x = 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1))

    def attempt() -> Gradients:
        net = Net(with_weight(WEIGHTS[name]), 1)
        learner = STLLRLearner(net, sgd(net), rule=RULE, num_steps=T, fold_steps=3 if way == "folded" else None)
        if way == "run":
            learner.run(net, x, None, lambda output, y: output.square().sum(), window=4)
        else:
            for step in x:
                net(step).square().sum().backward()
        return {short(name): value for name, value in copied(net).items()}

    assert_right(attempt(), train(parametrized(WEIGHTS[name]), 1, x))


@pytest.mark.parametrize("kind", ["QuantLinear", "QuantConv1d"])
def test_brevitas(kind):
    """The rule through its quantisation, or a refusal: its own gradient with states detached is the reference."""
    layers = pytest.importorskip("brevitas.nn")

    def made() -> nn.Module:
        bits = {"weight_bit_width": 4}
        if kind == "QuantLinear":
            return layers.QuantLinear(N, N, bias=True, **bits)
        return OnePixel(layers.QuantConv1d(2, 2, 3, padding=1, bias=True, **bits))

    plain = type(RULE)(1.0, 0.0, 0.0, 0.0, None, "surrogate")
    layer = made()

    def attempt(rule: Any) -> Gradients:
        net = Net(copy.deepcopy(layer), 1)
        learner = None if rule is None else STLLRLearner(net, sgd(net), rule=rule)
        for step in 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)):
            net(step).square().sum().backward()
            if learner is None:
                for neuron in (net.lif1, net.lif2):
                    neuron.mem = neuron.mem.detach()
        return weights_only({short(name): value for name, value in copied(net).items()})

    assert_right_or_refused(lambda: attempt(plain), attempt(None))
