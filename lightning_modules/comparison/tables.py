"""Texts and tables that both reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from lightning_modules.comparison.document import Notes, Part, Table, Text

Result = Mapping[str, Any]

CHOSEN = "test accuracy, epoch chosen on validation data"
LAST = "test accuracy, last epoch"
BEST = "best test epoch (chosen on test data, as the published code reports)"


def spread(values: Sequence[float | None]) -> str:
    """``97.1 % ± 0.8`` in percent and points; a dash where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    text = f"{100 * fmean(known):.1f} %"
    return f"{text} ± {100 * stdev(known):.1f}" if len(known) > 1 else text


def each(values: Sequence[float | None]) -> str:
    """``97.3 / 96.7 / 97.0``, one for each seed."""
    return " / ".join("-" if value is None else f"{100 * value:.1f}" for value in values)


def accuracy(result: Result) -> float:
    """The accuracy that counts: of the epoch chosen on validation data, or the last one where there are none."""
    chosen = result["test_chosen"]
    return float(result["test_last"] if chosen is None else chosen)


def accuracy_table(first: str, results: Mapping[str, Sequence[Result]]) -> Table:
    """Accuracies of all contenders."""
    rows = []
    for name, runs in results.items():
        chosen = [run["test_chosen"] for run in runs]
        row = [name, spread(chosen), each(chosen), spread([run["test_last"] for run in runs])]
        rows.append([*row, spread([run["test_best"] for run in runs]), spread([run["val_chosen"] for run in runs])])
    head = [first, CHOSEN, "each seed", LAST, BEST, "validation accuracy of the chosen epoch"]
    return Table(head, rows, strong=(1,))


def accuracy_notes(results: Mapping[str, Sequence[Result]]) -> Notes:
    """How the accuracies are to be read."""
    runs = [run for ones in results.values() for run in ones]
    seeds = len(next(iter(results.values())))
    monitor = runs[0]["monitor"]
    lines = [
        f"The chosen epoch is the best one by {monitor}, which knows no test sample. The best test epoch is the "
        "highest of all epochs' test accuracies: it is chosen on the test data and therefore too high; it is here "
        "because the published code of S-TLLR reports it.",
        "± is the standard deviation over seeds (n - 1), in points."
        if seeds > 1
        else "One seed only: no spread. Differences of a point or two may be chance; give --seeds 3 or more.",
    ]
    if any(run["test_chosen"] is None for run in runs):
        lines.append(f"No {monitor} was logged, so no epoch could be chosen: read the last epoch.")
    lines.append(same_order(results))
    return Notes(lines)


def same_order(results: Mapping[str, Sequence[Result]]) -> str:
    """Whether all contenders saw the same batches, by seed."""
    by_seed: dict[int, set[tuple[str, int]]] = {}
    for runs in results.values():
        for run in runs:
            by_seed.setdefault(run["seed"], set()).add((run["order"], len(run["epochs"])))
    if all(len(orders) == 1 for orders in by_seed.values()):
        return "Checked: with the same seed all contenders saw the same training batches in the same order."
    return (
        "Not the same for all: with the same seed some contenders saw other training batches, another order or "
        "another number of epochs (early stopping ends at different epochs; a data module may draw from the global "
        "random generator)."
    )


def introduction(facts: Mapping[str, Any], command: str, results: Mapping[str, Sequence[Result]]) -> list[Part]:
    """What was trained on what, and how to do it again."""
    run = next(iter(results.values()))[0]
    machine = run["machine"]
    seeds = ", ".join(str(one["seed"]) for one in next(iter(results.values())))
    shape = " x ".join(map(str, facts["frame_shape"]))
    split = f" Split: {facts['split']}." if facts["split"] else ""
    return [
        Text(
            f"{facts['dataset']}.{split} {facts['network']} with {run['parameters']:,} parameters; "
            f"{facts['num_steps']} time steps of frames {shape}, batches of {facts['batch_size']}, "
            f"{facts['max_epochs']} epochs, seeds {seeds}. torch {machine['torch']}, {machine['device']} "
            f"({machine['name']}), {machine['threads']} thread(s)."
        ),
        Text(command, code=True),
    ]


def curve(run: Result, metric: str) -> list[float]:
    """A metric of each epoch that has it."""
    return [epoch[metric] for epoch in run["epochs"] if metric in epoch]
