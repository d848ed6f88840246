"""A user's own neuron, attached as CONTRIBUTING.md shows: the rule is that of an equal snnTorch neuron."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import AttachmentError, StateError, STLLRLearner, STLLRRule
from stllr_plugin.neurons.base import register_adapter
from stllr_plugin.neurons.own import FiringAdapter
from stllr_plugin.surrogates import SurrogateSpike

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
RULES = {
    "own-psi": STLLRRule(1.0, 0.8, -0.3, 0.5, psi="sigmoid", propagate="psi"),
    "own-surrogate": STLLRRule(1.0, 0.8, -0.3, 0.5, psi=None, propagate="surrogate"),
    "mixed": STLLRRule(1.0, 0.9, 0.2, 0.6, psi="rational", propagate="surrogate"),
}
STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 7, 3, 6, 8, 4


def documented() -> tuple[str, type[nn.Module]]:
    """The neuron and its adapter as CONTRIBUTING.md has them, and the neuron's class after running that code."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.split("## How to add a neuron adapter", 1)[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    code = block.split("\nlayer, neuron =")[0]
    session: dict[str, Any] = {"__name__": __name__}
    exec(compile(code, str(CONTRIBUTING), "exec"), session)
    return code, session["PlainLIF"]


CODE, PlainLIF = documented()


class KeepingLIF(nn.Module):
    """The same neuron, but it keeps its membrane in a buffer, as an ``init_hidden`` neuron does."""

    membrane: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("membrane", torch.zeros(()), persistent=False)

    def fire(self, v: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * v)
        return (v > 0).to(v.dtype) + soft - soft.detach()

    def forward(self, current: Tensor) -> tuple[Tensor, Tensor]:
        membrane = 0.9 * self.membrane + current
        spikes = self.fire(membrane - 1.0)
        self.membrane = membrane - spikes.detach()
        return spikes, self.membrane


@register_adapter
class KeepingLIFAdapter(FiringAdapter):
    kind = KeepingLIF
    states = ("membrane",)


class AttributeLIF(nn.Module):
    """A plain attribute that starts as None, a membrane that is returned as it is kept, and spikes alone as output."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def decide(self, v: Tensor) -> Tensor:
        return KeepingLIF.fire(self, v)

    def forward(self, current: Tensor) -> Tensor:
        v = current if self.v is None else 0.9 * self.v + current
        spikes = self.decide(v - 1.0)
        self.v = v - spikes.detach()
        return spikes


@register_adapter
class AttributeLIFAdapter(FiringAdapter):
    kind = AttributeLIF
    fire = "decide"
    states = ("v",)


class SnnTorchLIF(nn.Module):
    """snnTorch's Leaky with the same numbers. The reset is this module's, so that it is the other neurons' reset."""

    def __init__(self) -> None:
        super().__init__()
        derivative = SurrogateSpike(lambda v: 4 * torch.sigmoid(4 * v) * torch.sigmoid(-4 * v))
        decay = torch.tensor(0.9, dtype=torch.float64)  # snnTorch would make a float32 of a plain number
        self.leaky = snn.Leaky(decay, reset_mechanism="none", spike_grad=derivative)

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        spikes, membrane = self.leaky(current, membrane)
        return spikes, membrane - spikes.detach()


