"""AEE of zero flow on MVSEC's test sequences, beside the published values: whether the protocol is the published one.

No network and no training: the error of a flow of zero is the length of the true flow. docs/optical_flow.md explains
the protocol. Takes either layout of the files.

    python benchmarks/mvsec_zero_flow.py FOLDER [--every 1 4] [--range indoor_flying1 4 60] [--whole]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lightning_modules.data.flow.mvsec import TEST_SEQUENCES, MVSECDataModule
from lightning_modules.data.flow.mvsec_files import find_mvsec
from lightning_modules.flow.metrics import AverageEndpointError

PUBLISHED = {"outdoor_day1": 1.08, "indoor_flying1": 1.29, "indoor_flying2": 2.13, "indoor_flying3": 1.88}
"""Zero flow, dt1, as S-TLLR's table of results on MVSEC has it."""

COLUMNS = [("both", "windows"), ("both", "pixels"), ("valid", "windows"), ("valid", "pixels")]


def measure(folder: Path, name: str, every: int, ranges: dict, whole: bool) -> tuple[list[float], int, float]:
    """AEE for each of COLUMNS, number of windows, seconds."""
    start = time.perf_counter()
    data = MVSECDataModule(
        folder,
        train=None,
        test=[name],
        every=every,
        ranges=ranges,
        middle=None if whole else (256, 256),
        pictures=False,
        bins=1,
        windows_per_batch=8,
    )
    data.setup()
    metrics = [AverageEndpointError(mask, average, zero_flow=True) for mask, average in COLUMNS]
    batches = data.dataset("test")
    windows = 0
    for i in range(len(batches)):
        batch = batches[i]
        if batch.flow is None:
            raise SystemExit(f"{name}: no true flow in {folder}")
        for w in range(batch.num_windows):
            windows += int(batch.present[:, w].sum())
            for metric in metrics:
                metric.update(batch.flow[:, w] * 0, batch.window(w))
    return [float(metric.compute()) for metric in metrics], windows, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the recordings")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4], help="pictures of a window (1: dt1, 4: dt4)")
    parser.add_argument("--range", nargs=3, action="append", default=[], metavar=("SEQUENCE", "FROM", "TO"))
    parser.add_argument("--whole", action="store_true", help="the whole picture, not its middle 256x256")
    arguments = parser.parse_args()
    if arguments.folder is None:
        print("no folder with MVSEC's recordings given: nothing measured")
        return
    ranges = {name: (float(start), float(end)) for name, start, end in arguments.range}

    there = [name for name in TEST_SEQUENCES if find_mvsec(arguments.folder, name) is not None]
    missing = [name for name in TEST_SEQUENCES if name not in there]
    if missing:
        print(f"not in {arguments.folder}: {', '.join(missing)}")
    print("AEE of zero flow; mask both: events and true flow, valid: true flow; mean over windows or over all pixels")
    heads = "".join(f"{f'{mask}/{average}':>15}" for mask, average in COLUMNS)
    print(f"{'sequence':16} {'':4} {'windows':>8}{heads} {'published':>10}")
    for every in arguments.every:
        total = [0.0] * len(COLUMNS)
        for name in there:
            found, windows, seconds = measure(arguments.folder, name, every, ranges, arguments.whole)
            total = [one + other for one, other in zip(total, found, strict=True)]
            values = "".join(f"{value:15.3f}" for value in found)
            published = f"{PUBLISHED[name]:10.2f}" if every == 1 else ""
            print(f"{name:16} dt{every:<2} {windows:8}{values} {published}   ({seconds:.0f} s)", flush=True)
        if not missing:
            sums = "".join(f"{value:15.3f}" for value in total)
            print(f"{'sum':16} dt{every:<2} {'':8}{sums} {sum(PUBLISHED.values()) if every == 1 else '':>10}")


if __name__ == "__main__":
    main()
