"""A model that is compiled after attaching has the gradients of eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    RULE,
    STEPPING,
    LinearReadout,
    Looping,
    adam,
    assert_close,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    values,
)

T = 3


class Convolutional(nn.Module):
    """Something between synapse and neuron that has to be differentiated: batch norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(1, HIDDEN, 2), nn.BatchNorm2d(HIDDEN), nn.MaxPool2d((2, 3))
        self.lif1 = snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        hidden = self.lif1(self.pool(self.norm(self.conv(x.view(-1, 1, 3, 4)))))
        return self.lif2(self.fc2(hidden.flatten(1)))[1], None


KINDS = {**STEPPING, "linear-readout": LinearReadout, "convolutional": Convolutional}


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    torch._dynamo.reset()


def train(kind: Any, backend: str | None, way: str = "b", **options: Any) -> dict[str, Tensor]:
    """The weights after one update, and the gradient of another sequence."""
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE, **options)
    called = net if backend is None else torch.compile(net, backend=backend)
    for seed in range(2):
        learner.zero_grad()
        run_steps(called, spikes(T, seed=seed), labels(), way=way)
        if seed == 0:
            learner.step()
    found = {**{f"grad {n}": g for n, g in gradients(net).items()}, **values(net)}
    found.pop("grad conv.bias", None)  # batch norm takes it out again
    found.pop("conv.bias", None)
    return found


QUICK = {("norse-cells", "a"), ("convolutional", "b")}
EACH = pytest.mark.parametrize(("name", "way"), [
    pytest.param(name, way, marks=() if (name, way) in QUICK else pytest.mark.slow) for name in KINDS for way in "ab"
])  # fmt: skip


@EACH
def test_gradients_are_those_of_eager_mode(name, way):
    assert_close(train(KINDS[name], "aot_eager", way), train(KINDS[name], None, way), 1e-5)


@pytest.mark.slow
def test_direct_feedback_too():
    options = {"learning_signal": "dfa", "feedback_seed": 0}
    kind = STEPPING["snntorch-explicit-recurrent"]
    assert_close(train(kind, "aot_eager", **options), train(kind, None, **options), 1e-5)


@pytest.mark.slow
def test_a_loop_inside_forward():
    def gradient(backend: str | None) -> dict[str, Tensor]:
        looping = Looping(build(STEPPING["snntorch-hidden"]))
        STLLRLearner(looping, rule=RULE)
        called = looping if backend is None else torch.compile(looping, backend=backend)
        cross_entropy(called(spikes(T)).sum(0), labels()).backward()
        return gradients(looping)

    assert_close(gradient("aot_eager"), gradient(None), 1e-5)


@pytest.mark.slow
@EACH
def test_gradients_under_the_default_backend(name, way):
    """Writes and compiles C++ code."""
    assert_close(train(KINDS[name], "inductor", way), train(KINDS[name], None, way), 1e-4)