class Net(nn.Module):
    """Two layers of one kind of neuron."""

    def __init__(self, neuron: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), neuron()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, OUTPUTS), neuron()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        spikes, first = self.step(self.lif1, self.fc1(x), state[0])
        spikes, second = self.step(self.lif2, self.fc2(spikes), state[1])
        return spikes, second, (first, second)

    def step(self, neuron: nn.Module, current: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(neuron, AttributeLIF):
            spikes = neuron(current)
            return spikes, neuron.v
        return neuron(current) if isinstance(neuron, KeepingLIF) else neuron(current, state)


def build(neuron: type[nn.Module]) -> Net:
    torch.manual_seed(0)
    net = Net(neuron).double()
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            layer.weight.mul_(3.0)
    return net


def start() -> tuple[Tensor, Tensor]:
    return (torch.zeros(BATCH, HIDDEN).double(), torch.zeros(BATCH, OUTPUTS).double())


def run(net: Net, seen: str = "both") -> tuple[list[Tensor], dict[str, Tensor]]:
    """Backward at each step; returns all outputs and the gradients."""
    x = (torch.rand(STEPS, BATCH, INPUTS, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    outputs, state = [], start()
    for t, step in enumerate(x):
        spikes, membrane, state = net(step, state)
        outputs.extend((spikes.detach(), membrane.detach()))
        loss = (membrane - torch.cos(torch.tensor(t))).square().sum() if seen != "spikes" else 0.0
        loss = loss + ((spikes * torch.arange(1.0, 5.0)).sum(1) - 1).square().sum() if seen != "membrane" else loss
        loss.backward()
    return outputs, {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def assert_equal(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert 0 < torch.stack(expected[0][::2]).mean() < 1
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0
        assert (found[1][name] - gradient).norm() <= 1e-9 * gradient.norm(), name


@pytest.mark.parametrize("seen", ["both", "spikes", "membrane"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("neuron", [PlainLIF, KeepingLIF, AttributeLIF], ids=["explicit", "buffer", "attribute"])
def test_the_rule_is_that_of_an_equal_snntorch_neuron(neuron, rule, seen):
    results = []
    for kind in (neuron, SnnTorchLIF):
        net = build(kind)
        with STLLRLearner(net, rule=RULES[rule]):
            results.append(run(net, seen))
    assert_equal(*results)


def test_the_comparison_can_fail():
    """Another decay of the traces is seen."""
    results = []
    for kind, decay in ((PlainLIF, 0.8), (SnnTorchLIF, 0.81)):
        net = build(kind)
        with STLLRLearner(net, rule=STLLRRule(1.0, decay, -0.3, 0.5, psi="sigmoid")):
            results.append(run(net))
    with pytest.raises(AssertionError, match="fc1.weight"):
        assert_equal(*results)


@pytest.mark.parametrize(("kind", "name"), [(KeepingLIF, "membrane"), (AttributeLIF, "v")])
def test_the_learner_resets_a_state_that_the_neuron_keeps(kind, name):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULES["own-psi"])
    first = run(net)
    learner.reset()
    net.zero_grad()
    again = run(net)
    assert_equal(again, first)
    learner.reset(torch.tensor([True, False, False]))
    kept = getattr(net.lif1, name)
    assert not kept[0].any() and kept[1].any()
    learner.detach()
    assert not getattr(net.lif1, name).requires_grad


def test_the_learner_leaves_the_neurons_as_they_were():
    for kind in (PlainLIF, KeepingLIF, AttributeLIF):
        net = build(kind)
        before = {name: dict(vars(module)) for name, module in net.named_modules()}
        STLLRLearner(net, rule=RULES["own-psi"]).detach()
        for name, module in net.named_modules():
            assert vars(module).keys() == before[name].keys()
            assert not {"fire", "decide"} & vars(module).keys()


class StaticLIF(PlainLIF):
    @staticmethod
    def fire(v: Tensor) -> Tensor:
        return SurrogateSpike("sigmoid")(v)


class OwnLIF(PlainLIF):
    def __init__(self) -> None:
        super().__init__()
        self.fire = SurrogateSpike("sigmoid")


class MethodLIF(PlainLIF):
    def fire(self, v: Tensor) -> Tensor:
        return SurrogateSpike("sigmoid")(v)


@pytest.mark.parametrize("kind", [StaticLIF, OwnLIF, MethodLIF])
def test_wherever_the_spike_function_is_kept(kind):
    results = []
    for neuron in (kind, PlainLIF):
        net = build(neuron)
        with STLLRLearner(net, rule=RULES["own-surrogate"]):
            assert copy.deepcopy(net).lif1.fire(torch.ones(1)) == 1
            results.append(run(net))
    assert_equal(*results)


def test_a_decision_made_twice_is_refused():
    class Twice(PlainLIF):
        def forward(self, current, membrane):
            self.fire(current)
            return super().forward(current, membrane)

    net = build(Twice)
    STLLRLearner(net, rule=RULES["own-psi"])
    with pytest.raises(StateError, match=r"Twice\.fire was called 2 times in one step"):
        run(net)


def test_without_an_adapter_the_neuron_is_not_known():
    class Unknown(nn.Module):
        forward = PlainLIF.forward

    with pytest.raises(AttachmentError, match=r"no spiking neuron.*CONTRIBUTING\.md"):
        STLLRLearner(build(Unknown), rule=RULES["own-psi"])


def test_an_lif_and_its_adapter_take_no_more_than_twenty_lines():
    lines = [line for line in CODE.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert "class PlainLIF(" in CODE and "class PlainLIFAdapter(" in CODE
    assert len(lines) <= 20
