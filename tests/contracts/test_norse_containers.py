"""Norse's containers and its regularisation: gradients are those of the same network written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner, STLLRRule

norse = pytest.importorskip("norse.torch")

T, B = 6, 3
RULE = STLLRRule(alpha_pre=1.0, lambda_pre=0.8, alpha_post=-0.3, lambda_post=0.5, psi="triangle")


def spikes() -> Tensor:
    return (torch.rand(T, B, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float() * 3


def parameters() -> norse.LIFBoxParameters:
    return norse.LIFBoxCell().p._replace(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.4))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


class WrittenOut(nn.Module):
    """RecurrentSequential(Linear, cell, Linear, cell): its output is added to its input at the next step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(4, 4), norse.LIFBoxCell(parameters())
        self.fc2, self.lif2 = nn.Linear(4, 4), norse.LIFBoxCell(parameters())

    def forward(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        before, one, two = (None, None, None) if state is None else state
        x = x if before is None else x + before.detach()
        y, one = self.lif1(self.fc1(x), one)
        y, two = self.lif2(self.fc2(y), two)
        return y, (y, one, two)


class FirstIsANeuron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.block = norse.RecurrentSequential(norse.LIFBoxCell(parameters()), nn.Linear(4, 4), norse.LIFBoxCell())

    def forward(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        return self.block(x, state)


def train(model: nn.Module, at_the_end: bool) -> list[Tensor]:
    state, total = None, torch.zeros(())
    with STLLRLearner(model, rule=RULE):
        for t, x in enumerate(spikes()):
            output, state = model(x, state)
            loss = ((output - 0.1 * t) ** 2).sum()
            if at_the_end:
                total = total + loss
            else:
                loss.backward()
        if at_the_end:
            total.backward()
    return gradients(model)


@pytest.mark.parametrize("at_the_end", [False, True])
def test_recurrent_sequential(at_the_end):
    written = WrittenOut()
    container = norse.RecurrentSequential(written.fc1, written.lif1, written.fc2, written.lif2)
    expected = train(written, at_the_end)
    assert all(gradient.any() for gradient in expected)
    container.zero_grad()
    for found, wanted in zip(train(container, at_the_end), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_recurrent_sequential_that_begins_with_a_neuron():
    """Nothing is between its output and the neuron that it reaches one step later."""
    model = FirstIsANeuron()
    assert all(
        torch.allclose(one, other, atol=1e-6) and one.any()
        for one, other in zip(train(model, False), train(FirstIsANeuron(), True), strict=True)
    )


class Counting(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc, self.lif = nn.Linear(4, 3), norse.LIFBoxCell(parameters())
        self.counter = norse.RegularizationCell(**options)

    def forward(self, x: Tensor, state: tuple | None) -> tuple[Tensor, Tensor, tuple]:
        y, state = self.lif(self.fc(x), state)
        y, count = self.counter(y, state)
        return y, count, state


def run(model: nn.Module, what: str) -> Tensor:
    state, total = None, torch.zeros(())
    for x in spikes():
        y, count, state = model(x, state)
        if what == "count at each step":
            count.sum().backward()
        elif what == "spikes at each step":
            y.sum().backward()
        total = total + y.sum()
    if what == "count at the end":
        count.sum().backward()
    return total.detach()


@pytest.mark.parametrize("what", ["count at each step", "count at the end"])
def test_a_term_on_the_count(what):
    """At each step only that step's spikes are in the graph; at the end all of them are."""
    expected = Counting()
    with STLLRLearner(expected, rule=RULE):
        run(expected, "spikes at each step")
    model = Counting()
    with STLLRLearner(model, rule=RULE) as learner:
        for _ in range(2):
            model.zero_grad()
            assert run(model, what) == model.counter.state.detach() > 0
            learner.reset()
            assert model.counter.state is None
            for found, wanted in zip(gradients(model), gradients(expected), strict=True):
                assert torch.allclose(found, wanted, atol=1e-6) and found.any()


def test_a_term_on_the_membranes():
    model = Counting(accumulator=norse.functional.regularization.voltage_accumulator)
    with STLLRLearner(model, rule=RULE):
        run(model, "count at each step")
    assert model.fc.weight.grad.any()


def test_nothing_of_the_graph_is_left_after_detach():
    model = Counting()
    with STLLRLearner(model, rule=RULE):
        run(model, "nothing")
        assert model.counter.state.requires_grad
    assert not model.counter.state.requires_grad
