"""Two gloo processes, or two nodes, train like one process on the joint batch; one reduction per optimizer step."""

import json
import socket
from pathlib import Path

import pytest
import torch

from lightning_modules import processes
from tests.lightning_modules.ddp_script import run
from tests.lightning_modules.helpers import make_task
from tests.lightning_modules.processes import finish, start

ONLINE = {"algorithm": "stllr", "loop": "online", "supervise_last": 2}
AUTOMATIC = {"algorithm": "stllr", "loop": "automatic", "supervise_last": 2}
JOBS = [  # with the number of updates: two epochs of two batches, of three windows where there are windows
    (ONLINE, 4),
    ({"algorithm": "bptt", "supervise_last": 2}, 4),
    ({"algorithm": "stllr", "update_every": 2}, 12),
    ({"algorithm": "bptt", "update_every": 2}, 12),
    ({"algorithm": "stllr", "by_step": True, "update_every": 2}, 12),
    ({"algorithm": "stllr", "by_step": True, "learning_signal": "local"}, 4),
]
# Optical flow: 4 lanes of 4 windows, two windows a batch; and lanes that end at different times.
FLOW = [
    ({"algorithm": "stllr", "rule": "mvsec", "lengths": [4] * 4, "update_every_window": True}, 8),
    ({"algorithm": "bptt", "lengths": [4] * 4}, 4),
    ({"algorithm": "stllr", "rule": "mvsec", "lengths": [5, 4, 3, 1], "update_every_window": True}, None),
]
MORE = [
    (AUTOMATIC, 4),
    ({**ONLINE, "algorithm": "tess"}, 4),
    ({**ONLINE, "accumulate": 2}, 4),
    ({**AUTOMATIC, "accumulate": 2}, 4),
]
SCRIPT = Path(__file__).with_name("ddp_script.py")

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def results(output):
    return [torch.load(f"{output}.{rank}", weights_only=True) for rank in range(2)]


def assert_equal(jobs, both):
    """The same as in this process, which trains on the joint batches."""
    for index, (job, updates) in enumerate(jobs):
        alone, _ = run({**job, "accumulate": 1})
        for rank in (rank[index] for rank in both):
            for name, weight in alone["weights"].items():
                torch.testing.assert_close(
                    rank["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name, j=job: f"{j}, {n}: {m}"
                )
            assert rank["steps"] == alone["steps"] == rank["reductions"] == updates, job
            for name in ("train_loss", "val_loss", "val_accuracy", "val_rate/features.lif1"):
                assert rank["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), (job, name)


@pytest.mark.parametrize("jobs", [JOBS, pytest.param(MORE, marks=pytest.mark.slow)], ids=["", "more"])
def test_two_processes_equal_one(tmp_path, jobs):
    """All jobs one after the other in the same two processes, whose start takes longest."""
    finish(start(SCRIPT, json.dumps([job for job, _ in jobs]), 2, 1, tmp_path / "result"))
    assert_equal(jobs, results(tmp_path / "result"))


def test_lanes_of_optical_flow_over_two_processes(tmp_path):
    """As in one process where all lanes are present; where lanes end earlier than others, nobody waits."""
    finish(start(SCRIPT, json.dumps([job for job, _ in FLOW]), 2, 1, tmp_path / "flow"))
    both = results(tmp_path / "flow")
    for index, (job, updates) in enumerate(FLOW):
        one, other = (rank[index] for rank in both)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(weight, other["weights"][name], rtol=0, atol=0)
        assert one["steps"] == other["steps"] == one["reductions"]
        if updates is None:
            continue
        alone, _ = run(job)
        assert one["steps"] == alone["steps"] == updates
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(one["weights"][name], weight, rtol=1e-5, atol=1e-6)
        for name in ("train_loss", "val_loss", "val_aee", "val_aee_ratio"):
            assert one["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), (job, name)


@pytest.mark.slow
def test_two_nodes_equal_one_process(tmp_path):
    """One torchrun per node, both on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [(ONLINE, 4), (AUTOMATIC, 4)]
    output = tmp_path / "nodes"
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = (SCRIPT, json.dumps([job for job, _ in jobs]), 2, 2, output)
    finish(*(start("-m", "torch.distributed.run", *place, f"--node-rank={n}", *arguments) for n in range(2)))
    assert_equal(jobs, results(output))


@pytest.mark.slow
def test_two_processes_resume_in_mid_epoch(tmp_path):
    """With dropout: each process goes on with random numbers of its own."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    job = {**ONLINE, "folder": str(tmp_path / "first")}
    again = {**ONLINE, "folder": str(tmp_path / "second"), "checkpoint": str(tmp_path / "first" / "step=1.ckpt")}
    finish(start(SCRIPT, json.dumps([job]), 2, 1, straight))
    finish(start(SCRIPT, json.dumps([again]), 2, 1, resumed))
    for (before,), (after,) in zip(results(straight), results(resumed), strict=True):
        assert before["steps"] == after["steps"] == 4
        for name, weight in before["weights"].items():
            torch.testing.assert_close(after["weights"][name], weight, rtol=1e-6, atol=1e-6)


def test_windows_that_differ_between_processes_are_refused(monkeypatch):
    """Elsewhere one process would wait for ever for an update that the other one does not make."""

    task = make_task(update_every=2)
    monkeypatch.setattr(task, "_trainer", object())
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    for others, refused in (([0, 1], False), ([0, 1, 2], True)):
        monkeypatch.setattr(
            torch.distributed,
            "all_gather_object",
            lambda out, own, others=others: out.__setitem__(slice(None), [own, others]),
        )
        if refused:
            with pytest.raises(ValueError, match="the updates of a batch would be 2 and 3"):
                task.last_supervised([True] * 4)
        else:
            assert task.last_supervised([True] * 4) == {1, 3}
