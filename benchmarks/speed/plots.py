"""The pictures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed.long import per_step
from benchmarks.speed.report import label, supervised
from benchmarks.speed.settings import CONTENDERS
from lightning_modules.comparison.charts import colours_of
from lightning_modules.demo.plots import GRID, INK

COLOURS = colours_of(CONTENDERS)


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws whatever the results hold into PNG files in the folder."""
    plt.switch_backend("Agg")
    drawn = [_ratios(workload, folder) for workload in results["workloads"]]
    drawn += [_memory(memory, folder) for memory in results["memory"]]
    drawn += [_curves(results["curves"], folder)] if results["curves"] else []
    drawn += [_long(results["long"], folder)] if results["long"] else []
    return drawn


def _colour(name: str) -> str:
    return COLOURS[name.partition(" + ")[0]]


def _ratios(workload: dict[str, Any], folder: Path) -> Path:
    """Wall time as a multiple of snnTorch's BPTT, with the targets; seconds where BPTT does not take part."""
    cases = workload["cases"]
    height = sum(0.6 + 0.3 * len(case["contenders"]) for case in cases) + 0.4
    figure, grid = plt.subplots(len(cases), 1, figsize=(9, height), squeeze=False, layout="constrained")
    for axes, case in zip(grid[:, 0], cases, strict=True):
        names = list(case["contenders"])
        key = "wall_to_bptt" if names and "wall_to_bptt" in case["contenders"][names[0]] else "wall_s"
        limits = {one["contender"]: one["at_most"] for one in case["targets"] if one["against"] == "snntorch_bptt"}
        for row, name in enumerate(names):
            values = case["contenders"][name][key]
            median = values["median"]
            spread = [[max(0.0, median - values["q1"])], [max(0.0, values["q3"] - median)]]
            axes.barh(row, median, 0.62, color=_colour(name), xerr=spread, ecolor=INK)
            if key == "wall_to_bptt" and name in limits:
                axes.vlines(limits[name], row - 0.4, row + 0.4, color=INK, linewidth=2)
        axes.set_yticks(range(len(names)), [label(name) for name in names], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"{supervised(case)}, density {case['density']:g}", fontsize=9, loc="left")
        _tidy(axes)
    grid[-1, 0].set_xlabel("time of a batch, as a multiple of snnTorch's BPTT; a dark line is a target")
    figure.suptitle(workload["title"], fontsize=10)
    return _save(figure, folder / f"time_{workload['name']}.png")


def _memory(memory: dict[str, Any], folder: Path) -> Path:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, values in memory["peak_bytes"].items():
        steps = sorted(values)
        axes.plot(steps, [values[s] / 1e6 for s in steps], marker="o", color=_colour(name), label=label(name))
    axes.set_xlabel("time steps")
    axes.set_ylabel("peak memory of a batch, MB")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{memory['title']}: {supervised(memory)} supervised", fontsize=10)
    _tidy(axes)
    return _save(figure, folder / f"memory_{memory['name']}.png")


def _curves(curves: dict[str, Any], folder: Path) -> Path:
    found = curves["curves"]
    figure, grid = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.6), squeeze=False, layout="constrained")
    for axes, curve in zip(grid[0], found, strict=True):
        for name, values in curve["seconds_per_step"].items():
            axes.loglog(
                curve["axis"], [v * 1000 for v in values], marker="o", color=_colour(name), label=label(name), base=2
            )
        axes.set_xticks(curve["axis"], [f"{size:g}" for size in curve["axis"]], fontsize=8)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(curve["name"])
        _tidy(axes)
    grid[0, 0].set_ylabel("ms per step")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=len(labels))
    return _save(figure, folder / "curves.png")


def _long(long: dict[str, Any], folder: Path) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, blocks in long["contenders"].items():
        ends = [long["block"] * (index + 1) for index in range(len(blocks["wall_s"]))]
        times = [value * 1000 for value in per_step(blocks, long["block"])]
        left.plot(ends, times, marker="o", color=_colour(name), label=label(name))
        right.plot(ends, [peak / 1e6 for peak in blocks["peak_bytes"]], marker="o", color=_colour(name))
    left.set_ylabel("ms per step")
    right.set_ylabel("peak memory so far, MB")
    for axes in (left, right):
        axes.set_xlabel("time step")
        axes.set_ylim(bottom=0)
        _tidy(axes)
    left.legend(frameon=False, fontsize=7)
    figure.suptitle(long["title"], fontsize=10)
    return _save(figure, folder / "long.png")


def _tidy(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path
