"""Checkpoints of 0.1.0 load, and training goes on from them; tests/data/of_0_1_0/ says how they were made."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from stllr_plugin import STLLRLearner

FOLDER = Path(__file__).parent / "data" / "of_0_1_0"


def test_a_learner():
    snn = pytest.importorskip("snntorch")
    saved = torch.load(FOLDER / "learner.pt", weights_only=True)
    net = nn.Sequential(
        nn.Linear(6, 5), snn.Leaky(0.9, init_hidden=True), nn.Linear(5, 3), snn.Leaky(0.9, init_hidden=True)
    )
    net.load_state_dict(saved["model"])
    adam = torch.optim.Adam(net.parameters(), lr=0.5)
    learner = STLLRLearner(net, adam, rule="shd", layer_rules={"2": "dvs_gesture"}, learning_signal="dfa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is the same rule, in the same words
        learner.load_state_dict(saved["optimizer"])
    assert learner.param_groups[0]["lr"] == 0.01
    assert learner.state[net[0].weight]["step"] == 2
    assert torch.equal(learner.feedback["1"], saved["optimizer"]["stllr"]["feedback"]["1"])
    before = net[0].weight.detach().clone()
    for _ in range(4):
        nn.functional.cross_entropy(net((torch.rand(2, 6) < 0.5).float()), torch.tensor([0, 2])).backward()
    learner.step()
    assert not torch.equal(net[0].weight, before)
    assert learner.state[net[0].weight]["step"] == 3


def test_a_task(tmp_path):
    lightning = pytest.importorskip("lightning")
    pytest.importorskip("snntorch")
    from lightning_modules import SpikingClassifier
    from lightning_modules.data import EventDigitsDataModule

    path = FOLDER / "task.pt"
    saved = torch.load(path, weights_only=True)
    task = SpikingClassifier.load_from_checkpoint(path)
    assert task.hparams.learning_signal == "dfa" and task.hparams.supervise_last == 3
    for name, value in task.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name]), name
    trainer = lightning.Trainer(
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    data = EventDigitsDataModule(num_steps=5, downsample=8, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, data, ckpt_path=path, weights_only=False)
    assert trainer.global_step == 4, "two of the checkpoint's epoch, two of the next"
    kept = trainer.optimizers[0].state_dict()["state"]
    assert {int(state["step"]) for state in kept.values()} == {4}


def test_a_task_by_its_former_place():
    pytest.importorskip("lightning")
    import importlib

    from lightning_modules import SpikingClassifier

    assert importlib.import_module("lightning_modules.classification").SpikingClassifier is SpikingClassifier
