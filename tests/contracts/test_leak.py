"""lambda_pre="leak": the presynaptic trace decays as the membrane of the neuron that the synapse feeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from stllr_plugin import AttachmentError, RuleError, STLLRLearner, STLLRRule

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")

RULE = STLLRRule(alpha_pre=1.0, lambda_pre="leak", alpha_post=-0.3, lambda_post=0.5)


def leaky(**options) -> nn.Module:
    return snn.Leaky(init_hidden=True, output=True, **options)


NEURONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "Leaky": (lambda: leaky(beta=0.75), 0.75),
    "Leaky, learned": (lambda: leaky(beta=0.75, learn_beta=True), 0.75),
    "Leaky, above one": (lambda: leaky(beta=1.5), 1.0),
    "Synaptic": (lambda: snn.Synaptic(0.5, 0.75, init_hidden=True, output=True), 0.75),
    "Lapicque": (lambda: snn.Lapicque(0.75, init_hidden=True, output=True), 1 + math.log(0.75)),
    "DeltaLeaky": (lambda: snn.DeltaLeaky(0.2, beta=0.75, init_hidden=True), 0.75),
    "LIFCell": (lambda: norse.LIFCell(norse.LIFParameters(tau_mem_inv=torch.tensor(250.0))), 0.75),
    "LIFCell, dt": (lambda: norse.LIFCell(dt=0.002), 0.8),
    "LIFRefracCell": (norse.LIFRefracCell, 0.9),
    "IAFCell": (norse.IAFCell, 1.0),
    "LICell": (norse.LICell, 0.9),
}


def gradient(neuron: nn.Module, rule: STLLRRule) -> tuple[torch.Tensor, float]:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 3), neuron])
    x = (torch.rand(5, 2, 4) < 0.5).float() * 4
    state = None
    with STLLRLearner(net, rule=rule) as learner:
        for step in x:
            if getattr(neuron, "init_hidden", False):
                output, *_ = neuron(net[0](step))
            else:
                output, state = neuron(net[0](step), state)
            ((output - 1) ** 2).sum().backward()
        (edge,) = learner.report().edges
    return net[0].weight.grad, edge.rule["lambda_pre"]


@pytest.mark.parametrize("name", NEURONS)
def test_the_leak_of_each_kind_of_neuron(name):
    make, leak = NEURONS[name]
    found, reported = gradient(make(), RULE)
    assert reported == pytest.approx(leak, abs=1e-6)
    expected, _ = gradient(make(), replace(RULE, lambda_pre=leak))
    assert found.any()
    assert torch.allclose(found, expected, rtol=1e-4)


def test_layers_have_leaks_of_their_own():
    net = nn.Sequential(nn.Linear(3, 3), leaky(beta=0.5), nn.Linear(3, 3), leaky(beta=0.9))
    net[1].output = False
    learner = STLLRLearner(net, rule="ottt")
    net(torch.rand(2, 3))
    assert [edge.rule["lambda_pre"] for edge in learner.report().edges] == pytest.approx([0.5, 0.9])


def test_a_layer_without_a_single_leak_is_refused():
    per_unit = leaky(beta=torch.tensor([0.5, 0.6, 0.7]))
    with pytest.raises(AttachmentError, match=r"Neuron '1' \(Leaky\).*lambda_pre='leak'.*no single leak"):
        STLLRLearner(nn.Sequential(nn.Linear(3, 3), per_unit), rule="ottt")
    net = nn.Sequential(nn.Linear(3, 3), per_unit)
    learner = STLLRLearner(net, rule="ottt", layer_rules={"1": replace(RULE, lambda_pre=0.6)})
    net(torch.rand(2, 3))
    learner.detach()


def test_a_synapse_s_own_rule_is_refused_when_the_neuron_shows():
    net = nn.Sequential(nn.Linear(3, 3), leaky(beta=torch.tensor([0.5, 0.6, 0.7])))
    STLLRLearner(net, rule=replace(RULE, lambda_pre=0.5), layer_rules={"0": RULE})
    with pytest.raises(RuleError, match="no single leak"):
        net(torch.rand(2, 3))


def test_neither_number_nor_leak():
    with pytest.raises(RuleError, match="lambda_pre='leaky'"):
        STLLRRule(lambda_pre="leaky")
    with pytest.raises(RuleError, match="lambda_post='leak'"):
        STLLRRule(lambda_post="leak")
