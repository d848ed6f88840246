"""Layers of stllr_plugin.nn, alone and under a learner."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.nn import SequenceDropout, weight_standardize

LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "conv1d": lambda: nn.Conv1d(2, 5, 3),
    "conv2d": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(1, 5, 2),
}
EVERY = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


# -- weight standardisation


@EVERY
def test_weights_are_standardised_per_output_unit(make):
    layer = make()
    original = layer.weight.detach().clone()
    assert weight_standardize(layer) is layer
    flat, weight = original.flatten(1), layer.weight.detach()
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) * flat.shape[1] + 1e-4).sqrt()
    torch.testing.assert_close(weight.flatten(1), expected)
    torch.testing.assert_close(weight.flatten(1).mean(1), torch.zeros(len(weight)), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.flatten(1).var(1) * flat.shape[1], torch.ones(len(weight)), atol=5e-3, rtol=0)


@EVERY
def test_the_gain_is_learned_and_starts_at_one(make):
    layer = weight_standardize(make())
    gain = layer.parametrizations["weight"][0].gain
    assert torch.equal(gain, torch.ones_like(gain)) and gain.numel() == layer.weight.shape[0]
    plain = weight_standardize(make(), gain=False)
    assert len(list(plain.parameters())) == len(list(layer.parameters())) - 1
    before = layer.weight.detach().clone()
    with torch.no_grad():
        gain.mul_(3)
    torch.testing.assert_close(layer.weight, 3 * before)


def test_gradients_are_right():
    layer = weight_standardize(nn.Linear(4, 3).double())

    def output(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        names = {"parametrizations.weight.original": weight, "parametrizations.weight.0.gain": gain}
        return torch.func.functional_call(layer, names, torch.eye(4, dtype=torch.float64))

    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (weight, gain))


def test_it_survives_a_state_dict_and_a_copy():
    layer, other = weight_standardize(nn.Linear(6, 5)), weight_standardize(nn.Linear(6, 5))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize(("module", "error", "message"), [
    (lambda: nn.ConvTranspose2d(2, 2, 3), TypeError, "takes nn.Linear and nn.Conv1d/2d/3d; found ConvTranspose2d"),
    (lambda: nn.ReLU(), TypeError, "found ReLU"),
    (lambda: nn.Linear(1, 3), ValueError, r"shape \(3, 1\) has a fan-in of 1"),
    (lambda: weight_standardize(nn.Linear(4, 3)), ValueError, "standardised already"),
])  # fmt: skip
def test_what_it_refuses(module, error, message):
    layer = module()
    before = dict(layer.named_parameters())
    with pytest.raises(error, match=message):
        weight_standardize(layer)
    assert dict(layer.named_parameters()) == before


def test_weight_and_gain_learn_by_the_rule():
    """The rule's gradient of the standardised weight, carried on to the originals by autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(weight_standardize(nn.Linear(6, 5)), snn.Leaky(0.9, init_hidden=True, output=True))
    plain = nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.9, init_hidden=True, output=True))
    with torch.no_grad():
        net[0].parametrizations["weight"][0].gain.mul_(2)
        plain[0].weight.copy_(net[0].weight)
        plain[0].bias.copy_(net[0].bias)
    x, y = (torch.rand(4, 3, 6) < 0.5).float(), torch.tensor([0, 1, 4])
    for model in (net, plain):
        STLLRLearner(model, rule=STLLRRule())
        for step in x:
            cross_entropy(model(step)[0], y).backward()
    originals = list(net[0].parametrizations.weight.parameters())
    expected = torch.autograd.grad(net[0].weight, originals, plain[0].weight.grad)
    assert plain[0].weight.grad.any()
    for parameter, gradient in zip(originals, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


# -- dropout over a sequence


def test_the_mask_stays_the_same_for_a_sequence():
    torch.manual_seed(0)
    dropout, x = SequenceDropout(0.4), torch.ones(50, 40)
    first = dropout(x)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(3 * x), 3 * first)
    dropout.reset_mask()
    assert not torch.equal(dropout(x), first)


def test_it_drops_with_probability_p_and_scales_the_rest():
    torch.manual_seed(0)
    y = SequenceDropout(0.25)(torch.ones(200, 200))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_it_does_nothing_in_evaluation_and_with_p_0():
    x = torch.randn(4, 5)
    assert SequenceDropout(0.5).eval()(x) is x
    assert SequenceDropout(0.0)(x) is x


def test_evaluation_in_mid_sequence_keeps_the_mask():
    torch.manual_seed(0)
    dropout, x = SequenceDropout(0.5), torch.ones(8, 8)
    first = dropout(x)
    dropout.eval()
    dropout(torch.ones(3, 2))
    assert torch.equal(dropout.train()(x), first)


def test_another_shape_in_mid_sequence_is_an_error():
    dropout = SequenceDropout(0.5)
    dropout(torch.ones(4, 5))
    with pytest.raises(
        RuntimeError, match=r"shape \(2, 5\), but the mask of this sequence has \(4, 5\). Call reset_mask"
    ):
        dropout(torch.ones(2, 5))


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_p_is_checked(p):
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\)"):
        SequenceDropout(p)


def test_it_has_no_state_and_says_its_p():
    dropout = SequenceDropout(0.2)
    dropout(torch.ones(3))
    assert dropout.state_dict() == {}
    assert repr(dropout) == "SequenceDropout(p=0.2)"


@pytest.mark.parametrize("end", ["reset", "step"])
def test_a_learner_draws_a_new_mask_for_each_sequence(end):
    torch.manual_seed(0)
    net = nn.Sequential(SequenceDropout(0.5), nn.Linear(30, 5), snn.Leaky(0.9, init_hidden=True, output=True))
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.1), rule=STLLRRule())
    masks = []
    net[0].register_forward_hook(lambda module, args, output: masks.append(output.detach() > 0))
    for _ in range(2):
        for _ in range(2):
            net(torch.ones(4, 30))[1].sum().backward()
        getattr(learner, end)()
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])


def test_a_mask_of_samples_draws_anew_for_these_only_or_keeps_all():
    """reset(mask) begins new sequences for some samples; the others must keep their dropout mask."""
    torch.manual_seed(0)
    net = nn.Sequential(SequenceDropout(0.5), nn.Linear(30, 5), snn.Leaky(0.9, init_hidden=True, output=True))
    learner = STLLRLearner(net, rule=STLLRRule())
    masks = []
    net[0].register_forward_hook(lambda module, args, output: masks.append(output.detach() > 0))
    net(torch.ones(4, 30))
    learner.reset(torch.tensor([True, False, False, True]))
    net(torch.ones(4, 30))
    assert torch.equal(masks[0][1:3], masks[1][1:3])
