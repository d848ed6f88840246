"""Whatever decides about a spike in fire() is what psi sees: a neuron that compares otherwise is right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import AttachmentError, StateError
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE

T, B, IN, N, OUT = 10, 4, 6, 5, 3


class Adaptive(snn.Leaky):
    """The threshold grows with each spike."""

    extra: Any = 0.0

    def fire(self, mem: Tensor) -> Tensor:
        spikes = self.spike_grad(mem - (self.threshold + self.extra))
        self.extra = 0.9 * self.extra + 0.5 * spikes.detach()
        return spikes


class Raised(snn.Leaky):
    """A constant is added to the threshold."""

    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(mem - self.threshold - 0.4)


class PerUnit(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(mem - torch.linspace(0.6, 1.4, N))


class Noisy(snn.Leaky):
    """Noise on the threshold, from a generator of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.source = torch.Generator().manual_seed(0)

    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(mem - self.threshold + 0.5 * torch.randn(mem.shape, generator=self.source))


class Scaled(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(2.0 * (mem - self.threshold))


class Relative(snn.Leaky):
    """v as a share of the threshold, as in Esser et al."""

    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad((mem - 0.7) / 0.7)


class Graded(snn.Leaky):
    """Spikes worth half."""

    def fire(self, mem: Tensor) -> Tensor:
        return 0.5 * self.spike_grad(mem - self.threshold)


class OneWinner(snn.Leaky):
    """Only the unit with the highest membrane may spike."""

    def fire(self, mem: Tensor) -> Tensor:
        spikes = self.spike_grad(mem - self.threshold)
        return spikes * (mem == mem.amax(1, keepdim=True)).float().detach()


class Clamped(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return self.spike_grad(mem.clamp(max=1.2) - self.threshold)


KINDS: dict[str, type[snn.Leaky]] = {
    kind.__name__: kind for kind in (Adaptive, Raised, PerUnit, Noisy, Scaled, Relative, Graded, OneWinner, Clamped)
}


class Recorded(nn.Module):
    """A layer, the neuron and a readout; notes what the spike function compares, and what became of it."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc, self.lif, self.out = nn.Linear(IN, N), neuron(), nn.Linear(N, OUT)
        with torch.no_grad():
            self.fc.weight.mul_(2)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []


def written_out(
    net: Recorded, x: Tensor, y: Tensor, v: list[Tensor], spikes: list[Tensor], dv_du: Any, dy_ds: Any
) -> Tensor:
    """The rule in float64. ``v`` is what was compared; ``dv_du`` [T][B, N] its slope, ``dy_ds`` the output's."""
    trace = post = torch.zeros(())
    total = torch.zeros(N, IN, dtype=torch.float64)
    weight, bias = net.out.weight.detach().double(), net.out.bias.detach().double()
    for t, xt in enumerate(x.double()):
        s = spikes[t].double().requires_grad_()
        (delta,) = torch.autograd.grad(cross_entropy(s @ weight.T + bias, y), s)
        delta = delta * dy_ds[t] * dv_du[t]
        psi = 0.3 * (1 - v[t].double().abs()).clamp(min=0)
        trace = RULE.lambda_pre * trace + xt
        total += (delta * psi).T @ trace + RULE.alpha_post * (delta * post).T @ xt
        post = RULE.lambda_post * post + psi
    return total


def train(kind: type[snn.Leaky], spy: bool) -> tuple[Gradients, Any]:
    """With ``spy``: without a learner, recording what spike_grad is given; the wanted gradient comes from that."""
    net = Recorded(lambda: kind(0.9))
    x, y = torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)), torch.arange(B) % OUT
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # v, dv/dmem, dy/ds
    spikes: list[Tensor] = []
    if spy:
        fire, spike_grad = net.lif.fire, net.lif.spike_grad

        def noting(mem: Tensor) -> Tensor:
            mem = mem.detach().requires_grad_()
            compared: list[Tensor] = []
            worth: list[Tensor] = []

            def compare(v: Tensor) -> Tensor:
                compared.append(v)
                worth.append(spike_grad(v.detach()).detach().requires_grad_())
                return worth[0]

            net.lif.spike_grad = compare
            given = fire(mem)
            net.lif.spike_grad = spike_grad  # mem_reset() uses it too
            (slope,) = torch.autograd.grad(compared[0].sum(), mem)
            (share,) = torch.autograd.grad(given.sum(), worth[0])
            seen.append((compared[0].detach(), slope, share))
            return given.detach()

        net.lif.fire = noting
        with torch.no_grad():
            state = net.lif.reset_mem()
        for step in x:
            with torch.enable_grad():
                s, state = net.lif(net.fc(step), state)
            state = state.detach()
            spikes.append(s.detach())
        v, slopes, shares = ([row[i] for row in seen] for i in range(3))
        assert any(s.any() for s in spikes)
        return {"fc.weight": written_out(net, x, y, v, spikes, slopes, shares).float()}, None
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    state = net.lif.reset_mem()
    for step in x:
        s, state = net.lif(net.fc(step), state)
        cross_entropy(net.out(s), y).backward()
    return copied(net), learner


