"""The pictures of the reports."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_modules.demo.plots import GRID, INK, SOFT
from lightning_modules.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#2a9d6f", "#e07a2f", "#2f6690", "#7a5195", "#d1495b", "#b08900", "#4d908e", "#8d6e63", "#7f8c8d", "#c06c84")

Colours = Mapping[str, str]


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def accuracy_points(values: Mapping[str, Sequence[float]], colours: Colours, label: str) -> bytes:
    """One row per name: a dot for each seed, and a line at the mean with the standard deviation around it."""
    from statistics import fmean, stdev

    def draw(axes: Axes) -> None:
        names = list(values)
        for row, name in enumerate(names):
            ones = list(values[name])
            colour = colours.get(name, INK)
            mean = fmean(ones)
            if len(ones) > 1:
                spread = stdev(ones)
                axes.barh(row, 2 * spread, 0.5, left=mean - spread, color=colour, alpha=0.22)
            axes.vlines(mean, row - 0.32, row + 0.32, color=colour, linewidth=2.4)
            axes.scatter(ones, [row] * len(ones), s=26, color=colour, edgecolors="white", linewidths=0.8, zorder=3)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(label)
        _percent(axes.xaxis)
        _grid(axes, "x")

    return _picture(draw, height=1.3 + 0.42 * len(values))


def learning_curves(curves: Mapping[str, Sequence[Sequence[float]]], colours: Colours, label: str) -> bytes:
    """Mean over the seeds against the epoch, and a band from the lowest to the highest seed."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for name, runs in curves.items():
            length = min(map(len, runs))
            epochs = range(1, length + 1)
            columns = [[run[index] for run in runs] for index in range(length)]
            axes.fill_between(
                epochs,
                [min(c) for c in columns],
                [max(c) for c in columns],
                color=colours[name],
                alpha=0.13,
                linewidth=0,
            )
            means = [sum(c) / len(c) for c in columns]
            axes.plot(epochs, means, color=colours[name], linewidth=2, marker="o", markersize=3.5, label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _percent(axes.yaxis)
        _grid(axes, "both")
        axes.legend(frameon=False)

    return _picture(draw, height=4.2)


def memory_lines(memory: Mapping[str, Mapping[int, int]], colours: Colours, marked: int) -> bytes:
    """Peak memory against the number of time steps; ``marked`` is that of the data."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        steps = sorted({step for one in memory.values() for step in one})
        for name, one in memory.items():
            known = sorted(one)
            axes.plot(
                known, [one[t] for t in known], color=colours[name], linewidth=2, marker="o", markersize=5, label=name
            )
        axes.axvline(marked, color=SOFT, linewidth=1, linestyle=":")
        axes.annotate(
            f" T of the data: {marked} ",
            (marked, 0.98),
            xycoords=("data", "axes fraction"),
            color=SOFT,
            ha="right" if marked > 0.6 * max(steps) else "left",
            va="top",
            fontsize=9,
        )
        axes.set_xticks(steps)
        axes.set_xlim(0, max(steps) * 1.04)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
        axes.set_xlabel("time steps T")
        axes.set_ylabel("peak memory of a batch")
        _grid(axes, "both")
        axes.legend(frameon=False, loc="center left")

    return _picture(draw, height=4.2)


def bars(values: Mapping[str, float], colours: Colours, label: str, show: Callable[[float], str]) -> bytes:
    """One bar per name with its value beside it."""

    def draw(axes: Axes) -> None:
        names = list(values)
        axes.barh(range(len(names)), list(values.values()), 0.55, color=[colours.get(name, INK) for name in names])
        top = max(values.values()) or 1.0
        for row, value in enumerate(values.values()):
            axes.text(value + 0.012 * top, row, show(value), va="center", weight="bold")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * top)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(label)

    return _picture(draw, height=1.1 + 0.42 * len(values))


def heat_map(
    cells: Mapping[tuple[str, str], Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str],
    limits: tuple[float, float],
    title: str = "",
) -> bytes:
    """Mean accuracies over two settings, with the spread over seeds below each.

    Args:
        cells: (row, column) to the accuracy of each seed; missing ones stay white.
        rows: Labels of the rows.
        columns: Labels of the columns.
        names: Names of both settings.
        limits: Accuracies of the ends of the colour scale.
        title: Title, such as the values of further settings.
    """
    from statistics import fmean, stdev

    def draw(axes: Axes) -> None:
        import numpy as np

        means = np.full((len(rows), len(columns)), np.nan)
        for (row, column), values in cells.items():
            means[rows.index(row), columns.index(column)] = fmean(values)
        low, high = limits if limits[1] > limits[0] else (limits[0] - 0.01, limits[1] + 0.01)
        axes.imshow(means, cmap="YlGnBu", vmin=low, vmax=high, aspect="auto")
        for (row, column), values in cells.items():
            mean = fmean(values)
            text = f"{mean:.1%}" + (f"\n± {100 * stdev(values):.1f}" if len(values) > 1 else "")
            dark = (mean - low) / (high - low) > 0.6
            place = columns.index(column), rows.index(row)
            axes.text(*place, text, ha="center", va="center", color="white" if dark else INK, weight="bold")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks([column + 0.5 for column in range(len(columns) - 1)], minor=True)
        axes.set_yticks([row + 0.5 for row in range(len(rows) - 1)], minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="both", length=0)
        axes.set_ylabel(names[0])
        axes.set_xlabel(names[1])
        axes.set_title(title)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return _picture(draw, height=1.5 + 0.75 * len(rows), width=2.6 + 1.35 * len(columns))


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))


def _grid(axes: Axes, axis: Any) -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _picture(draw: Callable[[Axes], None], height: float, width: float = 8.5) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": SOFT,
        "axes.titlesize": 11,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": SOFT,
        "ytick.color": INK,
        "figure.facecolor": "white",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()
