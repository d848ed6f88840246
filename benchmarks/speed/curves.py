"""Seconds per step against batch, width, time steps and depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed.settings import Curves
from benchmarks.speed.timing import Options, seconds_per_step


def measure_curves(settings: Curves, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """All curves, and whether they rise faster than in proportion."""
    found = []
    for curve in settings.curves:
        lines: dict[str, list[float]] = {}
        for value, size in zip(curve.values, curve.axis, strict=True):
            say(f"curves: {curve.name} {size:g}")
            for who, times in seconds_per_step(settings.workload.changed({curve.key: value}), options).items():
                lines.setdefault(who, []).append(times["median"])
        slopes = {who: slope(curve.axis, values) for who, values in lines.items()}
        targets = [
            {
                "contender": who,
                "what": f"growth of the time per step with {curve.name}, exponent (1 is linear)",
                "at_most": curve.highest_slope,
                "measured": measured,
                "met": measured <= curve.highest_slope,
            }
            for who, measured in slopes.items()
            if who.startswith("stllr")
        ]
        found.append(
            {"name": curve.name, "axis": curve.axis, "seconds_per_step": lines, "slopes": slopes, "targets": targets}
        )
    return {"title": settings.workload.title, "curves": found}


def slope(axis: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of time ~ size**p over the upper half of the sizes, where fixed costs weigh least."""
    begin = (len(axis) - 1) // 2
    return math.log(values[-1] / values[begin]) / math.log(axis[-1] / axis[begin])
