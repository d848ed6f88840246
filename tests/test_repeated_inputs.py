"""An input that is the same at each step is multiplied once, and nothing but the time shows it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from tests.cases.surrogates import exact_spike_grad

snn = pytest.importorskip("snntorch")

STEPS = 6


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        fire = exact_spike_grad("fast_sigmoid", 25)
        self.fc1, self.lif1 = nn.Linear(256, 128), snn.Leaky(beta=0.9, threshold=0.5, spike_grad=fire)
        self.fc2, self.lif2 = nn.Linear(128, 10), snn.Leaky(beta=0.9, spike_grad=fire)

    def start(self) -> tuple[Tensor, Tensor]:
        return self.lif1.init_leaky(), self.lif2.init_leaky()

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        spikes, first = self.lif1(self.fc1(x), states[0])
        _, second = self.lif2(self.fc2(spikes), states[1])
        return second, (first, second)


class Convolutional(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(nn.Unflatten(1, (1, 16, 16)), nn.Conv2d(1, 8, 5), nn.Flatten(), nn.Linear(1152, 128))


NETS = {"dense": Dense, "convolutional": Convolutional}


def made(kind: str) -> tuple[nn.Module, STLLRLearner]:
    torch.manual_seed(0)
    net = NETS[kind]().double()
    return net, STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=1e-5), rule="dvs_gesture")


def first_layer(net: nn.Module) -> nn.Module:
    return net.fc1 if isinstance(net.fc1, nn.Linear) else net.fc1[1]  # type: ignore[no-any-return]


def train(
    net: nn.Module,
    learner: STLLRLearner,
    x: Tensor,
    between: Callable[[int, nn.Module, Tensor], Tensor],
    sequences: int = 3,
) -> list[Tensor]:
    """Outputs of all steps and the gradients of each sequence; ``between`` gives the input of each step."""
    found = []
    for _ in range(sequences):
        learner.zero_grad()
        states, loss = net.start(), torch.zeros(()).double()
        for step in range(STEPS):
            out, states = net(between(step, net, x), states)
            found.append(out.detach().clone())
            loss = loss + out.square().mean()
        loss.backward()
        found += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        learner.step()
    return found


def the_same(step: int, net: nn.Module, x: Tensor) -> Tensor:
    return x


def a_view(step: int, net: nn.Module, x: Tensor) -> Tensor:
    return x.view(len(x), -1)


def changed_halfway(step: int, net: nn.Module, x: Tensor) -> Tensor:
    return x if step < 3 else x + 0.5


def weight_changed(step: int, net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        first_layer(net).weight.mul_(0.9)
    return x


def weight_data_changed(step: int, net: nn.Module, x: Tensor) -> Tensor:
    first_layer(net).weight.data.mul_(0.9)
    return x


def bias_changed(step: int, net: nn.Module, x: Tensor) -> Tensor:
    first_layer(net).bias.data.add_(0.1)
    return x


def another_weight(step: int, net: nn.Module, x: Tensor) -> Tensor:
    first_layer(net).weight.data = first_layer(net).weight.data * 0.9
    return x


BETWEEN = [the_same, a_view, changed_halfway, weight_changed, weight_data_changed, bias_changed, another_weight]


@pytest.mark.parametrize("between", BETWEEN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", NETS)
def test_the_same_as_with_copies_of_the_input(kind: str, between: Callable[[int, nn.Module, Tensor], Tensor]) -> None:
    x = torch.rand(64, 256).double()
    found = train(*made(kind), x, between)
    wanted = train(*made(kind), x, lambda step, net, x: between(step, net, x).clone())
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-11 * other.norm()


def products(kind: str, monkeypatch: pytest.MonkeyPatch, between: Callable[[int, nn.Module, Tensor], Tensor]) -> int:
    """How often the first layer was computed in the third sequence."""
    net, learner = made(kind)
    x = torch.rand(64, 256).double()
    train(net, learner, x, between, sequences=2)
    count = 0
    name = "linear" if kind == "dense" else "conv2d"
    plain = getattr(nn.functional, name)

    def counted(given: Tensor, weight: Tensor, *args: object) -> Tensor:
        nonlocal count
        count += weight is first_layer(net).weight
        return plain(given, weight, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(nn.functional, name, counted)
    train(net, learner, x, between, sequences=1)
    return count


def test_the_layer_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products("dense", monkeypatch, the_same) == 1


@pytest.mark.parametrize("between", [changed_halfway, weight_changed], ids=lambda f: f.__name__)
def test_and_again_when_something_has_changed(
    between: Callable[[int, nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert products("dense", monkeypatch, between) > 1


def test_memory_that_is_written_to_past_torch() -> None:
    numpy = pytest.importorskip("numpy")
    net, learner = made("dense")
    array = numpy.zeros((64, 256), dtype="float64")
    x = torch.from_numpy(array)
    seen = []
    with torch.no_grad():
        wanted = [net.fc1(torch.full((64, 256), float(step)).double()) for step in range(STEPS)]
    for step in range(STEPS):
        array[:] = float(step)
        seen.append(net.fc1(x).detach().clone())
    assert all(torch.equal(one, other) for one, other in zip(seen, wanted, strict=True))
    learner.detach()


def test_an_output_may_be_changed_in_place() -> None:
    net, _ = made("dense")
    x = torch.rand(64, 256).double()
    with torch.no_grad():
        wanted = net.fc1(x)
    for _ in range(STEPS):
        out = net.fc1(x)
        assert torch.equal(out, wanted)
        out.detach().zero_()


def test_weights_changed_by_hand_between_sequences() -> None:
    """A training loop that never steps an optimizer, on one batch that is the same all the time."""
    net, learner = made("dense")
    x = torch.rand(64, 256).double()
    for _ in range(3):
        states, loss = net.start(), torch.zeros(()).double()
        for _ in range(STEPS):
            with torch.no_grad():
                wanted = nn.functional.linear(x, net.fc1.weight, net.fc1.bias)
            current = net.fc1(x)
            assert torch.equal(current.detach(), wanted)
            spikes, first = net.lif1(current, states[0])
            _, second = net.lif2(net.fc2(spikes), states[1])
            states, loss = (first, second), loss + second.square().mean()
        loss.backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
    learner.detach()


def test_nothing_stays_on_the_model() -> None:
    net, learner = made("dense")
    train(net, learner, torch.rand(64, 256).double(), the_same)
    assert "forward" in net.fc1.__dict__  # else this test shows nothing
    twin = copy.deepcopy(net)
    assert "forward" not in twin.fc1.__dict__ or twin.fc1.forward.__self__ is twin.fc1
    learner.detach()
    assert "forward" not in net.fc1.__dict__


def test_evaluation_is_the_layers_own() -> None:
    net, learner = made("dense")
    x = torch.rand(64, 256).double()
    train(net, learner, x, the_same)
    for prepare in (net.eval, net.train):
        prepare()
        with torch.no_grad():
            x.add_(1.0)
            assert torch.equal(net.fc1(x), nn.functional.linear(x, net.fc1.weight, net.fc1.bias))
    learner.detach()


@pytest.mark.parametrize("in_place", [False, True], ids=["another tensor", "in place"])
@pytest.mark.parametrize("at", [{3, 4}, {1, 3, 5}, set(range(8))], ids=["some", "every second", "all"])
def test_hooks_that_change_the_input_after_ours_take_part(at: set[int], in_place: bool) -> None:
    net, learner = made("dense")
    x = torch.rand(64, 256).double()
    train(net, learner, x, the_same)  # the layer is known as one whose inputs repeat
    calls = -1
    seen: list[Tensor] = []

    def change(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        nonlocal calls
        calls += 1
        changed = args[0]
        if calls in at:
            changed = changed.add_(0.5) if in_place else changed + 0.5 * (calls + 1)
        seen.append(changed.clone())
        return (changed,)

    net.fc1.register_forward_pre_hook(change)
    for _ in range(8):
        found = net.fc1(x).detach().clone()
        assert torch.equal(found, nn.functional.linear(seen[-1], net.fc1.weight, net.fc1.bias).detach())
    learner.detach()
