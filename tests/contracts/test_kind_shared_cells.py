"""A cell at several places of a step has a state at each: stream() and run() give what the loop gives, or refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import assert_right, copied, members
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 8, 3, 6, 5, 2


class Shared(nn.Module):
    """What all have: two synapses, one cell, a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lif = nn.Linear(IN, N), nn.Linear(IN, N), norse.LIFCell(parameters())
        self.out = nn.Linear(2 * N, OUT)


class Branches(Shared):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t = state or (None, None)
        one, s = self.lif(self.a(x), s)
        two, t = self.lif(self.b(x), t)
        return self.out(torch.cat([one, two], 1)), (s, t)


class ThreeBranches(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.out = nn.Linear(IN, N), nn.Linear(3 * N, OUT)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = list(state or [None] * 3)
        spikes = []
        for place, layer in enumerate((self.a, self.b, self.c)):
            one, state[place] = self.lif(layer(x), state[place])
            spikes.append(one)
        return self.out(torch.cat(spikes, 1)), tuple(state)


class InSeries(Shared):
    """The same cell above itself."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.out = nn.Linear(N, N), nn.Linear(N, OUT)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t = state or (None, None)
        one, s = self.lif(self.a(x), s)
        two, t = self.lif(self.b(one), t)
        return self.out(two), (s, t)


class SharedReadout(Shared):
    """Two readouts of one leaky integrator."""

    def __init__(self) -> None:
        super().__init__()
        self.li, self.up, self.down = norse.LICell(), nn.Linear(N, OUT), nn.Linear(N, OUT)
        self.other = norse.LIFCell(parameters())

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, o, t, u = state or (None, None, None, None)
        one, s = self.lif(self.a(x), s)
        two, o = self.other(self.b(x), o)
        first, t = self.li(self.up(one), t)
        second, u = self.li(self.down(two), u)
        return first - second, (s, o, t, u)


class SharedBlock(Shared):
    """Synapse and cell together, on two halves of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(IN // 2, N)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t = state or (None, None)
        one, s = self.lif(self.a(x[:, : IN // 2]), s)
        two, t = self.lif(self.a(x[:, IN // 2 :]), t)
        return self.out(torch.cat([one, two], 1)), (s, t)


class RecurrentCell(Shared):
    """The cell has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = norse.LIFRecurrentCell(IN // 2, N, parameters()), nn.Linear(2 * N, OUT)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t = state or (None, None)
        one, s = self.cell(x[:, : IN // 2], s)
        two, t = self.cell(x[:, IN // 2 :], t)
        return self.out(torch.cat([one, two], 1)), (s, t)


class OtherOrder(Shared):
    """The places change their order from step to step; each state is the place's own."""

    def __init__(self) -> None:
        super().__init__()
        self.t = 0

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t = state or (None, None)
        self.t = 0 if state is None else self.t + 1
        if self.t % 2:
            two, t = self.lif(self.b(x), t)
            one, s = self.lif(self.a(x), s)
        else:
            one, s = self.lif(self.a(x), s)
            two, t = self.lif(self.b(x), t)
        return self.out(torch.cat([one, two], 1)), (s, t)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (Branches, ThreeBranches, InSeries, SharedReadout, SharedBlock, RecurrentCell, OtherOrder)
}


def outputs_and_gradients(kind: Callable[[], nn.Module], way: str, parts: bool = False) -> dict[str, Tensor]:
    net = build(kind)
    x = 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    with STLLRLearner(net, rule=RULE) as learner:
        if way == "loop":
            state = None
            for step in x:
                output, state = net(step, state)
                outputs.append(output.detach())
                output.square().sum().backward()
        elif way == "stream":
            state = None
            for piece in (x[:3], x[3:]) if parts else (x,):
                stream = learner.stream(piece, state)
                for output in stream:
                    outputs.append(output.detach())
                    output.square().sum().backward()
                state = stream.state
        else:
            outputs = learner.run(net, x, None, lambda output, y: output.square().sum(), window=int(way)).outputs
        outputs = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return {"outputs": torch.stack(outputs)} | copied(net)


@pytest.mark.parametrize("way", ["stream", "1", "3", "8"])
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_state_belongs_to_the_place_of_the_call(kind, way):
    want = outputs_and_gradients(kind, "loop")
    want = {name: value for name, value in want.items() if value.any()}
    try:
        found = outputs_and_gradients(kind, way)
    except STLLRError:
        return
    assert_right(found, want)


@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_stream_in_two_parts(kind):
    want = outputs_and_gradients(kind, "loop")
    want = {name: value for name, value in want.items() if value.any()}
    try:
        found = outputs_and_gradients(kind, "stream", parts=True)
    except STLLRError:
        return
    assert_right(found, want)


class TwoCells(Shared):
    """A cell for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.other = norse.LIFCell(parameters())

    def places(self, x: Tensor, s: Any, t: Any, turned: bool) -> tuple[Any, Any]:
        if turned:
            two, one = self.other(self.b(x), t), self.lif(self.a(x), s)
        else:
            one, two = self.lif(self.a(x), s), self.other(self.b(x), t)
        return one, two

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s, t, count = state or (None, None, 0)
        (one, s), (two, t) = self.places(x, s, t, self.turned(count))
        return self.out(torch.cat([one, two], 1)), (s, t, count + 1)

    def turned(self, count: int) -> bool:
        return False


class CellsInOtherOrder(TwoCells):
    def turned(self, count: int) -> bool:
        return count % 3 == 1


@pytest.mark.parametrize(
    "options", [{}, {"num_steps": T}, {"supervise_last": 3}, {"supervise_last": 3, "num_steps": T}]
)
@pytest.mark.parametrize("kind, like", [(OtherOrder, Branches), (CellsInOtherOrder, TwoCells)])
def test_the_order_of_places_within_a_step_does_not_matter(kind, like, options):
    def train(kind: Callable[[], nn.Module]) -> dict[str, Tensor]:
        net = build(kind)
        state, total = None, torch.zeros(())
        with STLLRLearner(net, rule=RULE, **options):
            for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
                output, state = net(step, state)
                total = total + output.square().sum()
            total.backward()
        return copied(net)

    assert_right(train(kind), train(like))