@pytest.mark.parametrize("kind", members(KINDS))
def test_psi_sees_what_was_compared(kind):
    want, _ = train(kind, True)
    assert_right_or_refused(lambda: train(kind, False)[0], want)


def test_the_reference_is_right_for_the_librarys_own_neuron():
    want, _ = train(snn.Leaky, True)
    assert_right(train(snn.Leaky, False)[0], want)


def test_fire_replaced_on_the_neuron_itself():
    class Patched(snn.Leaky):
        def __init__(self, beta: float) -> None:
            super().__init__(beta)
            self.fire = lambda mem: self.spike_grad(mem - 1.4)

    want, _ = train(Patched, True)
    assert_right_or_refused(lambda: train(Patched, False)[0], want)


class Doubled(snn.Leaky):
    """What leaves the neuron is not what fire gave: twice that."""

    def forward(self, *args: Any) -> Any:
        spikes, mem = super().forward(*args)
        return 2 * spikes, mem


class Late(snn.Leaky):
    """The threshold moves on after fire has compared with it."""

    def forward(self, *args: Any) -> Any:
        spikes, mem = super().forward(*args)
        self.threshold = self.threshold + 0.1 * spikes.detach()
        return spikes, mem


class Mixed(snn.Leaky):
    """Spikes of one unit reach another."""

    def forward(self, *args: Any) -> Any:
        spikes, mem = super().forward(*args)
        return spikes.roll(1, 1) + spikes, mem


class Base(snn.Leaky):
    """Calls the library's fire, with another membrane."""

    def fire(self, mem: Tensor) -> Tensor:
        return super().fire(mem - 0.3)


class Elsewhere(snn.Leaky):
    """With a spike function that is not spike_grad."""

    def fire(self, mem: Tensor) -> Tensor:
        return surrogate.atan()(mem - 1.2)


AROUND = {kind.__name__: kind for kind in (Doubled, Late, Base)}
REFUSED = {kind.__name__: kind for kind in (Mixed, Elsewhere)}


@pytest.mark.parametrize("kind", members(AROUND))
def test_code_around_fire(kind):
    net = Recorded(lambda: kind(0.9))
    x, y = torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)), torch.arange(B) % OUT
    STLLRLearner(net, sgd(net), rule=RULE)
    state, rows = net.lif.reset_mem(), []
    for step in x:
        threshold = net.lif.threshold + (0.3 if kind is Base else 0.0)
        s, state = net.lif(net.fc(step), state)
        rows.append((state.detach() - threshold, s.detach()))
        cross_entropy(net.out(s), y).backward()
    v, spikes = [row[0] for row in rows], [row[1] for row in rows]
    worth = 2.0 if kind is Doubled else 1.0
    want = written_out(net, x, y, v, spikes, [1.0] * T, [worth] * T)
    assert any(s.any() for s in spikes)
    assert_right(copied(net), {"fc.weight": want.float()})


@pytest.mark.parametrize("kind", members(REFUSED))
def test_what_cannot_be_told_is_refused(kind):
    with pytest.raises(StateError, match="adapter|Adapter"):
        train(kind, False)


def test_an_activation_of_ones_own_in_a_norse_cell_is_refused():
    cell = norse.LIFCell()
    plain = cell.activation
    cell.activation = lambda x, *args: plain(2 * x, *args)
    with pytest.raises(AttachmentError, match="activation"):
        STLLRLearner(nn.Sequential(nn.Linear(IN, N), cell), rule=RULE)


def test_a_threshold_that_the_loop_changes():
    """No method is overridden; the attribute moves from step to step."""

    class Moving(snn.Leaky):
        def forward(self, *args: Any) -> Any:
            self.steps = getattr(self, "steps", 0) + 1
            self.threshold = torch.tensor(0.6 + 0.1 * (self.steps % 4))
            return super().forward(*args)

    want, _ = train(Moving, True)
    assert_right_or_refused(lambda: train(Moving, False)[0], want)
