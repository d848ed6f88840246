"""What `import stllr_plugin` costs on top of `import torch`.

Promise: less than 0.1 s. Each measurement is a fresh Python process that imports torch first and the package second,
so that torch's own time is not counted. The figure is the median of several processes, after one that warms the disk.

    python benchmarks/import_time.py [--repeats 7] [--limit 0.1]

Exit status 1 if the median is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
import stllr_plugin
print(between - start, time.perf_counter() - between)
"""


def measure() -> tuple[float, float]:
    """Return the seconds that torch took, and the seconds that the package took after it."""
    run = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    torch_seconds, own_seconds = map(float, run.stdout.split())
    return torch_seconds, own_seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="number of processes (default 7)")
    parser.add_argument("--limit", type=float, default=0.1, help="allowed seconds beyond torch's own (default 0.1)")
    arguments = parser.parse_args()

    measure()
    torch_seconds, own_seconds = zip(*(measure() for _ in range(arguments.repeats)), strict=True)
    torch_median, own_median = statistics.median(torch_seconds), statistics.median(own_seconds)
    print(f"import torch         {torch_median:.3f} s (median of {arguments.repeats})")
    print(f"import stllr_plugin  {own_median:.3f} s more, {own_median / torch_median:.1%} of torch's time")
    print(f"slowest              {max(own_seconds):.3f} s more; limit {arguments.limit:g} s")
    return int(own_median > arguments.limit)


if __name__ == "__main__":
    raise SystemExit(main())
