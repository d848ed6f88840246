"""Layers that run at some steps only: the sequence has one clock, the model's, whatever a layer counts itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 12, 4, 6, 5, 2
LAST = 4  # steps that are supervised


def inputs(seed: int = 1) -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed))


class SlowLast(nn.Module):
    """The second layer runs at every k-th step; between them the output holds."""

    def __init__(self, every: int = 2, first: int = 0) -> None:
        super().__init__()
        self.a, self.la = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.b, self.lb = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True)
        self.out, self.every, self.first = nn.Linear(N, OUT), every, first

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        spikes = self.la(self.a(x))
        if t % self.every == self.first:
            return self.out(self.lb(self.b(spikes))), None
        return self.out.bias + spikes.mean(1, keepdim=True), None


class SlowFirst(nn.Module):
    """The first layer is the slow one; the second works on its last spikes, which carry no graph of an earlier step."""

    def __init__(self, every: int = 2) -> None:
        super().__init__()
        self.a, self.la = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.b, self.lb = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True)
        self.out, self.every = nn.Linear(N, OUT), every

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        spikes = self.la(self.a(x)) if t % self.every == 0 else state
        return self.out(self.lb(self.b(spikes))), spikes.detach()


class SlowBranch(nn.Module):
    """Two branches of other speeds meet in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.la = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.b, self.lb = nn.Linear(IN, N), snn.Leaky(0.8, init_hidden=True)
        self.c, self.lc = nn.Linear(2 * N, N), snn.Leaky(0.8, init_hidden=True)
        self.out = nn.Linear(N, OUT)

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        slow = self.lb(self.b(x)) if t % 3 == 0 else x.new_zeros(len(x), N)
        return self.out(self.lc(self.c(torch.cat([self.la(self.a(x)), slow], 1)))), None


class SlowExplicit(SlowLast):
    """States passed by hand."""

    def __init__(self, every: int = 2) -> None:
        super().__init__(every)
        self.la, self.lb = snn.Leaky(0.9), snn.Leaky(0.8)

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        one, two = (self.la.reset_mem(), self.lb.reset_mem()) if state is None else state
        spikes, one = self.la(self.a(x), one)
        output = self.out.bias + spikes.mean(1, keepdim=True)
        if t % self.every == 0:
            spikes, two = self.lb(self.b(spikes), two)
            output = self.out(spikes)
        return output, (one, two)


class SlowNorse(SlowExplicit):
    def __init__(self) -> None:
        super().__init__()
        self.la, self.lb = norse.LIFCell(parameters()), norse.LIFCell(parameters())

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        one, two = (None, None) if state is None else state
        spikes, one = self.la(self.a(x), one)
        output = self.out.bias + spikes.mean(1, keepdim=True)
        if t % 2 == 0:
            spikes, two = self.lb(self.b(spikes), two)
            output = self.out(spikes)
        return output, (one, two)


class LateStart(SlowLast):
    """A layer that joins after some steps."""

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        return super().forward(x, 0 if t >= 5 else 1, state)


class EarlyEnd(SlowLast):
    """A layer that runs in the middle only, and once more within the supervised steps."""

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        return super().forward(x, 0 if t in (2, 3, 4, T - 2) else 1, state)


class AllSlow(SlowLast):
    """At every second step nothing runs at all."""

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        if t % 2 == 0:
            return self.out(self.lb(self.b(self.la(self.a(x))))), None
        return self.out.bias.expand(len(x), -1), None


class HeldReadout(SlowLast):
    """At every second step the readout alone runs, on the last spikes."""

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        spikes = self.lb(self.b(self.la(self.a(x)))) if t % 2 == 0 else state
        return self.out(spikes), spikes.detach()


