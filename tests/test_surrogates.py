"""SurrogateSpike: a step forward, psi backward, in every way in which a neuron's spike function is used."""

from __future__ import annotations

import copy
import pickle

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.autograd import gradcheck

from stllr_plugin import RuleError, STLLRLearner, STLLRRule
from stllr_plugin.activations import NAMED, Dspike, Triangle
from stllr_plugin.surrogates import SurrogateSpike

V = torch.tensor([-2.0, -0.5, -0.2, -0.01, 0.0, 0.01, 0.3, 0.5, 0.75, 4.0], dtype=torch.float64)


def soft(v: torch.Tensor, b: float) -> torch.Tensor:
    """Dspike written out: the tanh between 0 at v = -1/2 and 1 at v = 1/2, constant outside."""
    low, high = torch.tanh(torch.tensor([-b / 2, b / 2], dtype=v.dtype))
    return (torch.tanh(b * v.clamp(-0.5, 0.5)) - low) / (high - low)


def derivative(function, v):
    v = v.clone().requires_grad_()
    function(v).sum().backward()
    return v.grad


@pytest.mark.parametrize("b", [0.5, 3.0, 12.0])
def test_backward_is_the_derivative_of_the_soft_step(b):
    v = V[V.abs() != 0.5]
    assert gradcheck(lambda v: soft(v, b), (v.clone().requires_grad_(),))  # the reference is right
    torch.testing.assert_close(derivative(SurrogateSpike(Dspike(b)), v), derivative(lambda v: soft(v, b), v))


@pytest.mark.parametrize("psi", sorted(NAMED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_is_a_step_and_backward_psi(psi, dtype):
    v = V.to(dtype)
    spikes = SurrogateSpike(psi)(v)
    assert spikes.dtype == dtype and spikes.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    incoming = torch.arange(len(V)).to(dtype)
    leaf = v.clone().requires_grad_()
    SurrogateSpike(psi)(leaf).backward(incoming)
    torch.testing.assert_close(leaf.grad, incoming * NAMED[psi]()(v))


def test_infinite_membranes():
    v = torch.tensor([-torch.inf, torch.inf], requires_grad=True)
    spikes = SurrogateSpike(Dspike())(v)
    spikes.sum().backward()
    assert spikes.tolist() == [0, 1] and v.grad.tolist() == [0, 0]


def test_a_callable_of_the_user_s_own():
    torch.testing.assert_close(derivative(SurrogateSpike(torch.exp), V), V.exp())


@pytest.mark.parametrize("wrong", ["box", None, 3])
def test_what_is_no_psi_is_refused(wrong):
    with pytest.raises(RuleError, match="psi"):
        SurrogateSpike(wrong)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies(copied):
    spike = SurrogateSpike(Dspike(5.0))
    twin = copied(spike)
    assert twin == spike and hash(twin) == hash(spike) and twin != SurrogateSpike(Dspike(4.0))
    assert torch.equal(derivative(twin, V), derivative(spike, V))


def test_a_neuron_that_holds_one_can_be_pickled_and_copied():
    neuron = snn.Leaky(0.9, spike_grad=SurrogateSpike(Triangle(height=1.0)))
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert twin.spike_grad == neuron.spike_grad
        assert list(twin.state_dict()) == list(snn.Leaky(0.9).state_dict())


@pytest.mark.parametrize("psi", sorted(NAMED))
def test_it_compiles_in_one_piece(psi):
    torch.compiler.reset()  # else all parameters of this test count against one limit on recompilations
    spike = SurrogateSpike(psi)
    compiled = torch.compile(lambda v: spike(2 * v), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(V), spike(2 * V))
    torch.testing.assert_close(derivative(compiled, V), derivative(lambda v: spike(2 * v), V))


def test_a_neuron_that_holds_one_compiles():
    torch.compiler.reset()
    neuron = snn.Leaky(0.9, spike_grad=SurrogateSpike(Dspike()))
    compiled = torch.compile(neuron, backend="aot_eager")
    found, expected = [], []
    for step, results in ((compiled, found), (neuron, expected)):
        current, membrane = V.float().requires_grad_(), torch.full((len(V),), 0.9)
        spikes, membrane = step(current, membrane)
        (spikes * torch.arange(len(V)) + membrane).sum().backward()
        results.extend((spikes.detach(), membrane.detach(), current.grad))
    assert expected[0].any() and (expected[2] != 1).any()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def network(spike_grad):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8),
        snn.Leaky(0.9, init_hidden=True, spike_grad=spike_grad),
        nn.Linear(8, 3),
        snn.Leaky(0.8, init_hidden=True, output=True, spike_grad=spike_grad),
    )
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(3)
    return net


def gradients(net, learner=None):
    x = (torch.rand(6, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    for step in x:
        spikes, membrane = net(step)
        (spikes.sum() + membrane.square().sum()).backward(retain_graph=learner is None)
    return [parameter.grad for parameter in net.parameters()]


def test_the_neuron_s_own_surrogate_serves_the_rule_as_the_same_psi_does():
    """psi=None takes the derivative of the neuron's spike function, here the psi of the other network's rule."""
    own, given = network(SurrogateSpike(Dspike(2.0))), network(None)
    numbers = {"alpha_pre": 1.0, "lambda_pre": 0.8, "alpha_post": -0.3, "lambda_post": 0.5}
    one = STLLRLearner(own, rule=STLLRRule(**numbers, psi=None, propagate="surrogate"))
    other = STLLRLearner(given, rule=STLLRRule(**numbers, psi=Dspike(2.0), propagate="psi"))
    for found, expected in zip(gradients(own, one), gradients(given, other), strict=True):
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rules_take_it_by_name():
    rule = STLLRRule(psi="dspike")
    assert STLLRLearner(network(None), rule=rule).report() is not None
    assert rule.describe()["psi"] in ("dspike", {"name": "dspike", "temperature": 3.0})
