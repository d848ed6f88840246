"""learner.verify() fails where the gradients of a model are not those of the rule, and says what to do about it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.neurons import snntorch as adapters
from stllr_plugin.neurons.compared import FireTap
from stllr_plugin.synapses import KnownForward
from stllr_plugin.verify import Verification, verify

snn = pytest.importorskip("snntorch")

T, B, INPUTS, HIDDEN, CLASSES = 6, 4, 6, 5, 3


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(T, B, INPUTS, generator=generator), torch.randint(CLASSES, (B,), generator=generator)


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(beta=0.9, threshold=0.4, init_hidden=True, **options)


def plain_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), leaky(), nn.Linear(HIDDEN, CLASSES), leaky(output=True))


def of_spikes(y: Tensor) -> Any:
    return lambda output: F.cross_entropy(output[0], y)


def assert_tells(result: Verification, *words: str) -> None:
    assert not result.passed, result
    text = " ".join(str(result).split())
    for word in words:
        assert word in text, f"{word!r} is missing in\n{result}"


def test_the_network_without_a_fault_passes(batch):
    x, y = batch
    for rule in ("dvs_gesture", "ottt", "shd"):
        result = verify(plain_net(), x, of_spikes(y), rule=rule)
        assert result.passed and not result.unchecked and not result.notes, result
        assert result.dtype == "float64" and result.steps == T
        assert result.largest_error < 1e-12


# Layers and neurons that are not what their class is.


class Standardised(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(input, weight / (weight.var(1, keepdim=True) * INPUTS + 1e-4).sqrt(), self.bias)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 3.0 * self.weight, self.bias)


class NormInside(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(super().forward(input), (self.out_features,))


@pytest.mark.parametrize("fault", [False, True])
@pytest.mark.parametrize("kind", [Standardised, Scaled, NormInside])
def test_a_layer_whose_forward_changes_its_weight(batch, kind, fault, monkeypatch):
    """A learner that takes it for its base class fails; one that looks at its forward passes."""
    x, y = batch
    net = plain_net()
    net[0] = kind(INPUTS, HIDDEN)
    if fault:
        monkeypatch.setattr(KnownForward, "of", lambda self, *_: True)
    result = verify(net, x, of_spikes(y), rule="dvs_gesture")
    if not fault:
        assert not result.failures, result
        return
    wrong = {row.name for row in result.failures}
    assert "0.weight" in wrong or any(row.verdict == "refused" for row in result.failures), result


class AdaptiveThreshold(snn.Leaky):
    extra: Any = 0.0

    def fire(self, mem: Tensor) -> Tensor:
        spikes = self.spike_grad(mem - (self.threshold + self.extra))
        self.extra = 0.9 * self.extra + 0.5 * spikes.detach()
        return spikes


class Sharper(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(3.0 * (mem - self.threshold))


@pytest.mark.parametrize("kind", [AdaptiveThreshold, Sharper])
def test_a_neuron_whose_fire_compares_something_else(batch, kind, monkeypatch):
    """The learner looks at membrane minus threshold, whatever fire does."""
    x, y = batch
    monkeypatch.setattr(adapters, "fire_tap", lambda module, name, plain: FireTap(module, name))
    net = plain_net()
    net[1] = kind(beta=0.9, threshold=0.4, init_hidden=True)
    result = verify(net, x, of_spikes(y), rule="dvs_gesture")
    assert {"0->1"} <= {row.name for row in result.failures}


class Own(nn.Module):
    """A spiking neuron that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0
        self.spike = snn.surrogate.atan()

    def forward(self, current: Tensor) -> Tensor:
        v = 0.9 * self.v + current
        spikes = self.spike(v - 0.4)
        self.v = (v * (1 - spikes)).detach()
        return spikes


class StraightThrough(nn.Module):
    """Another one, without an autograd function and without a state."""

    def forward(self, current: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * (current - 0.2))
        return (current > 0.2).to(current) + soft - soft.detach()


@pytest.mark.parametrize("kind", [Own, StraightThrough])
def test_a_spiking_neuron_of_the_users_own_in_between(batch, kind):
    x, y = batch
    net = plain_net()
    net[1] = kind()
    result = verify(net, x, of_spikes(y), rule="dvs_gesture")
    assert_tells(result, "adapter")


def test_a_spiking_neuron_of_the_users_own_as_the_last_layer(batch):
    x, y = batch
    net = plain_net()
    net[3] = Own()
    assert_tells(verify(net, x, lambda spikes: F.cross_entropy(spikes, y), rule="dvs_gesture"), "adapter", "refuse")


def test_a_weight_that_is_used_without_its_layer(batch):
    x, y = batch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.lif1, self.fc2, self.lif2 = plain_net()

        def forward(self, x: Tensor) -> Any:
            return self.lif2(self.fc2(self.lif1(F.linear(x, self.fc1.weight, self.fc1.bias))))

    assert_tells(verify(Net(), x, of_spikes(y), rule="dvs_gesture"), "fc1.weight", "Call the layer")


