"""A synapse that is not called at a step at which its neuron runs counts as called on zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build, parameters
from tests.oracles import stllr as oracle
from tests.oracles.spec import Net, Node

B, IN, N = 4, 6, 5
QUIET = {
    "now and then": {1, 3, 4, 6},
    "at the very beginning": {0, 1},
    "at the end": {6, 7},
    "all but one step": {0, 1, 2, 3, 5, 6, 7},
    "at the supervised steps alone": {5, 6, 7},
}


def events(quiet: set[int], seed: int = 0, steps: int = 8) -> Tensor:
    x = 2 * torch.rand(steps, B, IN, generator=torch.Generator().manual_seed(seed))
    x[list(quiet)] = 0.0
    return x


def labels() -> Tensor:
    return torch.arange(B) % N


class Skipping(nn.Module):
    """Layers fed by events, which are not called where there is none (``skip``), or are called on zeros."""

    skip = True

    def current(self, fc: nn.Module, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), N) if self.skip and not x.any() else fc(x)


class Last(Skipping):
    """States passed by hand; the layer that is skipped is the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(IN, N, bias=False), snn.Leaky(0.9)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, state = self.lif(self.current(self.fc, x), self.lif.reset_mem() if state is None else state)
        return spikes + state, state


class LastHidden(Skipping):
    """The same with a state that the neuron keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(IN, N, bias=False), snn.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, membrane = self.lif(self.current(self.fc, x))
        return spikes + membrane, None


class First(Skipping):
    """A hidden layer, states passed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(IN, N, bias=False), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(N, N), snn.Leaky(0.8)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif.reset_mem(), self.lif2.reset_mem()) if state is None else state
        spikes, a = self.lif(self.current(self.fc, x), a)
        spikes, b = self.lif2(self.fc2(spikes), b)
        return spikes + b, (a, b)


class FirstHidden(Skipping):
    """A hidden layer that keeps its state, behind it a plain readout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.fc2 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.fc2(self.lif(self.current(self.fc, x))), None


class OneOfTwo(Skipping):
    """Two synapses feed a neuron, and one of them is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other, self.lif = nn.Linear(IN, N, bias=False), nn.Linear(IN, N, bias=False), snn.Leaky(0.9)
        self.fc2 = nn.Linear(N, N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.lif.reset_mem() if state is None else state
        steady = torch.cos(torch.arange(B * IN).reshape(B, IN) + x.sum())
        current = self.other(steady) + (0.0 if self.skip and not x.any() else self.fc(x))
        spikes, state = self.lif(current, state)
        return self.fc2(spikes), state


class OneOfTwoHidden(OneOfTwo):
    def __init__(self) -> None:
        super().__init__()
        self.lif = snn.Leaky(0.9, init_hidden=True)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        steady = torch.cos(torch.arange(B * IN).reshape(B, IN) + x.sum())
        spikes = self.lif(self.other(steady) + (0.0 if self.skip and not x.any() else self.fc(x)))
        return self.fc2(spikes), None


class Recurrent(Skipping):
    """The neuron has a synapse of its own, which goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(IN, N, bias=False), snn.RLeaky(0.9, linear_features=N)
        self.fc2 = nn.Linear(N, N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, membrane = self.lif.reset_mem() if state is None else state
        spikes, membrane = self.lif(self.current(self.fc, x), spikes, membrane)
        return self.fc2(spikes), (spikes, membrane)


class Norse(Skipping):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(IN, N, bias=False), norse.LIFCell(parameters())
        self.fc2, self.li = nn.Linear(N, N), norse.LICell()

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (None, None) if state is None else state
        spikes, a = self.lif(self.current(self.fc, x), a)
        membrane, b = self.li(self.fc2(spikes), b)
        return membrane, (a, b)


class TwiceInAStep(Skipping):
    """A block that runs twice within a step; its second run is skipped where events are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.fc2 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9), nn.Linear(2 * N, N)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.lif.reset_mem(), self.lif.reset_mem()) if state is None else state
        one, a = self.lif(self.fc(x.flip(0) + 0.5), a)
        two, b = self.lif(self.current(self.fc, x), b)
        return self.fc2(torch.cat([one, two], 1)), (a, b)


NETWORKS: dict[str, Callable[[], Skipping]] = {
    kind.__name__: kind
    for kind in (Last, LastHidden, First, FirstHidden, OneOfTwo, OneOfTwoHidden, Recurrent, Norse, TwiceInAStep)
}


