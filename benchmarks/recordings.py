"""S-TLLR, OTTT and BPTT on real recordings: electrocardiograms (QTDB) and spoken digits (spikes derived from FSDD).

    python benchmarks/recordings.py qtdb PATH/qtdb_ecg.npz
    python benchmarks/recordings.py fsdd PATH/fsdd.npz                 the official split
    python benchmarks/recordings.py fsdd-speakers PATH/fsdd.npz        two speakers are heard in the test alone
    python benchmarks/recordings.py qtdb PATH/qtdb_ecg.npz --seeds 0 1 2 3 4 --output table.md

Every run is ``stllr fit`` with the task's YAML file in configs/, another algorithm and another seed: the same network,
data, number of epochs and optimizer. The weights that are tested are those of the epoch with the best accuracy on the
validation part of the training recordings. Settings are chosen with ``--validate``, which leaves the test recordings
alone; options of ``stllr fit`` may follow after ``--``. What comes out goes to docs/results.md.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_modules.command.trainer_cli import STLLRCLI
from lightning_modules.memory import format_bytes, measure_peak_memory

CONFIGS = Path(__file__).parents[1] / "configs"
FOLDER = Path("../shared/data")
TASKS: dict[str, tuple[str, Path, list[str]]] = {
    "qtdb": ("qtdb", FOLDER / "qtdb_ecg.npz", []),
    "fsdd": ("fsdd_shd", FOLDER / "fsdd.npz", []),
    "fsdd-speakers": ("fsdd_shd", FOLDER / "fsdd.npz", ["--data.split=speakers", "--data.max_shift=40"]),
}
NAMES = {"bptt": "BPTT", "ottt": "OTTT", "stllr": "S-TLLR", "sltt": "SLTT", "tess": "TESS"}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@dataclass
class Result:
    """What the runs of one algorithm gave."""

    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: int = 0


@dataclass(frozen=True)
class Task:
    """What all runs have in common."""

    name: str
    data: Path
    extra: tuple[str, ...] = ()

    def options(self, algorithm: str) -> list[str]:
        """Arguments of ``stllr fit``."""
        config, _, own = TASKS[self.name]
        common = ["--config", str(CONFIGS / f"{config}.yaml"), f"--data.path={self.data}"]
        return [*common, f"--model.algorithm={algorithm}", *own, *QUIET, *self.extra]


def fit(
    task: Task, algorithm: str, seed: int, epochs: int | None, folder: str, test: bool
) -> tuple[float, float | None, float, int]:
    """Train once, and test if asked to: validation and test accuracy, seconds of training, epochs."""
    arguments = ["fit", *task.options(algorithm), f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    if epochs is not None:
        arguments += [f"--trainer.max_epochs={epochs}", f"--model.lr_scheduler.init_args.T_max={epochs}"]
    start = time.perf_counter()
    cli = STLLRCLI([*arguments, f"--test_after_fit={str(test).lower()}"])
    seconds = time.perf_counter() - start
    validation = float(cli.trainer.checkpoint_callback.best_model_score)
    tested = float(cli.trainer.callback_metrics["test_accuracy"]) if test else None
    return validation, tested, seconds, cli.trainer.max_epochs


def prepare_batch(task: Task, algorithm: str):
    """One training batch as a function; another one runs before, so that first-use costs do not count."""
    quiet()
    one_batch = ["--trainer.fast_dev_run=1", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    warm_up = STLLRCLI([*task.options(algorithm), *one_batch, "--data.batch_size=1"], run=False)
    measured = STLLRCLI([*task.options(algorithm), *one_batch], run=False)
    warm_up.trainer.fit(warm_up.model, datamodule=warm_up.datamodule)
    measured.datamodule.setup()
    return lambda: measured.trainer.fit(measured.model, datamodule=measured.datamodule)


def table(results: dict[str, Result], epochs: int) -> str:
    """The Markdown table."""
    lines = [
        f"| algorithm | test accuracy, {epochs} epochs, mean ± sd | each seed | validation | seconds | "
        "peak memory of a batch |",
        "|---|---|---|---|---|---|",
    ]
    for algorithm, result in results.items():
        each = " / ".join(f"{accuracy:.1%}" for accuracy in result.test)
        seconds = statistics.median(result.seconds)
        memory = format_bytes(result.memory) if result.memory else ""
        lines.append(
            f"| {NAMES[algorithm]} | {spread(result.test, bold=True)} | {each} | {spread(result.validation)} "
            f"| {seconds:.0f} | {memory} |"
        )
    return "\n".join(lines)


def spread(accuracies: Sequence[float], bold: bool = False) -> str:
    """Mean and standard deviation over seeds."""
    if not accuracies:
        return ""
    mean = f"{statistics.mean(accuracies):.1%}"
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f"{f'**{mean}**' if bold else mean} ± {100 * deviation:.1f}"


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="qtdb", choices=list(TASKS))
    parser.add_argument("data", nargs="?", type=Path, help="the recordings")
    parser.add_argument("--algorithms", nargs="+", default=["bptt", "ottt", "stllr"], choices=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="other than those of the YAML file")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--validate", action="store_true", help="validation accuracy alone; the test is not touched")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the memory of a batch")
    parser.add_argument("--output", type=Path, help="file for the table, besides the terminal")
    given = list(sys.argv[1:] if args is None else args)
    split = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:split])
    data = arguments.data or TASKS[arguments.task][1]
    if not data.exists():
        print(f"Skipped: there is no {data} (recordings for {arguments.task}).")
        return 0
    torch.set_num_threads(arguments.threads)
    quiet()
    task = Task(arguments.task, data, tuple(given[split + 1 :]))
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for algorithm in arguments.algorithms:
            result = results[algorithm] = Result()
            for seed in arguments.seeds:
                validation, tested, seconds, epochs = fit(
                    task, algorithm, seed, arguments.epochs, folder, not arguments.validate
                )
                result.validation.append(validation)
                result.test += [] if tested is None else [tested]
                result.seconds.append(seconds)
                said = "" if tested is None else f", test {tested:.1%}"
                print(
                    f"{algorithm} seed {seed}: validation {validation:.1%}{said}, {seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            if not arguments.no_memory:
                result.memory = measure_peak_memory(prepare_batch, task, algorithm)
    text = table(results, epochs)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
