"""Currents that skip past a neuron: into another neuron exactly, to the loss refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import StateError, STLLRLearner, STLLRRule

snn = pytest.importorskip("snntorch")

# Without traces the rule is plain autograd with states detached between the steps.
PLAIN = STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate")
PSI = STLLRRule(1.0, 0.0, 0.0, 0.0, None, "psi")
T, B = 4, 3


class Skips(nn.Module):
    """A current that goes into one neuron and, scaled or normalised, past it into the next."""

    def __init__(self, skip: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif1 = nn.Linear(5, 4), snn.Leaky(0.8, threshold=0.4)
        self.mix, self.lif2 = nn.Linear(4, 4), snn.Leaky(0.8, threshold=0.4, reset_mechanism="none")
        self.skip = skip

    def forward(self, x: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        current = self.fc(x)
        spikes, one = self.lif1(current, one)
        out, two = self.lif2(self.mix(spikes) + self.skip(current), two)
        return out, two, one, current


SKIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda current: current,
    "scaled": lambda current: 0.5 * current,
    "squashed": torch.tanh,
}


def train(model: nn.Module, rule: STLLRRule | None, loss) -> dict[str, Tensor]:
    x = (torch.rand(T, B, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float() * 2
    one, two = torch.zeros(B, 4), torch.zeros(B, 4)
    learner = None if rule is None else STLLRLearner(model, rule=rule)
    for step in x:
        out, two, one, current = model(step, one, two)
        loss(out, two, current).backward()
        if rule is None:
            one, two = one.detach(), two.detach()
    if learner is not None:
        learner.detach()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rule", [PLAIN, PSI], ids=["surrogate", "psi"])
@pytest.mark.parametrize("name", SKIPS)
def test_a_current_that_skips_into_the_next_neuron(name, rule):
    def loss(out, membrane, current):
        return ((out - 0.5) ** 2).sum() + (membrane**2).sum()

    expected = train(Skips(SKIPS[name]), None, loss)
    found = train(Skips(SKIPS[name]), rule, loss)
    for key, gradient in expected.items():
        assert torch.allclose(found[key], gradient, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("rule", [PLAIN, PSI, STLLRRule()], ids=["surrogate", "psi", "default"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda out, membrane, current: (membrane**2).sum() + current.pow(2).sum(),
        lambda out, membrane, current: (out * torch.sigmoid(current)).sum(),
        lambda out, membrane, current: current.sum(),
    ],
    ids=["penalty", "gate", "loss on the current alone"],
)
def test_a_current_that_reaches_the_loss_is_refused(loss, rule):
    with pytest.raises(StateError, match=r"synapse 'fc' feeds 'lif1' and 'lif2', and it reaches the loss past"):
        train(Skips(torch.tanh), rule, loss)


class CalledTwice(Skips):
    """What the message advises."""

    def forward(self, x: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out, two, one, _ = super().forward(x, one, two)
        return out, two, one, self.fc(x)


def test_the_advice_is_exact():
    def loss(out, membrane, current):
        return (membrane**2).sum() + current.pow(2).sum()

    expected = train(Skips(torch.tanh), None, loss)
    found = train(CalledTwice(torch.tanh), PLAIN, loss)
    for key, gradient in expected.items():
        assert torch.allclose(found[key], gradient, rtol=1e-4, atol=1e-5), key