def train(kind: Callable[[], Skipping], skip: bool, quiet: set[int], *, way: str = "b", **options: Any) -> Gradients:
    """Two sequences: what is known of a network after the first must not change the second."""
    net = build(kind)
    net.skip = skip
    learner = STLLRLearner(net, sgd(net), rule=RULE, **options)
    found: Gradients = {}
    for seed in (3, 4):
        learner.reset()
        learner.zero_grad()
        state, total, x = None, torch.zeros(()), events(quiet, seed)
        for t, step in enumerate(x):
            output, state = net(step, state)
            if t < len(x) - 3:
                continue
            loss = cross_entropy(output, labels())
            if way == "b" and loss.requires_grad:
                loss.backward()
            total = total + loss
        if way == "a":
            total.backward()
        found |= {f"{seed} {name}": value for name, value in copied(net).items()}
        learner.step()
    return found


@pytest.mark.parametrize("quiet", members(QUIET))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_a_skipped_synapse_is_one_called_on_zeros(kind, quiet):
    assert_right(train(kind, True, quiet), train(kind, False, quiet))


@pytest.mark.parametrize(
    "how",
    members(
        {
            "one backward": {"way": "a"},
            "supervise_last": {"supervise_last": 3, "way": "a"},
            "length known": {"supervise_last": 3, "num_steps": 8},
            "folded": {"num_steps": 8, "fold_steps": 2},
        }
    ),
)
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_in_every_way(kind, how):
    quiet = QUIET["now and then"]
    assert_right(train(kind, True, quiet, **how), train(kind, False, quiet, **how))


@pytest.mark.parametrize("quiet", members(QUIET))
@pytest.mark.parametrize("name", ["causal", "both terms"])
def test_the_oracle_says_the_same(quiet, name):
    """The rule written out, for the last layer of states passed by hand."""
    both = oracle.Rule(alpha_post=-0.3 if name == "both terms" else 0.0)
    rule = type(RULE)(both.alpha_pre, both.lambda_pre, both.alpha_post, both.lambda_post, "triangle", "psi")
    net = build(Last)
    spec = Net(
        (Node("fc", "Linear", ("x",)), Node("lif", "Leaky", ("fc",), {"beta": 0.9, "threshold": 1.0})),
        {"fc.weight": net.fc.weight.detach().clone()},
        ("lif", "lif.mem"),
    )
    x, state = events(quiet), None
    with STLLRLearner(net, rule=rule):
        for step in x:
            output, state = net(step, state)
            if output.requires_grad:  # before the first call of the layer it depends on no weight
                output.square().sum().backward()
    want = oracle.Oracle(spec, both).run(x, lambda out, t: (out["lif"] + out["lif.mem"]).square().sum())
    assert_right(copied(net), {name: value.float() for name, value in want.grads.items()})


class Late(nn.Module):
    """A delay between layer and neuron: the neuron gets the current of the step before."""

    def __init__(self, steps: int, detached: bool = False) -> None:
        super().__init__()
        self.fc, self.lif, self.fc2 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9), nn.Linear(N, N)
        self.steps, self.detached = steps, detached

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        line, membrane = ([x.new_zeros(len(x), N)] * self.steps, self.lif.reset_mem()) if state is None else state
        line = [*line, self.fc(x)]
        spikes, membrane = self.lif(line[0], membrane)
        return self.fc2(spikes), (line[1:], membrane)


class Shifted(nn.Module):
    """The same computation with the delay in front of the layer."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.fc, self.lif, self.fc2 = nn.Linear(IN, N, bias=False), snn.Leaky(0.9), nn.Linear(N, N)
        self.steps = steps

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        line, membrane = ([torch.zeros_like(x)] * self.steps, self.lif.reset_mem()) if state is None else state
        line = [*line, x]
        spikes, membrane = self.lif(self.fc(line[0]), membrane)
        return self.fc2(spikes), (line[1:], membrane)


@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_delay_between_layer_and_neuron(steps, way):
    def run(kind: Callable[[], nn.Module]) -> Gradients:
        net = build(kind)
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        state, total = None, torch.zeros(())
        for step in events(set()):
            output, state = net(step, state)
            loss = cross_entropy(output, labels())
            total = total + loss
            if way == "b":
                loss.backward()
        if way == "a":
            total.backward()
        learner.step()
        return copied(net)

    assert_right_or_refused(lambda: run(lambda: Late(steps)), run(lambda: Shifted(steps)))
