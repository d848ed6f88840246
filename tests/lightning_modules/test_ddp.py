"""Two gloo processes train like one on the joint batch, with one reduction per optimizer step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMBINATIONS = [
    ("stllr", "online"),
    ("bptt", "automatic"),
    pytest.param("stllr", "automatic", marks=pytest.mark.slow),
    pytest.param("tess", "online", marks=pytest.mark.slow),
]
SCRIPT = Path(__file__).with_name("ddp_script.py")


def train(tmp_path, algorithm, loop, processes):
    output = tmp_path / f"result{processes}"
    command = [sys.executable, str(SCRIPT), algorithm, loop, str(processes), str(output)]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")
    }
    environment["OMP_NUM_THREADS"] = "1"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the second process too
        pytest.fail(f"The processes hang: {process.communicate()[1][-3000:]}")
    assert process.returncode == 0, errors[-3000:]
    return [torch.load(f"{output}.{rank}", weights_only=True) for rank in range(processes)]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize(("algorithm", "loop"), COMBINATIONS)
def test_two_processes_equal_one(tmp_path, algorithm, loop):
    (alone,) = train(tmp_path, algorithm, loop, 1)
    both = train(tmp_path, algorithm, loop, 2)
    for rank in both:
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(
                rank["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert rank["steps"] == alone["steps"] == rank["reductions"] == 4
        for name in ("train_loss", "val_loss", "val_accuracy", "val_rate/features.lif1"):
            assert rank["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name