class CutOff(SlowLast):
    """At every second step the first layer runs, and no gradient reaches it."""

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        spikes = self.la(self.a(x))
        if t % 2 == 0:
            return self.out(self.lb(self.b(spikes))), None
        return self.out.bias + spikes.detach().mean(1, keepdim=True), None


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "every second step": SlowLast,
    "every third step": lambda: SlowLast(3),
    "every third step, from the second on": lambda: SlowLast(3, 1),
    "the first layer at every second step": SlowFirst,
    "the first layer at every third step": lambda: SlowFirst(3),
    "a branch": SlowBranch,
    "states passed by hand": SlowExplicit,
    "norse": SlowNorse,
    "joins late": LateStart,
    "ends early": EarlyEnd,
    "all at every second step": AllSlow,
    "the readout at every step": HeldReadout,
    "not reached at the last step": CutOff,
}
LENGTHS = torch.tensor([12, 11, 9, 6])
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the learner, and of reset()
    "the last steps": ({"supervise_last": LAST}, {}),
    "of known length": ({"supervise_last": LAST, "num_steps": T}, {}),
    "of a length that reset tells": ({"supervise_last": LAST}, {"num_steps": T}),
    "folded": ({"supervise_last": LAST, "num_steps": T, "fold_steps": 3}, {}),
    "all of known length": ({"num_steps": T}, {}),
    "samples of other lengths": ({"supervise_last": LAST}, {"num_steps": T, "lengths": LENGTHS}),
}
STEPWISE = ("of known length", "folded", "samples of other lengths")


def weights(how: str) -> Tensor:
    """[T, B]: what the loss of each sample at each step counts."""
    t = torch.arange(T)[:, None]
    if how == "all of known length":
        return torch.ones(T, B)
    ends = LENGTHS if how == "samples of other lengths" else torch.full((B,), T)
    return ((t < ends) & (t >= ends - LAST)).float()


def train(kind: Callable[[], nn.Module], rows: Tensor, way: str, options: Any, begin: Any) -> Gradients:
    """The loss is that of the supervised samples, whoever is told of them."""
    net = build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
    learner.reset(**begin)
    state, total = None, torch.zeros(())
    for t, (step, row) in enumerate(zip(inputs(), rows, strict=True)):
        output, state = net(step, t, state)
        if not row.any():
            continue
        loss = (output.square().sum(1) * row).sum()
        total = total + loss
        if way == "b" and loss.requires_grad:
            loss.backward()
    if way == "a":
        total.backward()
    found = copied(net)
    learner.step()  # must find all in order
    return found


@pytest.mark.parametrize("way, how", [("a", how) for how in HOW if how != "folded"] + [("b", how) for how in STEPWISE])
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_what_is_announced_changes_nothing(kind, how, way):
    rows = weights(how)
    assert_right(train(kind, rows, way, *HOW[how]), train(kind, rows, way, {}, {}))


@pytest.mark.parametrize("last", [3, 4, 6])
@pytest.mark.parametrize("every", [2, 3])
def test_the_learner_drops_the_steps_of_the_sequence_and_not_the_layers(every, last):
    """One backward with a loss at all steps: what is not among the last of the sequence is dropped."""
    net = build(lambda: SlowLast(every))
    learner = STLLRLearner(net, sgd(net), rule=RULE, supervise_last=last)
    total = torch.zeros(())
    for t, step in enumerate(inputs()):
        total = total + net(step, t, None)[0].square().sum()
    total.backward()
    learner.step()
    rows = (torch.arange(T)[:, None] >= T - last).float().expand(T, B)
    want = train(lambda: SlowLast(every), rows, "a", {}, {})
    assert_right(
        {name: value for name, value in copied(net).items() if name != "out.bias"},
        {n: v for n, v in want.items() if n != "out.bias"},
    )


