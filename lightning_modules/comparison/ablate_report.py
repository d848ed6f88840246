"""The report of ``stllr ablate``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_modules.comparison import charts
from lightning_modules.comparison.document import Document, Heading, Notes, Part, Picture, Table
from lightning_modules.comparison.experiment import Variant
from lightning_modules.comparison.tables import (
    CHOSEN,
    Result,
    accuracy,
    accuracy_notes,
    accuracy_table,
    introduction,
    spread,
)

Results = Mapping[str, Sequence[Result]]


def write_report(
    folder: Path, title: str, command: str, facts: Mapping[str, Any], variants: Sequence[Variant], results: Results
) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html``; returns their paths."""
    document = Document(title, introduction(facts, command, results))
    document.parts.append(Heading("Accuracy"))
    axes = {axis: list(dict.fromkeys(variant.place[axis] for variant in variants)) for axis in variants[0].place}
    if len(axes) == 1:
        values = {name: [accuracy(run) for run in runs] for name, runs in results.items()}
        colours = dict.fromkeys(values, charts.PALETTE[0])
        says = "Test accuracy of each variant: a dot for each seed, the mean, and the standard deviation around it."
        document.parts.append(Picture("accuracy", charts.accuracy_points(values, colours, CHOSEN), says))
    else:
        document.parts += _heat_maps(axes, variants, results)
    document.parts += [accuracy_table("variant", results), accuracy_notes(results), _advice()]
    if len(axes) > 1:
        document.parts += [Heading("Each setting by itself"), _marginals(axes, variants, results)]
        document.parts.append(
            Notes(
                [
                    "Mean over all variants and seeds with this value. How far the means of a setting lie apart says "
                    "how much it matters here."
                ]
            )
        )
    return document.write(folder)


def _heat_maps(axes: Mapping[str, Sequence[str]], variants: Sequence[Variant], results: Results) -> list[Part]:
    """One heat map of the first two settings for each combination of the others, all with the same colours."""
    (first, rows), (second, columns), *others = axes.items()
    means = [fmean(accuracy(run) for run in runs) for runs in results.values()]
    parts: list[Part] = []
    for number, labels in enumerate(itertools.product(*(values for _, values in others))):
        fixed = {axis: label for (axis, _), label in zip(others, labels, strict=True)}
        cells = {
            (variant.place[first], variant.place[second]): [accuracy(run) for run in results[variant.name]]
            for variant in variants
            if all(variant.place[axis] == label for axis, label in fixed.items())
        }
        title = ", ".join(f"{axis}: {label}" for axis, label in fixed.items())
        png = charts.heat_map(cells, rows, columns, (first, second), (min(means), max(means)), title)
        says = f"{CHOSEN[0].upper()}{CHOSEN[1:]}, for {first} and {second}" + (f"; {title}" if title else "")
        parts.append(Picture(f"heat_map_{number + 1}" if others else "heat_map", png, f"{says}."))
    return parts


def _marginals(axes: Mapping[str, Sequence[str]], variants: Sequence[Variant], results: Results) -> Table:
    rows = []
    for axis, values in axes.items():
        means = {
            value: fmean(
                accuracy(run) for variant in variants if variant.place[axis] == value for run in results[variant.name]
            )
            for value in values
        }
        apart = 100 * (max(means.values()) - min(means.values()))
        for index, (value, mean) in enumerate(means.items()):
            rows.append(
                [axis if index == 0 else "", value, spread([mean]), f"{apart:.1f} points" if index == 0 else ""]
            )
    return Table(["setting", "value", f"mean {CHOSEN}", "largest difference"], rows)


def _advice() -> Notes:
    return Notes(
        [
            "Choosing a setting by these test accuracies and then reporting them would be choosing on test data: "
            "choose by the validation column."
        ]
    )
