"""Neurons that are known by heart: taken where they are plain, and right for losses on everything they return."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.sites import neuron as attached_neuron
from stllr_plugin.ways.windows import neuron as windows_neuron
from tests.support.setup import gradients, tensors

norse = pytest.importorskip("norse.torch")

STEPS, BATCH, WIDTH = 7, 3, 5
RULES = {
    "triangle": STLLRRule(1.0, 0.8, -0.3, 0.5, "triangle"),
    "surrogate": STLLRRule(0.7, 0.8, 0.4, 0.5, None, "surrogate", "paper"),
}
P = norse.LIFParameters(v_th=torch.tensor(0.2), alpha=torch.tensor(3.0))
BOX = norse.LIFBoxParameters(v_th=torch.tensor(0.2), alpha=torch.tensor(3.0))


def subtracting() -> nn.Module:
    from norse.torch.functional.reset import reset_subtract

    cell: nn.Module = norse.LIFBoxCell(BOX._replace(reset_method=reset_subtract))
    return cell


CELLS: dict[str, Callable[[], nn.Module]] = {
    "LIFCell": lambda: norse.LIFCell(P),
    "LIFCell, reset to another value": lambda: norse.LIFCell(P._replace(v_reset=torch.tensor(-0.4))),
    "LIFCell, tanh": lambda: norse.LIFCell(P._replace(method="tanh")),
    "LIFCell, another dt": lambda: norse.LIFCell(P, dt=0.002),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(WIDTH, WIDTH, P),
    "LIFRecurrentCell, autapses": lambda: norse.LIFRecurrentCell(WIDTH, WIDTH, P, autapses=True),
    "LIFBoxCell": lambda: norse.LIFBoxCell(BOX),
    "LIFBoxCell, subtracting": subtracting,
    "LICell": norse.LICell,
    "LIBoxCell": norse.LIBoxCell,
}


class Around(nn.Module):
    """A layer, a cell, and everything that the cell returns."""

    def __init__(self, cell: nn.Module, below: bool = True) -> None:
        super().__init__()
        self.below = nn.Linear(4, WIDTH) if below else nn.Identity()
        self.cell = cell

    def forward(self, x: Tensor, state: Any = None) -> Any:
        output, state = self.cell(self.below(x), state)
        return (output, *state), state


def loss(output: Any, t: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, value in enumerate(tensors(output)):
        total = total + (torch.sin(0.7 * torch.arange(WIDTH) + 2 * t + i) * value).sum() + (value**2).mean()
    return total


def trained(name: str, rule: str, window: int | None, fused: bool) -> tuple[dict[str, Tensor], list[Any]]:
    torch.manual_seed(0)
    model = Around(CELLS[name]()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    xs = (torch.rand(STEPS, BATCH, 4) < 0.5).double()
    with pytest.MonkeyPatch.context() as patch:
        if fused:
            patch.setattr(windows_neuron, "scan_steps", lambda *_: pytest.fail("ran step by step"))
            patch.setattr(attached_neuron, "live_response", lambda *_: pytest.fail("left a graph"))
        else:
            patch.setattr(attached_neuron, "find_knowledge", lambda _: None)
        learner = STLLRLearner(model, rule=RULES[rule])
        if window is None:
            outputs = []
            for t, output in enumerate(learner.stream(xs)):
                loss(output, t).backward()
                outputs.append(output)
        else:
            result = learner.run(model, xs, list(range(STEPS)), loss, window=window)
            assert result.steps_because is None
            outputs = result.outputs
    return gradients(model), outputs


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CELLS)
def test_losses_on_all_that_a_cell_returns(name: str, rule: str, window: int | None) -> None:
    """Step by step (None) and in windows, against steps whose graph is the module's own."""
    found, outputs = trained(name, rule, window, fused=True)
    expected, wanted = trained(name, rule, None, fused=False)
    for one, other in zip(outputs, wanted, strict=True):
        for a, b in zip(tensors(one), tensors(other), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-9, atol=1e-12, msg=parameter)
    assert any(gradient.abs().sum() > 0 for gradient in found.values())


class Learned(norse.LIFCell):  # type: ignore[name-defined, misc]
    """A subclass may do something else."""


def with_step_of_its_own() -> nn.Module:
    """Norse's own step, but not under its own name."""
    cell = norse.LIFCell(P)
    cell.activation = partial(cell.activation)
    return cell  # type: ignore[no-any-return]


