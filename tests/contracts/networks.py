"""Small networks, data and comparisons that the contract tests share.

Every network takes one step per call, ``output, state = net(x, state)``, with ``state=None`` where a sequence begins;
:class:`Looping` puts the time loop inside ``forward``. Weights are scaled so that all layers spike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner, STLLRRule

INPUTS, HIDDEN, CLASSES = 12, 10, 4
RULE = STLLRRule(alpha_pre=1.0, lambda_pre=0.8, alpha_post=-0.3, lambda_post=0.5, psi="triangle")
PLAIN = STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate")  # the gradient of one step, states detached


class Hidden(nn.Module):
    """snnTorch with hidden states; the loss sees the last membrane."""

    def __init__(self, **neuron: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True, **neuron)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True, output=True, **neuron)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))[1], None


class Explicit(nn.Module):
    """snnTorch with states passed by hand, a recurrent layer, and membranes returned that enter no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.RLeaky(0.9, linear_features=HIDDEN)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            state = (*self.lif1.reset_mem(), self.lif2.reset_mem())
        spk1, mem1, mem2 = state
        spk1, mem1 = self.lif1(self.fc1(x), spk1, mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, (spk1, mem1, mem2)


def parameters(threshold: float = 0.3) -> norse.LIFParameters:
    """Norse's parameters with a gain large enough for a small network to spike."""
    return norse.LIFParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(threshold))


class NorseCells(nn.Module):
    """Norse's SequentialState with a leaky-integrator readout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = norse.SequentialState(
            nn.Linear(INPUTS, HIDDEN), norse.LIFCell(parameters()), nn.Linear(HIDDEN, CLASSES), norse.LICell()
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layers(x, state)


class NorseRecurrent(nn.Module):
    """Norse's recurrent cell, which holds its own weights, with a spiking output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = norse.LIFRecurrentCell(INPUTS, HIDDEN, parameters())
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), norse.LIFCell(parameters(0.2))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, second = (None, None) if state is None else state
        spikes, first = self.cell(x, first)
        spikes, second = self.lif2(self.fc2(spikes), second)
        return spikes, (first, second)


class LinearReadout(nn.Module):
    """A plain linear readout that no neuron consumes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.fc2(self.lif1(self.fc1(x))), None


class Deep(nn.Module):
    """Three spiking layers, for direct feedback and rules by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 7), snn.Leaky(0.9, init_hidden=True)
        self.fc3, self.lif3 = nn.Linear(7, CLASSES), snn.Leaky(0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.lif3(self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))))[1], None


class Looping(nn.Module):
    """The time loop inside ``forward``: [T, B, inputs] to [T, B, classes]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            output, state = self.net(step, state)
            outputs.append(output)
        return torch.stack(outputs)


STEPPING: dict[str, Callable[[], nn.Module]] = {
    "snntorch-hidden": Hidden,
    "snntorch-explicit-recurrent": Explicit,
    "norse-cells": NorseCells,
    "norse-recurrent": NorseRecurrent,
}


def build(kind: Callable[..., nn.Module], seed: int = 0, gain: float = 2.5, **options: Any) -> nn.Module:
    """A network with the same weights for the same seed, large enough for its neurons to spike."""
    torch.manual_seed(seed)
    net = kind(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(gain)
    return net


def spikes(steps: int, batch: int = 6, inputs: int = INPUTS, seed: int = 1) -> Tensor:
    """Binary input [T, B, inputs]."""
    return (torch.rand(steps, batch, inputs, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def labels(batch: int = 6, seed: int = 2) -> Tensor:
    """Class of each sample."""
    return torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(seed))


def run_steps(
    net: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    way: str = "b",
    supervised: Iterable[int] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """One sequence in way (a), one backward at the end, or (b), one at each step; returns the outputs, detached."""
    state, total, outputs = None, torch.zeros(()), []
    steps = set(range(len(x)) if supervised is None else supervised)
    for t, step in enumerate(x):
        output, state = net(step, state)
        outputs.append(output.detach())
        if t in steps:
            loss = cross_entropy(output, y, reduction=reduction)
            if way == "b":
                loss.backward()
            else:
                total = total + loss
    if way == "a":
        total.backward()
    return torch.stack(outputs)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by parameter name, zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def trained_gradients(
    kind: Callable[..., nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    rule: Any = RULE,
    options: dict[str, Any] | None = None,
    **run: Any,
) -> dict[str, Tensor]:
    """The gradients of one sequence on a fresh network with a fresh learner."""
    net = build(kind)
    with STLLRLearner(net, rule=rule, **(options or {})):
        run_steps(net, x, y, **run)
    return gradients(net)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Compares by name: norm of the difference over norm of what is expected. Nothing expected may be all zero."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        size = want.norm().item()
        assert size > 0, f"{name}: the reference is zero, so this comparison would prove nothing"
        error = (found[name] - want).norm().item() / size
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.equal(found[name], want), name


def differ(one: dict[str, Tensor], other: dict[str, Tensor], names: Iterable[str] | None = None) -> bool:
    """Whether all of the named entries (by default all) clearly differ."""
    return all((one[n] - other[n]).norm() > 1e-2 * other[n].norm() for n in (names or other))


def adam(net: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    """An optimizer with state."""
    return torch.optim.Adam(net.parameters(), lr=lr)


def values(net: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
