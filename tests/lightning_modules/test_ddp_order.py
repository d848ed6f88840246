"""Exchanges between processes come in one order on all of them, whatever callbacks and progress bars there are."""

import socket
from pathlib import Path

import pytest
import torch

from tests.lightning_modules.processes import finish, start

SCRIPT = Path(__file__).with_name("ddp_bar_script.py")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def assert_agree(output, jobs):
    """Both processes saved the same metrics of each job; returns them."""
    one, other = (torch.load(f"{output}.{rank}", weights_only=True) for rank in range(2))
    assert len(one) == len(other) == jobs
    timed = ("samples_per_second",)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - set(timed):
            assert first[name] == pytest.approx(second[name], rel=1e-6, nan_ok=True), name
    return one


def test_all_callbacks_with_a_progress_bar(tmp_path):
    """A task with all of ours, checkpoints and early stopping; another LightningModule; a user's own exchanges."""
    finish(start(SCRIPT, 2, 1, tmp_path / "bar", "0,2,3,4"), seconds=120)
    task, late, plain, windows = assert_agree(tmp_path / "bar", 4)
    assert {"train_loss", "val_accuracy", "train_rate/features.lif1", "peak_memory_mb"} <= task.keys()
    assert late["own/a"] == late["own/b"] == 1  # the sum of the ranks
    assert late["late"] == 7
    assert 0 < late["train_rate/features.lif1"] < 1
    assert windows["train_loss"] < 2  # the first batch is drawn step by step, on both
    assert 0 < plain["train_rate/net.features.lif1"] < 1


@pytest.mark.slow
def test_other_bars_and_optical_flow(tmp_path):
    """True flow is known to the first process alone, and its errors are on both."""
    finish(start(SCRIPT, 2, 1, tmp_path / "more", "1,5"), seconds=200)
    _, flow = assert_agree(tmp_path / "more", 2)
    assert flow["val_aee"] > 0
    assert flow["val_aee_ratio"] > 0
    assert flow["test_aee/random 0"] > 0


@pytest.mark.slow
def test_two_nodes_with_a_progress_bar(tmp_path):
    """One torchrun per node, both on this machine; each node shows a bar."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = (SCRIPT, 2, 2, tmp_path / "nodes", "0,2,3,5")
    finish(*(start("-m", "torch.distributed.run", *place, f"--node-rank={n}", *arguments) for n in range(2)))
    assert_agree(tmp_path / "nodes", 4)


@pytest.mark.slow
def test_the_documented_command(tmp_path):
    """`stllr fit` in two processes, with the bar that is on by default."""
    limits = [f"--trainer.{name}=2" for name in ("devices", "max_epochs", "limit_train_batches", "limit_val_batches")]
    options = [*limits, "--trainer.strategy=ddp", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    finish(start("-m", "lightning_modules", "fit", "--config", QUICKSTART, *options), seconds=240)
