"""Messages and reports say what is so, and advise what can be done."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import assert_right, copied, sgd, told
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 6, 4, 6, 6, 3


def network() -> nn.Sequential:
    return build(lambda: nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT)))


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))


def single_steps(net: nn.Module, learner: STLLRLearner, updates: int = 4) -> None:
    for seed in range(updates):
        learner.zero_grad()
        net(inputs()[seed]).square().sum().backward()
        learner.step()


def test_sequences_of_one_step_are_told_of_num_steps():
    """The warning knows two causes, and a remedy for each."""
    net = network()
    with told() as texts:
        single_steps(net, STLLRLearner(net, sgd(net), rule=RULE))
    assert len(texts) == 1
    assert "num_steps=1" in texts[0] and "reset_after_step=False" in texts[0]


def test_that_remedy_ends_the_warning():
    net = network()
    with told() as texts:
        single_steps(net, STLLRLearner(net, sgd(net), rule=RULE, num_steps=1))
    assert not texts


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_advice_for_spikingjellys_multi_step_nodes_can_be_followed(kind):
    """learner.stream cannot be reached while attaching is refused."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    net = nn.Sequential(nn.Linear(IN, N), getattr(neuron, kind)(step_mode="m"))
    with pytest.raises(STLLRError) as refusal:
        STLLRLearner(net, sgd(net), rule=RULE)
    assert "set_step_mode" in str(refusal.value)
    assert "stream" not in str(refusal.value)


def spikingjelly_layers() -> dict[str, nn.Module]:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    return {
        "Conv2d": nn.Sequential(layer.Conv2d(1, 2, 3, step_mode="m"), snn.Leaky(0.9, init_hidden=True)),
        "Linear": nn.Sequential(layer.Linear(IN, N, step_mode="m"), snn.Leaky(0.9, init_hidden=True)),
    }


@pytest.mark.parametrize("kind", ["Conv2d", "Linear"])
def test_a_layer_is_not_called_a_neuron(kind):
    """In whatever is said of it."""
    net = spikingjelly_layers()[kind]
    with told() as texts:
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        net(torch.rand(2, IN) if kind == "Linear" else torch.rand(2, 1, 5, 5)).sum().backward()
        learner.step()
    assert not any(f"Neuron '{place}' ({kind})" in text for text in texts for place in ("0", "1")), texts


class Mixed(nn.Module):
    """Something of everything that a report can list."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(IN, IN), nn.ReLU())
        self.fc1, self.norm, self.lif1 = nn.Linear(IN, N), nn.LayerNorm(N), snn.Leaky(0.9, init_hidden=True)
        self.out = nn.Linear(N, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lif1(self.norm(self.fc1(self.front(x)))))


@pytest.mark.parametrize("exclude", ["front*", "norm", ("front*", "norm"), "out", "fc1"])
def test_an_excluded_parameter_is_listed_once(exclude: Any):
    net = build(Mixed)
    learner = STLLRLearner(net, sgd(net), rule=RULE, exclude=exclude)
    for step in inputs():
        net(step).square().sum().backward()
    learner.step()
    report = learner.report()
    assert report.excluded
    for parameter in report.other_parameters:
        assert not any(parameter == name or parameter.startswith(f"{name}.") for name in report.excluded), parameter
    lines = str(report).splitlines()
    for name in report.excluded:
        if f"{name}.weight" in dict(net.named_parameters()):
            assert sum(f"{name}.weight" in line for line in lines) == 0, lines


TARGETS: dict[str, Any] = {
    "values of each step": lambda: torch.rand(T, B, OUT),
    "classes of each step": lambda: torch.arange(T * B).reshape(T, B) % OUT,
    "a value of each step": lambda: torch.rand(T, 1, 1),
}


@pytest.mark.parametrize("batch", [B, T], ids=["a batch of another size", "a batch as large as the sequence is long"])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_tensor_of_targets_for_each_step_does_not_broadcast(kind, batch):
    """One per step, as the list would be, or an error that says that a list is meant."""
    targets = TARGETS[kind]()
    if kind != "a value of each step":
        targets = targets[:, :1].expand(T, batch, *targets.shape[2:]).contiguous()
    x = 2 * torch.rand(T, batch, IN, generator=torch.Generator().manual_seed(0))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if y.dtype == torch.long:
            return (output.log_softmax(1) * (y[..., None] == torch.arange(OUT))).sum()
        return (output - y).square().sum()

    def train(y: Any) -> dict[str, Tensor]:
        net = network()
        STLLRLearner(net, sgd(net), rule=RULE).run(net, x, y, loss, window=3)
        return copied(net)

    want = train(list(targets))
    try:
        found = train(targets)
    except STLLRError as refusal:
        assert "list" in str(refusal) or "step" in str(refusal)
        return
    assert_right(found, want)
