"""Two processes on half a batch each train as one process on the joint batch."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from filelock import FileLock  # comes with torch

from tests.contracts.ddp_worker import SCENARIOS, WORLD, Found, run
from tests.contracts.networks import assert_close

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)
EXACT = [name for name in SCENARIOS if not name.startswith(("refused", "corrupted", "statistics"))]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found | str]]:
    """What each process found. Started once, also where several pytest processes share the tests of this file."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if "PYTEST_XDIST_WORKER" not in os.environ else base.parent) / "ddp"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        files = [folder / f"rank{rank}.pt" for rank in range(WORLD)]
        if not (folder / "done").exists():
            context = mp.spawn(run, (str(folder),), nprocs=WORLD, join=False)
            try:
                finished = context.join(timeout=240) or context.join(timeout=5)
            finally:
                for process in context.processes:
                    process.kill()
            assert finished, "the processes did not end in time"
            (folder / "done").touch()
    return [torch.load(file, weights_only=True) for file in files]


def outcome(results: list[dict[str, Found | str]], name: str) -> list[Found | str]:
    assert all(name in found for found in results), f"an earlier scenario ended the processes: {list(results[0])[-1]}"
    return [found[name] for found in results]


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_equal_one(results, name):
    expected = SCENARIOS[name](None)
    for rank, found in enumerate(outcome(results, name)):
        assert not isinstance(found, str), f"process {rank} raised {found}"
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(("name", "error", "parts"), [
    ("refused: the wrapper", "AttachmentError", ["DistributedDataParallel wrapper", "Attach to the bare model first"]),
    ("refused: online", "StateError", ["online()", "DistributedDataParallel does not average", "no_sync()"]),
    ("refused: two_pass", "StateError", ["two_pass()", "DistributedDataParallel does not average", "no_sync()"]),
])  # fmt: skip
def test_what_is_refused(results, name, error, parts):
    for found in outcome(results, name):
        assert isinstance(found, str) and found.startswith(error)
        assert all(part in found for part in parts)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("corrupted")])
def test_membranes_that_ddp_overwrites_are_an_error_and_not_other_gradients(results, name):
    """All processes must notice, or one of them would wait for the other."""
    for rank, found in enumerate(outcome(results, name)):
        assert isinstance(found, str), f"process {rank} went on with the membranes of process 0"
        assert found.startswith("StateError: The hidden state of neuron") and "lif1'" in found, found
        assert "broadcast_buffers=False" in found


def test_running_statistics_are_still_broadcast(results):
    assert [found["mean"].item() for found in outcome(results, "statistics of norm layers")] == [5.0, 5.0]
