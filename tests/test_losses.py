"""TETLoss: its terms add up to the loss of the paper, and teach an attached network what one backward would."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stllr_plugin import STLLRLearner
from stllr_plugin.losses import TETLoss
from tests.contracts.networks import RULE, STEPPING, assert_close, build, gradients, labels, spikes

T, B, C = 5, 6, 4


def whole(outputs: torch.Tensor, y: torch.Tensor, phi: float, lamb: float) -> torch.Tensor:
    """The formula for all steps [T, B, C] at once."""
    entropy = F.cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)))
    return (1 - lamb) * entropy + lamb * F.mse_loss(outputs, torch.full_like(outputs, phi))


def make_outputs():
    return 2 * torch.randn(T, B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("phi", "lamb"), [(1.0, 0.05), (0.5, 0.0), (0.0, 1.0), (2.0, 0.3)])
def test_the_terms_add_up_to_the_whole(phi, lamb):
    outputs, y = make_outputs(), labels(B)
    criterion = TETLoss(phi, lamb, num_steps=T)
    torch.testing.assert_close(sum(criterion(step, y) for step in outputs), whole(outputs, y, phi, lamb))


def test_one_term_by_hand():
    outputs = torch.tensor([[1.0, 3.0]])
    entropy = torch.log(torch.exp(torch.tensor(1.0)) + torch.exp(torch.tensor(3.0))) - 1.0
    expected = (0.8 * entropy + 0.2 * (0.0 + 4.0) / 2) / 10
    torch.testing.assert_close(TETLoss(1.0, 0.2, num_steps=10)(outputs, torch.tensor([0])), expected)


def test_without_num_steps_the_mean_of_the_terms_is_the_loss():
    outputs, y = make_outputs(), labels(B)
    terms = torch.stack([TETLoss()(step, y) for step in outputs])
    torch.testing.assert_close(terms.mean(), whole(outputs, y, 1.0, 0.05))


def test_the_terms_of_samples():
    outputs, y = make_outputs()[0], labels(B)
    terms = TETLoss(reduction="none")(outputs, y)
    assert terms.shape == (B,)
    torch.testing.assert_close(terms.mean(), TETLoss()(outputs, y))


def test_label_smoothing_and_probabilities_are_those_of_the_cross_entropy():
    outputs, y = make_outputs()[0], labels(B)
    found = TETLoss(lamb=0.0, label_smoothing=0.1)(outputs, y)
    torch.testing.assert_close(found, F.cross_entropy(outputs, y, label_smoothing=0.1))
    hot = F.one_hot(y, C).double()
    torch.testing.assert_close(TETLoss()(outputs, hot), TETLoss()(outputs, y))


@pytest.mark.parametrize("kind", STEPPING)
def test_backward_at_each_step_equals_one_backward_of_the_whole(kind):
    x, y = spikes(T, B), labels(B)
    net, twin = build(STEPPING[kind]), build(STEPPING[kind])  # Norse's masks do not survive a deep copy

    criterion, state = TETLoss(phi=0.7, lamb=0.4, num_steps=T), None
    with STLLRLearner(net, rule=RULE):
        for step in x:
            output, state = net(step, state)
            criterion(output, y).backward()

    outputs, state = [], None
    with STLLRLearner(twin, rule=RULE):
        for step in x:
            output, state = twin(step, state)
            outputs.append(output)
        whole(torch.stack(outputs), y, 0.7, 0.4).backward()

    assert_close(gradients(net), gradients(twin), 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lamb": 1.5}, "lamb=1.5"),
        ({"lamb": -0.1}, "lamb=-0.1"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"reduction": "sum"}, "reduction='sum'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TETLoss(**arguments)


def test_a_whole_sequence_is_refused():
    with pytest.raises(ValueError, match="outputs of one time step"):
        TETLoss()(make_outputs(), labels(B))
