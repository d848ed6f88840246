"""Each cell of docs/support.md: a check per column, on a small network around each supported class."""

from __future__ import annotations

import importlib.util
import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from filelock import FileLock  # comes with torch

from tests.support import checks
from tests.support.catalogue import entries
from tests.support.ddp_worker import WORLD, run
from tests.support.entry import COLUMNS, Entry
from tests.support.nets import made, sequential_state
from tests.support.setup import Setup

INSTALLED = [name for name in ("snntorch", "norse", "spikingjelly") if importlib.util.find_spec(name)]
ROWS: dict[str, Entry] = {
    name: entry
    for name, entry in entries().items()
    if entry.build is not None and not entry.runs and name.split(":")[0] in INSTALLED
}
SECONDS = 150


def rows(column: str) -> list[str]:
    assert column in COLUMNS
    return [name for name, entry in ROWS.items() if column not in entry.without]


@pytest.mark.parametrize("name", rows("per-step backward"))
def test_per_step_backward(name: str) -> None:
    checks.per_step(ROWS[name].build, ROWS[name].tolerance)


@pytest.mark.parametrize("name", rows("one backward"))
def test_one_backward(name: str) -> None:
    entry = ROWS[name]
    if "per-step backward" in entry.without:
        checks.plain_limit(entry.build, entry.tolerance)
    else:
        checks.one_backward(entry.build, entry.tolerance)


@pytest.mark.parametrize("name", rows("autocast"))
def test_autocast(name: str) -> None:
    checks.autocast(ROWS[name].build, by_step="per-step backward" not in ROWS[name].without)


@pytest.mark.parametrize("name", rows("deepcopy"))
def test_deepcopy(name: str) -> None:
    checks.deepcopied(ROWS[name].build)


COMPILED = rows("torch.compile")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if ROWS[name].quick else pytest.mark.slow) for name in COMPILED]
)
def test_compile(name: str) -> None:
    checks.compiled(ROWS[name].build, ROWS[name].tolerance, by_step="per-step backward" not in ROWS[name].without)


@pytest.mark.slow
@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
def test_receptive_fields_do_not_compile() -> None:
    """An error, as the table says, and not other gradients."""
    with pytest.raises(RuntimeError, match="donated buffers"):
        checks.compiled(ROWS["norse: SpatialReceptiveField2d"].build, 1e-4, by_step=False)


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float | str]]:
    """What each process found. Started once, also where several pytest processes share the tests of this file."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if "PYTEST_XDIST_WORKER" not in os.environ else base.parent) / "support"
    folder.mkdir(exist_ok=True)
    files = [folder / f"rank{rank}.pt" for rank in range(WORLD)]
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            context = mp.spawn(run, (str(folder), rows("DDP")), nprocs=WORLD, join=False)
            deadline = time.monotonic() + SECONDS
            try:
                while not context.join(timeout=1) and time.monotonic() < deadline:
                    pass
            finally:
                for process in context.processes:
                    process.kill()
            (folder / "done").touch()
    return [torch.load(file, weights_only=True) if file.exists() else {} for file in files]


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
@pytest.mark.parametrize("name", rows("DDP"))
def test_ddp(distributed: list[dict[str, float | str]], name: str) -> None:
    for rank, found in enumerate(distributed):
        assert name in found, f"process {rank} did not get here in {SECONDS} s; its last row: {list(found)[-1:]}"
        assert isinstance(found[name], float), found[name]
        assert found[name] < ROWS[name].tolerance


@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.twin is not None])
def test_a_network_without_the_class_has_the_same_gradients(name: str) -> None:
    entry = ROWS[name]
    assert entry.twin is not None
    checks.same_as_twin(entry.build, entry.twin, entry.tolerance)


STEPPING = [name for name, entry in ROWS.items() if entry.build(torch.float32).drive in ("state", "hidden")]


@pytest.mark.parametrize("name", [name for name in STEPPING if not name.startswith("norse: LSNN")])
def test_without_traces_it_is_plain_autograd_with_states_cut_off(name: str) -> None:
    """Where a step can be run by hand. (The LSNN cell's membrane does not depend on the input of its step.)"""
    checks.plain_limit(ROWS[name].build, ROWS[name].tolerance)


# The checks themselves can fail.


def unattached(dtype: torch.dtype) -> Setup:
    return made(sequential_state)(dtype)


@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
def test_a_graph_that_grows_is_seen() -> None:
    setup = unattached(torch.float64)
    sizes = [
        checks.graph_size(checks.loss(output, t))
        for t, output in enumerate(checks.run(setup, setup.net, None, setup.xs))
    ]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
def test_another_gradient_is_seen() -> None:
    with pytest.raises(AssertionError):
        checks.same_as_twin(made(sequential_state), made(sequential_state, gain=2.1))
