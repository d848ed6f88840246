"""The report of ``stllr compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_modules.comparison import charts
from lightning_modules.comparison.costs import (
    ENERGY_SOURCE,
    Learning,
    counted_energy,
    energy_pj,
    format_count,
    format_energy,
    learning_macs,
    learning_values,
)
from lightning_modules.comparison.document import Document, Heading, Notes, Part, Picture, Table
from lightning_modules.comparison.experiment import Experiment
from lightning_modules.comparison.tables import (
    CHOSEN,
    Result,
    accuracy,
    accuracy_notes,
    accuracy_table,
    curve,
    introduction,
)
from lightning_modules.memory import PeakMemoryMeter, format_bytes

NAMES = {"stllr": "S-TLLR", "ottt": "OTTT", "sltt": "SLTT", "tess": "TESS", "bptt": "BPTT"}

Results = Mapping[str, Sequence[Result]]


@dataclass(frozen=True)
class Measurements:
    """What was measured beside the runs.

    Attributes:
        memory: Peak bytes of a batch by algorithm and number of time steps; None where the process died.
        seconds: Median, quartiles and number of the seconds of a training step by algorithm.
    """

    memory: Mapping[str, Mapping[int, int | None]]
    seconds: Mapping[str, Mapping[str, float]]


def write_report(
    folder: Path,
    command: str,
    experiment: Experiment,
    facts: Mapping[str, Any],
    results: Results,
    measured: Measurements | None,
) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html``; returns their paths."""
    colours = charts.colours_of(results)
    network = Path(experiment.args[1]).stem
    document = Document(f"{', '.join(results)} on {network}", introduction(facts, command, results))
    document.parts += [Heading("In short"), _summary(results, facts, experiment, measured)]
    document.parts += _accuracies(results, colours)
    if measured is not None:
        document.parts += _measured(measured, facts, colours)
    document.parts += _operations(results, facts, experiment, colours)
    return document.write(folder)


def _summary(
    results: Results, facts: Mapping[str, Any], experiment: Experiment, measured: Measurements | None
) -> Table:
    head = ["", CHOSEN]
    if measured is not None:
        head += [f"peak memory of a batch, T = {facts['num_steps']}", "seconds per training step"]
    head += ["MACs of learning per sample (formula)", "energy of learning per sample (counted)"]
    table, rows = accuracy_table("", results), []
    for name, row in zip(results, table.rows, strict=True):
        cells = [name, row[1]]
        if measured is not None:
            cells += [_bytes(measured.memory[name][facts["num_steps"]]), f"{measured.seconds[name]['median']:.3f}"]
        formula = _formula(results[name][0], facts, experiment)
        energy = fmean(counted_energy(run["counts"])["learning"] for run in results[name])
        rows.append([*cells, format_count(formula["macs"]), format_energy(energy)])
    return Table(head, rows, strong=(1,))


def _accuracies(results: Results, colours: charts.Colours) -> list[Part]:
    parts: list[Part] = [Heading("Accuracy"), accuracy_table("algorithm", results)]
    values = {name: [accuracy(run) for run in runs] for name, runs in results.items()}
    says = "Test accuracy of each algorithm: a dot for each seed, the mean, and the standard deviation around it."
    parts.append(Picture("accuracy", charts.accuracy_points(values, colours, CHOSEN), says))
    curves = {name: [curve(run, "val_accuracy") for run in runs] for name, runs in results.items()}
    if all(run for runs in curves.values() for run in runs):
        png = charts.learning_curves(curves, colours, "validation accuracy")
        parts.append(
            Picture("learning_curves", png, "Validation accuracy against the epoch: mean, and lowest to highest seed.")
        )
    return [*parts, accuracy_notes(results)]


