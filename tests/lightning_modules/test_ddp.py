"""Two gloo processes, or two nodes, train like one process on the joint batch; one reduction per optimizer step."""

import socket
from pathlib import Path

import pytest
import torch

from tests.lightning_modules.processes import finish, start

COMBINATIONS = [
    ("stllr", "online", 1),
    ("bptt", "automatic", 1),
    pytest.param("stllr", "automatic", 1, marks=pytest.mark.slow),
    pytest.param("tess", "online", 1, marks=pytest.mark.slow),
    pytest.param("stllr", "online", 2, marks=pytest.mark.slow),
    pytest.param("stllr", "automatic", 2, marks=pytest.mark.slow),
]
SCRIPT = Path(__file__).with_name("ddp_script.py")

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def results(output, processes):
    return [torch.load(f"{output}.{rank}", weights_only=True) for rank in range(processes)]


def train(tmp_path, algorithm, loop, processes, accumulate):
    output = tmp_path / f"result{processes}"
    finish(start(SCRIPT, algorithm, loop, processes, output, 1, accumulate))
    return results(output, processes)


def assert_equal(alone, both):
    for rank in both:
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(
                rank["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert rank["steps"] == alone["steps"] == rank["reductions"] == 4
        for name in ("train_loss", "val_loss", "val_accuracy", "val_rate/features.lif1"):
            assert rank["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name


@pytest.mark.parametrize(("algorithm", "loop", "accumulate"), COMBINATIONS)
def test_two_processes_equal_one(tmp_path, algorithm, loop, accumulate):
    (alone,) = train(tmp_path, algorithm, loop, 1, 1)
    assert_equal(alone, train(tmp_path, algorithm, loop, 2, accumulate))


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_two_nodes_equal_one_process(tmp_path, loop):
    """One torchrun per node, both on this machine."""
    (alone,) = train(tmp_path, "stllr", loop, 1, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "nodes"
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    finish(
        *(
            start("-m", "torch.distributed.run", *place, f"--node-rank={n}", SCRIPT, "stllr", loop, 2, output, 2)
            for n in range(2)
        )
    )
    assert_equal(alone, results(output, 2))


@pytest.mark.slow
def test_two_processes_resume_in_mid_epoch(tmp_path):
    """With dropout: each process goes on with random numbers of its own."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    common = (SCRIPT, "stllr", "online", 2)
    finish(start(*common, straight, 1, 1, tmp_path / "first"))
    finish(start(*common, resumed, 1, 1, tmp_path / "second", tmp_path / "first" / "step=1.ckpt"))
    for before, after in zip(results(straight, 2), results(resumed, 2), strict=True):
        assert before["steps"] == after["steps"] == 4
        for name, weight in before["weights"].items():
            torch.testing.assert_close(after["weights"][name], weight, rtol=1e-6, atol=1e-6)
