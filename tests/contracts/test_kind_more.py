"""Small things that were wrong in silence: each is right now, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from stllr_plugin.surrogates import SurrogateSpike
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT, LAST = 8, 4, 6, 6, 3, 3


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        spikes, membrane = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return spikes + membrane


# What stands behind the last synapse.


class Gain(Net):
    """A parameter of the output; ``behind`` is its name."""

    behind = "gain"

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(N))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Offset(Gain):
    def forward(self, x: Tensor) -> Tensor:
        return Net.forward(self, x) + self.gain


class Norm(Net):
    behind = "norm.weight"

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(N)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Readout(Net):
    """A plain linear readout."""

    behind = "out.weight"

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(N, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


class OfTheWholeSequence(nn.Module):
    """The loop is inside forward, and what is behind it is applied to all steps at once."""

    behind = "tail.weight"

    def __init__(self) -> None:
        super().__init__()
        self.net, self.tail = Net(), nn.LayerNorm(N)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.stack([self.net(step) for step in x]))


class Inside(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(step) for step in x])


def behind(kind: Callable[[], nn.Module], announced: dict[str, Any], drop: bool) -> Gradients:
    """``drop``: the loss itself leaves the early steps out, which is the reference."""
    net = build(kind)
    whole = net if kind is OfTheWholeSequence else Inside(net)
    STLLRLearner(whole, sgd(whole), rule=RULE, **announced)
    rows = whole(inputs())
    (rows[-LAST:] if drop else rows).square().sum().backward()
    return copied(net)


@pytest.mark.parametrize(
    "announced", [{"supervise_last": LAST}, {"supervise_last": LAST, "num_steps": T}], ids=["last", "known length"]
)
@pytest.mark.parametrize("kind", [Gain, Offset, Norm, Readout, OfTheWholeSequence])
def test_a_parameter_behind_the_last_synapse_gets_the_supervised_steps(kind, announced):
    want = behind(kind, {"supervise_last": LAST}, True)
    assert_right_or_refused(lambda: behind(kind, announced, False), {kind.behind: want[kind.behind]})


# Inputs that are changed in place.


def changed_in_place(change: Callable[[Tensor], Any] | None, at: set[int], **options: Any) -> Gradients:
    """One buffer for all frames, or a fresh tensor each."""
    net = build(Net)
    learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
    total, buffer = torch.zeros(()), torch.zeros(B, IN)
    for t, step in enumerate(inputs()):
        x = step.clone()
        if change is not None:
            x = buffer.copy_(step) if t not in at else step.clone()
        loss = net(x).square().sum()
        if change is not None and t in at:
            change(x)
        if t >= T - LAST:
            total = total + loss
    if total.requires_grad:
        total.backward()
    learner.step()
    return copied(net)


@pytest.mark.parametrize(
    "options",
    [{}, {"supervise_last": LAST}, {"supervise_last": LAST, "num_steps": T}],
    ids=["nothing", "last", "known length"],
)
@pytest.mark.parametrize(
    "at", [{0}, {2, 3}, {T - 1}, set()], ids=["first", "unsupervised", "supervised", "a buffer used again"]
)
@pytest.mark.parametrize(
    "change",
    members({"mul_": lambda x: x.mul_(0.5), "set by index": lambda x: x.__setitem__(0, 7.0)}),
)
def test_an_input_that_is_changed_in_place(change, at, options):
    want = changed_in_place(None, set(), **options)
    assert_right_or_refused(lambda: changed_in_place(change, at, **options), want)


# psi in place.


def in_place_abs(v: Tensor) -> Tensor:
    return 0.3 * v.abs_().neg_().add_(1).clamp_(min=0)


def in_place_sub(v: Tensor) -> Tensor:
    v -= 0.0
    v.abs_()
    return 0.3 * (1 - v).clamp(min=0)


def in_place_mask(v: Tensor) -> Tensor:
    v[v.abs() > 1] = 1.0
    return 0.3 * (1 - v.abs())


@pytest.mark.parametrize("propagate", ["psi", "surrogate"])
@pytest.mark.parametrize("psi", [in_place_abs, in_place_sub, in_place_mask])
def test_a_psi_that_changes_its_argument(psi, propagate):
    def train(psi: Any) -> Gradients:
        net = build(Net)
        STLLRLearner(net, sgd(net), rule=type(RULE)(1.0, 0.8, -0.3, 0.5, psi, propagate))
        for step in inputs():
            net(step).square().sum().backward()
        return copied(net)

    assert_right_or_refused(lambda: train(psi), train("triangle"))


# Hooks that change the output of a layer.


@contextmanager
def global_hook(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = register_module_forward_hook(lambda module, args, output: change(output) if module is net.fc1 else None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def global_pre_hook(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Changes the input."""
    handle = register_module_forward_pre_hook(lambda module, args: (change(args[0]),) if module is net.fc1 else None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def prepended(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    net.fc1.register_forward_hook(lambda module, args, output: change(output), prepend=True)
    yield


@contextmanager
def appended(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    net.fc1.register_forward_hook(lambda module, args, output: change(output))
    yield


@contextmanager
def always_called(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    net.fc1.register_forward_hook(lambda module, args, output: change(output), prepend=True, always_call=True)
    yield


@contextmanager
def prepended_to_the_neuron(net: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    net.lif1.register_forward_pre_hook(lambda module, args: (change(args[0]),), prepend=True)
    yield


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "halved": lambda x: 0.5 * x,
    "squashed": torch.tanh,
}


@pytest.mark.parametrize("late", [False, True], ids=["hook first", "learner first"])
@pytest.mark.parametrize("change", members(CHANGES))
@pytest.mark.parametrize(
    "hook", [global_hook, global_pre_hook, prepended, appended, always_called, prepended_to_the_neuron]
)
def test_hooks_that_change_what_flows(hook, change, late):
    """The same change as a module of its own."""

    class Applied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(x)

    def apart() -> Gradients:
        net = build(Net)
        layer = net.fc1
        net.fc1 = nn.Sequential(Applied(), layer) if hook is global_pre_hook else nn.Sequential(layer, Applied())
        STLLRLearner(net, sgd(net), rule=RULE)
        for step in inputs():
            net(step).square().sum().backward()
        return {name.replace("fc1.0.", "fc1.").replace("fc1.1.", "fc1."): value for name, value in copied(net).items()}

    def hooked() -> Gradients:
        net = build(Net)
        if late:
            STLLRLearner(net, sgd(net), rule=RULE)
        with hook(net, change):
            if not late:
                STLLRLearner(net, sgd(net), rule=RULE)
            for step in inputs():
                net(step).square().sum().backward()
        return copied(net)

    assert_right_or_refused(hooked, apart())


# no_grad in the middle of a sequence.


class Explicit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9, 0.6), nn.Linear(N, OUT)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, state = self.lif1(self.fc1(x), self.lif1.reset_mem() if state is None else state)
        return self.fc2(spikes), state


@pytest.mark.parametrize("blind", [{1}, {2}, {2, 3, 4}, {0, 1, 5}], ids=str)
@pytest.mark.parametrize("quiet", [set(), {0, 1, 2, 3}], ids=["events", "4 quiet"])
@pytest.mark.parametrize("kind", [Explicit, Net])
def test_no_grad_in_mid_sequence(kind, quiet, blind):
    """Steps under no_grad do not count for the rule; whether the membrane is all zero then must not matter."""
    x = inputs()
    x[list(quiet)] = 0.0

    def train(nudge: float) -> Gradients:
        """``nudge`` keeps the membrane from being zero, and is far too small to change anything else."""
        net = build(kind)
        if kind is Net:
            for layer, neuron in ((net.fc1, net.lif1), (net.fc2, net.lif2)):
                layer.bias.data.zero_()
                neuron.threshold.fill_(0.6)  # psi of a membrane at rest is not zero
        STLLRLearner(net, sgd(net), rule=RULE)
        state = None
        for t, step in enumerate(x + nudge):
            with torch.set_grad_enabled(t not in blind):
                output, state = net(step, state) if kind is Explicit else (net(step), None)
            if t not in blind:
                output.square().sum().backward()
        return copied(net)

    assert_right_or_refused(lambda: train(0.0), train(1e-7), tolerance=1e-3)


# The optimizer of another model.


@pytest.mark.parametrize("when", ["at once", "after a step"])
def test_an_optimizer_of_another_models_parameters(when):
    """step() would update nothing of this model."""
    net, other = build(Net), build(Net, seed=1)
    with pytest.raises(STLLRError):
        learner = STLLRLearner(net, sgd(other), rule=RULE)
        for _ in range(1 if when == "at once" else 2):
            for step in inputs():
                net(step).square().sum().backward()
            learner.step()


def test_an_optimizer_of_a_copy_made_before():
    """The usual way into it: the model is copied, or made anew, after the optimizer."""
    net = build(Net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    again = build(Net)
    with pytest.raises(STLLRError):
        learner = STLLRLearner(again, optimizer, rule=RULE)
        for step in inputs():
            again(step).square().sum().backward()
        learner.step()


def test_an_optimizer_of_some_of_the_parameters_is_allowed():
    net = build(Net)
    learner = STLLRLearner(net, torch.optim.SGD(net.fc2.parameters(), lr=0.0), rule=RULE)
    for step in inputs():
        net(step).square().sum().backward()
    learner.step()


def test_an_optimizer_of_more_than_the_model_is_allowed():
    net, encoder = build(Net), nn.Linear(IN, IN)
    learner = STLLRLearner(net, torch.optim.SGD([*net.parameters(), *encoder.parameters()], lr=0.0), rule=RULE)
    for step in inputs():
        net(encoder(step)).square().sum().backward()
    learner.step()
    assert encoder.weight.grad.any()


# Small penalties.


class Double(Net):
    """Its spikes are float64, as snnTorch's own surrogates' are not."""

    def __init__(self) -> None:
        super().__init__()
        spike = {"spike_grad": SurrogateSpike("sigmoid"), "init_hidden": True}
        self.lif1, self.lif2 = snn.Leaky(0.9, **spike), snn.Leaky(0.8, output=True, **spike)
        self.double()


@pytest.mark.parametrize("factor", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("place", ["fc1", "fc2"])
def test_a_small_penalty_on_a_current(place, factor):
    """In float64, so that what is lost is not rounding: the sum of both gradients, or an error."""

    def train(factor: float) -> Gradients:
        net = build(Double)
        STLLRLearner(net, sgd(net), rule=RULE)
        currents: list[Tensor] = []
        getattr(net, place).register_forward_hook(lambda module, args, output: currents.append(output) or None)
        for step in inputs().double():
            output = net(step)
            loss = output.square().sum()
            if factor:
                loss = loss + factor * currents[-1].square().sum()
            loss.backward()
        return copied(net)

    without = train(0.0)
    layer = build(Double)
    fed: list[Tensor] = []
    getattr(layer, place).register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    with torch.no_grad():
        for step in inputs().double():
            layer(step)
    total = torch.zeros((), dtype=torch.float64)
    for x in list(fed):
        current = nn.functional.linear(x, getattr(layer, place).weight, getattr(layer, place).bias)
        total = total + factor * current.square().sum()
    total.backward()
    want = {f"{place}.weight": copied(layer)[f"{place}.weight"]}

    def arrived() -> Gradients:
        found = train(factor)
        return {name: found[name] - without[name] for name in want}

    assert_right_or_refused(arrived, want, tolerance=1e-3)


def test_the_helpers_notice_a_wrong_gradient():
    """Else nothing in these files would prove anything."""
    with pytest.raises(AssertionError):
        assert_right({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 1.01])})
