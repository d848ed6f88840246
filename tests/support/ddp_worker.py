"""What each of two processes does for the column DDP: all rows in turn, each on its half of the batch."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.catalogue import LIBRARIES, TABLES
from tests.support.checks import ddp

WORLD = 2


def run(rank: int, folder: str, names: list[str]) -> None:
    """Entry of each process; leaves the error of the gradient, or the text of what was raised, by row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the results tell what went wrong
    init = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD, timeout=timedelta(seconds=30))
    rows = {f"{LIBRARIES[table]}: {entry.name}": entry for table, entries in TABLES.items() for entry in entries}
    results: dict[str, float | str] = {}
    for name in names:
        build = rows[name].build
        assert build is not None
        try:
            results[name] = ddp(build, rank, WORLD)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
