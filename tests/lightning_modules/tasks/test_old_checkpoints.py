"""A Lightning checkpoint of 0.1.0, whose classes stood elsewhere, loads; the run goes on as it went on in 0.1.0."""

import pytest
import torch
import yaml

import lightning_modules
from lightning_modules.command.cli import main
from tests.data.version_0_1_0.write import FOLDER, config, weights

CHECKPOINT = FOLDER / "task.ckpt"
FORMER = ("lightning_modules.classification.SpikingClassifier", "lightning_modules.networks.SpikingMLP")


def saved():
    return torch.load(CHECKPOINT, weights_only=True)


def test_the_checkpoint_names_the_task_by_its_former_place():
    assert saved()["hyper_parameters"]["_class_path"] == FORMER[0]
    assert lightning_modules.SpikingClassifier.__module__ != FORMER[0].rpartition(".")[0]


def test_a_task_is_built_again_from_it():
    task = lightning_modules.SpikingClassifier.load_from_checkpoint(CHECKPOINT)
    state = task.state_dict()
    assert state.keys() == saved()["state_dict"].keys()
    for name, value in saved()["state_dict"].items():
        assert torch.equal(state[name], value), name
    assert (task.rule.alpha_post, task.rule.lambda_post) == (-0.3, 0.2)
    assert (task.learning_signal, task.supervise_last) == ("dfa", 3)


@pytest.mark.parametrize("names", [FORMER, ("SpikingClassifier", "SpikingMLP")], ids=["former names", "today's names"])
def test_a_run_goes_on_as_in_0_1_0(names, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config(tmp_path, *names)))
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), "--ckpt_path", str(CHECKPOINT)]) == 0
    expected = torch.load(FOLDER / "task_after.pt", weights_only=True)
    found, before = weights(tmp_path / "epoch=1.ckpt"), weights(CHECKPOINT)
    assert found.keys() == expected.keys() and not (tmp_path / "epoch=0.ckpt").exists()
    for name, weight in expected.items():
        assert not torch.equal(weight, before[name]), f"{name}: nothing was learned in 0.1.0"
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