def _measured(measured: Measurements, facts: Mapping[str, Any], colours: charts.Colours) -> list[Part]:
    steps = sorted({t for one in measured.memory.values() for t in one})
    rows = [[name, *(_bytes(one.get(t)) for t in steps)] for name, one in measured.memory.items()]
    parts: list[Part] = [
        Heading("Memory against the number of time steps"),
        Table(["algorithm", *(f"T = {t}" for t in steps)], rows),
    ]
    known = {name: {t: count for t, count in one.items() if count is not None} for name, one in measured.memory.items()}
    if all(known.values()):
        png = charts.memory_lines(known, colours, facts["num_steps"])
        parts.append(Picture("memory", png, "Peak memory of a training batch against the number of time steps."))
    method = PeakMemoryMeter(facts["device"]).method
    parts.append(
        Notes(
            [
                f"One training batch of {facts['batch_size']} real samples, cut off or repeated to T time steps, in a "
                f"process of its own. Measured: {method}, which is the level before the batch.",
                "-: the process ended without a result, as where memory runs out.",
            ]
        )
    )
    medians = {name: one["median"] for name, one in measured.seconds.items()}
    rows = [
        [
            name,
            f"{one['median']:.4f}",
            f"{one['low']:.4f} to {one['high']:.4f}",
            f"{one['median'] / min(medians.values()):.2f} x",
        ]
        for name, one in measured.seconds.items()
    ]
    count = next(iter(measured.seconds.values()))["count"]
    return [
        *parts,
        Heading("Seconds per training step"),
        Table(["algorithm", "median", "quartiles", "to the fastest"], rows, strong=(1,)),
        Picture(
            "seconds",
            charts.bars(medians, colours, "seconds per training step (median)", lambda value: f"{value:.3f} s"),
            "Seconds per training step of each algorithm.",
        ),
        Notes(
            [
                f"One step is one batch: forward over T = {facts['num_steps']} time steps, learning, update of the "
                f"weights. {count:.0f} batches each; the contenders took turns, and the first batch of each turn is "
                "left out.",
                "Times depend on what else the machine does; with busy cores set OMP_NUM_THREADS=1 and compare the "
                "ratios.",
            ]
        ),
    ]


def _formula(run: Result, facts: Mapping[str, Any], experiment: Experiment) -> dict[str, int]:
    num_steps = facts["num_steps"]
    supervised = min(experiment.task.get("supervise_last") or num_steps, num_steps)
    window = experiment.task.get("update_every") or num_steps  # the graph of truncated backpropagation is cut there
    hidden = None if run["edges"] is None else [one for one in run["edges"] if _hidden(one, run["counts"]["rates"])]
    learning = Learning.of(hidden, run["signal"])
    connections, neurons = run["counts"]["connections"], run["counts"]["neurons"]
    return {
        "macs": learning_macs(learning, connections, num_steps, supervised),
        "values": learning_values(learning, neurons, min(num_steps, window)),
        "supervised": supervised,
    }


def _hidden(edge: Mapping[str, Any], rates: Mapping[str, float]) -> bool:
    """Whether its neuron is no readout: of a snnTorch neuron the learner's report does not tell."""
    return any(edge["neuron"] == name or edge["neuron"].startswith(f"{name}.") for name in rates)


def _matrices(results: Results) -> str:
    """How large the matrices of the learning signals are."""
    sizes = {name: runs[0].get("matrices", 0) for name, runs in results.items()}
    said = ", ".join(f"{name} has {size:,} numbers in them" for name, size in sizes.items() if size)
    return f" ({said})" if said else ""


def _operations(
    results: Results, facts: Mapping[str, Any], experiment: Experiment, colours: charts.Colours
) -> list[Part]:
    return [*_by_formula(results, facts, experiment), *_as_counted(results, colours)]


