"""A signal that needs the network's output finds the right one, or an error of the package names output=."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import Gradients, assert_right, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 6, 4, 6, 6, 3


class Body(nn.Module):
    """What all have; ``true_output`` is what the loss sees."""

    true_output = "fc2"

    def __init__(self) -> None:
        super().__init__()
        hidden = {"init_hidden": True}
        self.fc1, self.lif1 = nn.Linear(IN, N), snn.Leaky(0.9, **hidden)
        self.fcm, self.lifm = nn.Linear(N, N), snn.Leaky(0.9, **hidden)
        self.fc2 = nn.Linear(N, OUT)

    def body(self, x: Tensor) -> Tensor:
        return self.lifm(self.fcm(self.lif1(self.fc1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.body(x))


class UnusedHead(Body):
    def __init__(self) -> None:
        super().__init__()
        self.later = nn.Linear(N, 2)


class UnusedNeuron(Body):
    def __init__(self) -> None:
        super().__init__()
        self.later = snn.Leaky(0.9, init_hidden=True)


class HeadForMonitoring(Body):
    """It runs, and its output enters no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.body(x)
        self.seen = self.probe(spikes).detach()
        return self.fc2(spikes)


class RegisteredBackwards(Body):
    """The first layer is registered last."""

    def __init__(self) -> None:
        super().__init__()
        first = self.fc1
        del self.fc1
        self.fc1 = first


class SpikingOutput(Body):
    """The output is a neuron, and a layer of the body comes after it in the register."""

    true_output = "lif2"

    def __init__(self) -> None:
        super().__init__()
        self.lif2 = snn.Leaky(0.9, init_hidden=True)
        middle = self.fcm
        del self.fcm
        self.fcm = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.body(x)))


class Pretrained(Body):
    """An encoder in front, registered after everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(IN, IN)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.encoder(x))


NETWORKS: dict[str, type[Body]] = {
    kind.__name__: kind
    for kind in (UnusedHead, UnusedNeuron, HeadForMonitoring, RegisteredBackwards, SpikingOutput, Pretrained)
}
SIGNALS = ["dfa", "sign_dfa", "drtp", "local_random", "tess"]


def train(kind: Callable[[], nn.Module], signal: str, output: str | None, way: str = "b") -> Gradients:
    net = build(kind)
    learner = STLLRLearner(net, sgd(net), rule=RULE, learning_signal=signal, feedback_seed=0, output=output)
    if learner.needs_target:
        learner.set_target(torch.arange(B) % OUT)
    total = torch.zeros(())
    for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
        loss = net(step).square().sum()
        total = total + loss
        if way == "b":
            loss.backward()
    if way == "a":
        total.backward()
    found = copied(net)
    learner.step()
    return {name: value for name, value in found.items() if value.any()}


@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_the_right_output_or_an_error_that_names_it(kind, signal, way):
    want = train(kind, signal, kind.true_output, way)
    try:
        found = train(kind, signal, None, way)
    except STLLRError as refusal:
        assert "output=" in str(refusal)
        return
    assert_right(found, want)