# Signals that come too late.


class Delayed(nn.Module):
    """What comes in at a step goes out at the next."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Any = None

    def forward(self, x: Tensor) -> Tensor:
        before, self.before = self.before, x
        return torch.zeros_like(x) if before is None else before


class LoopsWithDelay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = plain_net()

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros(x.shape[1], HIDDEN)
        record = []
        for step in x:
            spikes = self.lif1(self.fc1(step))
            record.append(self.lif2(self.fc2(before))[0])
            before = spikes
        return torch.stack(record)


def test_spikes_that_arrive_a_step_later(batch):
    x, y = batch
    net = plain_net()
    net.insert(2, Delayed())
    assert_tells(verify(net, x, of_spikes(y), rule="dvs_gesture"), "0.weight")
    result = verify(LoopsWithDelay(), x, lambda spikes: F.cross_entropy(spikes.sum(0), y), rule="dvs_gesture")
    assert_tells(result, "fc1.weight")


def test_spikingjelly_delay(batch):
    jelly = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import layer, neuron  # noqa: PLC0415

    assert jelly is not None
    x, y = batch
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), neuron.LIFNode(tau=2.0), layer.Delay(delay_steps=1), nn.Linear(5, 3))
    assert_tells(verify(net, x, lambda out: F.cross_entropy(out, y), rule="dvs_gesture"), "0.weight")


# A learner that does not know the model, or is wrong.


def test_a_layer_that_was_replaced_after_attaching(batch):
    x, y = batch
    net = plain_net()
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.1), rule="dvs_gesture")
    assert learner.verify(x, of_spikes(y)).passed
    net[2] = nn.Linear(HIDDEN, CLASSES)
    assert_tells(learner.verify(x, of_spikes(y)), "2: FAILED", "Build the learner anew")


def test_a_wrong_factor_in_the_products(batch, monkeypatch):
    from stllr_plugin.synapses import LinearSynapse  # noqa: PLC0415

    x, y = batch
    right = LinearSynapse.weight_gradients
    monkeypatch.setattr(
        LinearSynapse,
        "weight_gradients",
        lambda self, module, terms, weight: 1.001 * right(self, module, terms, weight),
    )
    result = verify(plain_net(), x, of_spikes(y), rule="dvs_gesture")
    assert {row.name for row in result.failures} >= {"0->1", "2->3"}, result
    assert all(row.error == pytest.approx(1e-3, rel=0.01) for row in result.failures if row.name == "0->1")


def test_a_wrong_psi_shows_in_the_rule_alone(batch, monkeypatch):
    """The learner's psi is off, that of the reference is not: each side resolves the name by itself."""
    import stllr_plugin.advance as advance  # noqa: PLC0415

    x, y = batch
    resolve = advance.resolve_psi
    monkeypatch.setattr(advance, "resolve_psi", lambda psi: (lambda v: 0.5 * resolve(psi)(v)) if psi else None)
    result = verify(plain_net(), x, of_spikes(y), rule="dvs_gesture")
    assert {row.check for row in result.failures} == {"rule"}, result


def test_a_trace_that_decays_wrongly(batch, monkeypatch):
    import dataclasses  # noqa: PLC0415

    import stllr_plugin.learner as home  # noqa: PLC0415

    x, y = batch
    plan = home.plan_attachment

    def other(*args: Any) -> Any:
        found = plan(*args)
        found.rule = dataclasses.replace(found.rule, lambda_pre=0.7 * float(found.rule.lambda_pre))
        return found

    monkeypatch.setattr(home, "plan_attachment", other)
    result = verify(plain_net(), x, of_spikes(y), rule="dvs_gesture")
    assert {row.name for row in result.failures} == {"0->1", "2->3"}, result
    assert all(row.check == "rule" for row in result.failures)


def test_a_refusal_is_reported_in_its_own_words(batch):
    x, y = batch
    net = plain_net()
    net[1] = snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True)
    assert_tells(verify(net, x, of_spikes(y), rule=STLLRRule()), "refused", "snntorch.Synaptic")


def test_a_deep_copy_of_a_layer_with_a_parametrized_weight(batch):
    """torch looks up the remembered weight of the layer that was copied. The verdict is what training really does."""
    x, y = batch
    net = plain_net()
    net[0] = nn.utils.parametrizations.weight_norm(net[0])
    twin = copy.deepcopy(net)
    found = []
    for model in (net, twin):
        with STLLRLearner(model, rule="dvs_gesture") as learner:
            learner.reset()
            torch.stack([F.cross_entropy(model(step)[0], y) for step in x]).sum().backward()
        found.append(model[0].parametrizations.weight.original1.grad.clone())
    assert verify(net, x, of_spikes(y), rule="dvs_gesture").passed
    assert verify(twin, x, of_spikes(y), rule="dvs_gesture").passed == torch.allclose(*found)