def _by_formula(results: Results, facts: Mapping[str, Any], experiment: Experiment) -> list[Part]:
    rows = []
    for name, runs in results.items():
        formula = _formula(runs[0], facts, experiment)
        energy = format_energy(energy_pj(formula["macs"], 0))
        rows.append([name, format_bytes(4 * formula["values"]), format_count(formula["macs"]), energy])
    first = next(iter(results.values()))[0]["counts"]
    supervised = _formula(next(iter(results.values()))[0], facts, experiment)["supervised"]
    return [
        Heading("Operations, memory and energy by the paper's formulas"),
        Table(["algorithm", "memory for learning", "MACs of learning", "energy of learning"], rows),
        Notes(
            [
                f"Per sample, with T = {facts['num_steps']} time steps of which {supervised} are supervised, "
                f"{first['neurons']:,} neurons and {first['connections']:,} connections (multiplications of one dense "
                "time step, which for convolutions is more than the weights).",
                "Apolinario & Roy, TMLR 2025, section 4.3: memory T x neurons for BPTT and 2 x neurons for S-TLLR, 4 "
                "bytes each; MACs 2 T x connections for BPTT and 3 x supervised steps x connections for S-TLLR (2 x "
                "without the non-causal term). Weights, the forward pass and the unfolding of convolutions are left "
                "out.",
                "The paper has no formula for the others; they are counted in the same way: a product for each term "
                "of the eligibility and one that takes the signal down, a value per neuron for each trace. SLTT keeps "
                "nothing from step to step. Matrices of learning signals, such as a classifier for each layer, are "
                f"left out here and in the number of parameters{_matrices(results)}.",
            ]
        ),
    ]


def _as_counted(results: Results, colours: charts.Colours) -> list[Part]:
    rows, energies = [], {}
    for name, runs in results.items():
        counts = {what: fmean(run["counts"][what] for run in runs) for what in _COUNTED}
        energy = counted_energy(counts)
        energies[name] = energy["learning"]
        rows.append(
            [
                name,
                format_count(counts["forward_additions"]),
                format_count(counts["forward_macs"]),
                f"{(counts['forward_additions'] + counts['forward_macs']) / max(counts['dense_macs'], 1):.1%}",
                format_energy(energy["forward"]),
                format_count(counts["learning_additions"]),
                format_count(counts["learning_macs"]),
                format_energy(energy["learning"]),
            ]
        )
    first = next(iter(results.values()))[0]["counts"]
    dense = energy_pj(first["dense_macs"], 0)
    return [
        Heading("Operations and energy as counted from real spikes"),
        Table(
            [
                "algorithm",
                "forward: additions",
                "forward: MACs",
                "of the dense number",
                "energy, forward",
                "learning: additions",
                "learning: MACs",
                "energy, learning",
            ],
            rows,
        ),
        Picture(
            "energy",
            charts.bars(energies, colours, "energy of learning per sample (counted)", format_energy),
            "Counted energy of learning from one sample, for each algorithm.",
        ),
        _rates(results),
        Notes(
            [
                f"Per sample, over {first['samples']} test samples, with the weights after the last epoch; mean over "
                "the seeds. An input of 0 causes nothing, a spike one addition for each neuron it reaches, any other "
                "input (event counts above 1) one MAC.",
                "Learning: the weight gradients' products without the zeros of inputs or, where the rule has them, of "
                "presynaptic traces; the product that takes the signal down counts as dense, zeros of psi are not "
                "used. What makes the signals of hidden layers from matrices of their own is counted.",
                f"A network that cannot skip zeros needs {format_count(first['dense_macs'])} MACs "
                f"({format_energy(dense)}) for the forward pass of a sample.",
                f"Energy is an estimate: operations times {ENERGY_SOURCE}. Moving data to and from memory, which often "
                "costs more, is not in it.",
            ]
        ),
    ]


_COUNTED = ("forward_additions", "forward_macs", "dense_macs", "learning_additions", "learning_macs")


def _rates(results: Results) -> Table:
    layers = list(next(iter(results.values()))[0]["counts"]["rates"])
    rows = [
        [name, *(f"{fmean(run['counts']['rates'][layer] for run in runs):.1%}" for layer in layers)]
        for name, runs in results.items()
    ]
    return Table(["spikes per neuron and time step", *layers], rows)


def _bytes(count: int | None) -> str:
    return "-" if count is None else format_bytes(count)
