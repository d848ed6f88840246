"""Backward hooks of the user's are called once for each call of the layer, with the gradient of the layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_full_backward_hook

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import members, sgd
from tests.contracts.networks import PLAIN, RULE, build, parameters

T, B, IN, N, OUT = 6, 4, 6, 6, 3


class Dense(nn.Module):
    """``watched`` are the layers that hooks are put on."""

    watched = ("fc1", "fc2")

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(IN, N), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(N, OUT), snn.Leaky(0.8)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif1.reset_mem(), self.lif2.reset_mem()) if state is None else state
        spikes, a = self.lif1(self.fc1(x), a)
        spikes, b = self.lif2(self.fc2(spikes), b)
        return spikes + b, (a, b)


class Conv(Dense):
    watched = ("fc1",)

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Conv1d(1, 2, 3, padding=1)
        self.fc2 = nn.Linear(2 * IN, OUT)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif1.reset_mem(), self.lif2.reset_mem()) if state is None else state
        spikes, a = self.lif1(self.fc1(x[:, None]), a)
        spikes, b = self.lif2(self.fc2(spikes.flatten(1)), b)
        return spikes + b, (a, b)


class Norse(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.lif1, self.lif2 = norse.LIFCell(parameters()), norse.LICell()

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (None, None) if state is None else state
        spikes, a = self.lif1(self.fc1(x), a)
        membrane, b = self.lif2(self.fc2(spikes), b)
        return membrane, (a, b)


class Readout(Dense):
    """The last layer feeds no neuron."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, a = self.lif1(self.fc1(x), self.lif1.reset_mem() if state is None else state)
        return self.fc2(spikes), a


class Normed(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif1.reset_mem(), self.lif2.reset_mem()) if state is None else state
        spikes, a = self.lif1(self.norm(self.fc1(x)), a)
        spikes, b = self.lif2(self.fc2(spikes), b)
        return spikes + b, (a, b)


NETWORKS: dict[str, type[Dense]] = {kind.__name__: kind for kind in (Dense, Conv, Norse, Readout, Normed)}
Note = Callable[[Tensor], None]


def full_hook(layer: nn.Module, note: Note) -> Any:
    return layer.register_full_backward_hook(lambda module, given, taken: note(taken[0]))


def full_pre_hook(layer: nn.Module, note: Note) -> Any:
    return layer.register_full_backward_pre_hook(lambda module, taken: note(taken[0]))


def global_hook(layer: nn.Module, note: Note) -> Any:
    return register_module_full_backward_hook(lambda module, given, taken: note(taken[0]) if module is layer else None)


def output_hook(layer: nn.Module, note: Note) -> Any:
    """A hook on the tensor that the layer gives out."""

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: note(gradient))

    return layer.register_forward_hook(watch)


HOOKS = {
    "full hook": full_hook,
    "full pre-hook": full_pre_hook,
    "global hook": global_hook,
    "hook on the output": output_hook,
}


def calls(
    kind: type[Dense], hook: Callable[[nn.Module, Note], Any], rule: Any, way: str, late: bool
) -> dict[str, list[Tensor]]:
    """By layer, what its hook got; the latest step first in way a."""
    net = build(kind)
    seen: dict[str, list[Tensor]] = {name: [] for name in kind.watched}
    handles: list[Any] = []

    def watch() -> None:
        for name in kind.watched:
            handles.append(hook(getattr(net, name), lambda g, name=name: seen[name].append(g.detach().clone())))

    if not late:
        watch()
    if rule is not None:
        options = {"num_steps": T, "fold_steps": 3} if way == "folded" else {}
        STLLRLearner(net, sgd(net), rule=rule, **options)
    if late:
        watch()
    try:
        state, total = None, torch.zeros(())
        for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
            output, state = net(step, state)
            loss = output.square().sum()
            if way == "a":
                total = total + loss
            else:
                loss.backward()
            if rule is None:
                state = detached(state)
        if way == "a":
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    parts = [detached(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


@pytest.mark.parametrize("way, late", [("a", False), ("b", True), ("folded", False)])
@pytest.mark.parametrize("hook", members(HOOKS))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_once_per_call(kind, hook, way, late):
    try:
        seen = calls(kind, hook, RULE, way, late)
    except STLLRError:
        return
    assert {name: len(rows) for name, rows in seen.items()} == {name: T for name in kind.watched}


@pytest.mark.parametrize("hook", members(HOOKS))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_with_the_gradient_of_the_output(kind, hook):
    """Without traces that is plain autograd's, with states detached between the steps."""
    want = calls(kind, hook, None, "b", False)
    try:
        seen = calls(kind, hook, PLAIN, "b", False)
    except STLLRError:
        return
    for name, rows in want.items():
        assert len(seen[name]) == len(rows) == T
        assert torch.allclose(torch.stack(seen[name]), torch.stack(rows), rtol=1e-4, atol=1e-5), name