def with_fire_of_its_own() -> nn.Module:
    neuron = snn.Leaky(0.9)
    neuron.fire = lambda mem: neuron.spike_grad(mem - 0.3)
    return neuron  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("cell", "fused"),
    [
        (lambda: norse.LIFCell(P), True),
        (lambda: Learned(P), False),
        (lambda: norse.LIFCell(P._replace(tau_mem_inv=torch.full((WIDTH,), 100.0))), False),
        (lambda: norse.LIFCell(P._replace(v_th=torch.tensor(0.2, requires_grad=True))), False),
        (lambda: norse.LIFRefracCell(), False),
        (with_step_of_its_own, False),
        (with_fire_of_its_own, False),
        (lambda: snn.Leaky(0.9, init_hidden=False), True),
        (lambda: snn.Leaky(0.9, learn_beta=True), False),
        (lambda: snn.Synaptic(0.9, 0.8), False),
    ],
    ids=[
        "LIFCell",
        "subclass",
        "one time constant each",
        "learned",
        "refractory",
        "own step",
        "own fire",
        "Leaky",
        "learned leak",
        "Synaptic",
    ],
)
def test_only_what_is_known(cell: Callable[[], nn.Module], fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[str] = []
    plain = windows_neuron.scan_steps

    def watched(site: Any, *args: Any) -> Any:
        stepped.append(site.name)
        return plain(site, *args)

    monkeypatch.setattr(windows_neuron, "scan_steps", watched)
    model = Around(cell()) if "norse" in type(cell()).__module__ or cell().__class__ is Learned else States(cell())
    with STLLRLearner(model, rule="dvs_gesture") as learner:
        xs = (torch.rand(STEPS, BATCH, 4) < 0.5).float()
        result = learner.run(model, xs, None, lambda output, _: tensors(output)[0].sum(), window=3)
        assert result.steps_because is None
    assert bool(stepped) != fused


class States(nn.Module):
    """snnTorch's neurons with their states passed in and out."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.below, self.neuron = nn.Linear(4, WIDTH), neuron

    def forward(self, x: Tensor, state: Any = None) -> Any:
        spikes, *state = self.neuron(self.below(x), *(state or ()))
        return spikes, tuple(state)


HALF: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: Around(snn.Leaky(0.9, threshold=0.3, init_hidden=True)),
    "Leaky, zero": lambda: Around(snn.Leaky(0.9, threshold=0.3, reset_mechanism="zero", init_hidden=True)),
    "RLeaky": lambda: Around(snn.RLeaky(0.9, threshold=0.3, linear_features=WIDTH, init_hidden=True)),
    **{name: (lambda name=name: Around(CELLS[name]())) for name in ("LIFCell", "LIFRecurrentCell", "LIFBoxCell")},
}


class Deep(nn.Module):
    """Two layers and a readout, so that all of the window is in half precision."""

    def __init__(self, around: Around) -> None:
        super().__init__()
        self.first, self.second = around, nn.Linear(WIDTH, 3)
        self.readout = snn.Leaky(0.9, reset_mechanism="none", init_hidden=True, output=True)
        self.hidden = isinstance(around.cell, snn.SpikingNeuron)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if self.hidden:
            spikes, state = self.first.cell(self.first.below(x)), None
        else:
            spikes, state = self.first.cell(self.first.below(x), state)
        return self.readout(self.second(spikes))[1], state


@pytest.mark.parametrize("name", HALF)
def test_in_half_precision_they_do_what_the_modules_do(name: str) -> None:
    """Under autocast currents come in bfloat16, and membranes are what promotion makes of them."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = Deep(HALF[name]())
        xs = (torch.rand(STEPS, BATCH, 4) < 0.5).float()
        with pytest.MonkeyPatch.context() as patch, STLLRLearner(model, rule=RULES["triangle"]) as learner:
            if fused:
                patch.setattr(windows_neuron, "scan_steps", lambda *_: pytest.fail("ran step by step"))
            else:
                patch.setattr(windows_neuron, "find_knowledge", lambda _: None)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = learner.run(model, xs, None, lambda out, _: out.float().square().mean(), window=4)
            assert result.steps_because is None
        found.append((gradients(model), result.outputs))
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.01)
    for parameter, gradient in found[0][0].items():
        wanted = found[1][0][parameter]
        assert (gradient - wanted).norm() <= 0.02 * wanted.norm(), parameter