@pytest.mark.parametrize("how", ["the last steps", "of known length", "samples of other lengths"])
@pytest.mark.parametrize("every", [2, 3])
def test_the_rule_written_out(every, how):
    """e_ij[t] of both layers in float64; a layer's traces move on when it runs."""
    net = build(lambda: SlowLast(every))
    found = train(lambda: SlowLast(every), weights(how), "b", *HOW[how])
    a, b, out = (layer.weight.detach().double() for layer in (net.a, net.b, net.out))
    c, d, e = (layer.bias.detach().double() for layer in (net.a, net.b, net.out))
    psi = lambda v: 0.3 * (1 - v.abs()).clamp(min=0)  # noqa: E731
    u = s = w = r = torch.zeros(B, N, dtype=torch.float64)
    pre = [torch.zeros(B, 1, IN).double(), torch.zeros(B, 1, N).double()]
    post = [torch.zeros(B, N, 1).double()] * 2
    total = [torch.zeros(N, IN).double(), torch.zeros(N, N).double()]

    def eligibility(layer: int, x: Tensor, v: Tensor) -> Tensor:
        pre[layer] = RULE.lambda_pre * pre[layer] + x[:, None]
        e_ij = psi(v)[:, :, None] * pre[layer] + RULE.alpha_post * post[layer] * x[:, None]
        post[layer] = RULE.lambda_post * post[layer] + psi(v)[:, :, None]
        return e_ij

    for t, (x, row) in enumerate(zip(inputs().double(), weights(how).double(), strict=True)):
        u = 0.9 * u + x @ a.T + c - (u > 1).double()
        s = (u > 1).double()
        first = eligibility(0, x, u - 1)
        if t % every == 0:
            w = 0.8 * w + s @ b.T + d - (w > 1).double()
            r = (w > 1).double()
            second = eligibility(1, s, w - 1)
            delta = (2 * (r @ out.T + e) * row[:, None]) @ out
            total[1] += (delta[:, :, None] * second).sum(0)
            total[0] += (((delta * psi(w - 1)) @ b)[:, :, None] * first).sum(0)
        else:
            value = e + s.mean(1, keepdim=True)
            delta = (2 * value * row[:, None]).sum(1, keepdim=True).expand(B, N) / N
            total[0] += (delta[:, :, None] * first).sum(0)
    assert_right(found, {"a.weight": total[0].float(), "b.weight": total[1].float()})


class Twice(nn.Module):
    """A fast layer: two steps of the neuron within one of the model. Its state is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.la = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.b, self.lb = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True)
        self.out = nn.Linear(N, OUT)

    def forward(self, x: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        self.la(self.a(x)).detach()
        return self.out(self.lb(self.b(self.la(self.a(x.flip(1)))))), None


@pytest.mark.parametrize("how", ["the last steps", "of known length", "folded", "samples of other lengths"])
def test_a_layer_that_is_faster_than_the_model(how):
    rows = weights(how)

    def plain() -> Gradients:
        """With a backward at each step nothing needs to be announced."""
        return train(Twice, rows, "b", {}, {})

    assert_right_or_refused(lambda: train(Twice, rows, "b", *HOW[how]), plain())


class EvenSteps(SlowLast):
    """Only every second step has a loss, and not the last one; a call is one step, or holds them all."""

    def __init__(self) -> None:
        super().__init__()
        self.t = 0

    def one(self, x: Tensor) -> Tensor:
        spikes = self.la(self.a(x))
        self.t += 1
        return self.out(self.lb(self.b(spikes))) if self.t % 2 else x.new_zeros(len(x), OUT)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.one(x) if x.dim() == 2 else torch.stack([self.one(step) for step in x])


@pytest.mark.parametrize("way", ["online", "two_pass", "stream", "run"])
def test_whoever_runs_the_sequence_leaves_nothing_waiting(way):
    def train(**options: Any) -> Gradients:
        net = build(EvenSteps)
        learner = STLLRLearner(net, sgd(net), rule=RULE, num_steps=T, **options)
        if way == "online":
            with learner.online(net.out, lambda output: output.square().sum(), num_steps=T):
                net(inputs())
        elif way == "two_pass":
            learner.two_pass(net.out, lambda outputs: outputs.square().sum(), lambda: net(inputs()))
        elif way == "stream":
            for output in learner.stream(inputs()):
                if output.requires_grad:
                    output.square().sum().backward()
        else:
            learner.run(net, inputs(), None, lambda o, y: o.square().sum() if o.requires_grad else None, window=3)
        return copied(net)

    assert_right(train(fold_steps=3), train())
