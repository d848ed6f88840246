"""Adding a learning signal is adding one class: learner, report, checkpoint, YAML and comparison know its name."""

import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_modules import SpikingClassifier, SpikingMLP
from lightning_modules.command.cli import main
from lightning_modules.comparison.costs import Learning
from lightning_modules.comparison.counting import count_operations
from lightning_modules.comparison.recorder import Recorder
from lightning_modules.comparison.studies import study
from lightning_modules.tasks.rules import loss_signals
from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.signals import SIGNALS, DirectSignal, LearningSignal, SignalCost, register_signal
from tests.data.version_0_1_0.data import TinyData
from tests.data.version_0_1_0.write import (
    CLASSES,
    HIDDEN,
    INPUTS,
    STEPS,
    Network,
    config,
    make,
    make_loader,
    scattered,
    train,
    weights,
)
from tests.lightning_modules.helpers import make_trainer


class Normalised(DirectSignal):
    def projection(self, spikes, outputs):
        matrices = [self.feedback.matrix(name, outputs, y) for name, y in spikes]
        return lambda error: [nn.functional.normalize(error) @ matrix.flatten(1) for matrix in matrices]

    @classmethod
    def cost(cls, name, spikes, outputs):
        return SignalCost(0, 7)


class Halved(LearningSignal):
    """What layers pass down, halved on the way; it keeps a count of its own."""

    steps = 0

    def hidden(self, name, spikes):
        if spikes.requires_grad:
            self.steps += 1
            spikes.register_hook(lambda grad: None if grad is None else grad / 2)
        return spikes

    @classmethod
    def cost(cls, name, spikes, outputs):
        return SignalCost(3, 0)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@pytest.fixture(params=[Normalised, Halved], ids=["direct", "passed down"])
def signal(request):
    """The only line that makes it known."""
    register_signal("mine")(request.param)
    yield request.param
    del SIGNALS["mine"]


def test_the_learner_trains_with_it(signal):
    net, learner = make("mine")
    before = net.fc1.weight.detach().clone()
    train(net, learner, range(2))
    assert not torch.equal(net.fc1.weight, before)
    assert learner.report().settings["learning_signal"] == "mine" and "learning_signal=mine" in str(learner.report())
    assert STLLRRule(learning_signal="mine").learning_signal == "mine"


def test_what_layers_pass_down_is_its_own():
    """The signal of the last layer, which the loss sees, is halved as well as that of the layer below: 1/2 and 1/4."""
    register_signal("mine")(Halved)
    try:
        found = {}
        for name in ("bp", "mine"):
            net, _ = make(name)
            x = (scattered(4, 8) < 0.5).float()
            cross_entropy(net.lif2(net.fc2(net.lif1(net.fc1(x))))[0], torch.arange(4) % CLASSES).backward()
            found[name] = (net.fc1.weight.grad, net.fc2.weight.grad)
        assert found["bp"][0].any()
        torch.testing.assert_close(found["mine"][1], found["bp"][1] / 2)
        torch.testing.assert_close(found["mine"][0], found["bp"][0] / 4)
    finally:
        del SIGNALS["mine"]


def test_a_checkpoint_holds_its_state(signal, tmp_path):
    net, learner = make("mine")
    train(net, learner, range(2))
    torch.save(learner.state_dict(), tmp_path / "learner.pt")
    again = Network()
    other = STLLRLearner(again, torch.optim.Adam(again.parameters()), rule="shd", learning_signal="mine")
    with pytest.warns(match="goes on with"):
        other.load_state_dict(torch.load(tmp_path / "learner.pt", weights_only=True))
    mine, its = learner.state_dict()["stllr"], other.state_dict()["stllr"]
    if signal is Halved:
        assert mine["steps"] == its["steps"] > 0
    else:
        assert torch.equal(mine["feedback"]["lif1"], its["feedback"]["lif1"])


def test_a_yaml_file_names_it(signal, tmp_path):
    settings = config(tmp_path, "SpikingClassifier", "SpikingMLP")
    settings["model"]["init_args"]["learning_signal"] = "mine"
    settings["model"]["init_args"]["window"] = 2  # made at each step, so windows are not run
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "run.yaml")]) == 0
    first, second = (weights(tmp_path / f"epoch={epoch}.ckpt") for epoch in (0, 1))
    assert not torch.equal(first["network.features.fc1.weight"], second["network.features.fc1.weight"])


def test_comparisons_know_it(signal):
    """The study of all signals runs it; its cost is counted, at the one hidden layer and each supervised step."""
    assert "mine" in loss_signals()
    assert "mine" in [variant.changes.get("model.learning_signal") for variant in study("learning_signals", None, 5)]
    recorder, loader = Recorder("val_loss", "min"), make_loader()
    task = SpikingClassifier(SpikingMLP(INPUTS, (HIDDEN,), CLASSES), num_classes=CLASSES, learning_signal="mine")
    make_trainer(callbacks=[recorder]).fit(task, datamodule=TinyData())
    assert recorder.signal == "mine" and recorder.matrices == (CLASSES * HIDDEN if signal is Normalised else 0)
    counted = count_operations(task, loader, recorder.edges, recorder.signal)["layers"]["features.lif1: mine"]
    expected = {"learning_macs": 7 * STEPS} if signal is Normalised else {"learning_additions": 3 * STEPS}
    assert {name: counted[name] for name in expected} == expected
    assert Learning.of([], "mine").taken_down is (signal is Halved)
