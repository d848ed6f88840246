"""S-TLLR, OTTT and BPTT on real event-camera recordings: the mean and the spread over seeds, as a Markdown table.

    python benchmarks/nmnist_subset.py PATH/nmnist_small.npz
    python benchmarks/nmnist_subset.py PATH/nmnist_small.npz --seeds 0 1 2 3 4 --output table.md

Every run is ``stllr fit --config configs/nmnist_subset.yaml`` with another algorithm and seed: the same network,
data, number of epochs and optimizer. The weights that are tested are those of the epoch with the lowest loss on the
validation samples. What comes out goes to docs/results.md. Without the file there is nothing to do.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_modules.command.trainer_cli import STLLRCLI
from lightning_modules.memory import format_bytes, measure_peak_memory

CONFIG = Path(__file__).parents[1] / "configs" / "nmnist_subset.yaml"
NAMES = {"bptt": "BPTT", "ottt": "OTTT", "stllr": "S-TLLR", "sltt": "SLTT", "tess": "TESS"}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@dataclass
class Result:
    """What the runs of one algorithm gave."""

    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: int = 0


def options(algorithm: str, data: Path) -> list[str]:
    return ["--config", str(CONFIG), f"--data.path={data}", f"--model.algorithm={algorithm}", *QUIET]


def fit(algorithm: str, seed: int, data: Path, epochs: int | None, folder: str) -> tuple[float, float, int]:
    """Train and test once: test accuracy, seconds of training, epochs."""
    arguments = ["fit", *options(algorithm, data), f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    if epochs is not None:
        arguments += [f"--trainer.max_epochs={epochs}", f"--model.lr_scheduler.init_args.T_max={epochs}"]
    start = time.perf_counter()
    cli = STLLRCLI([*arguments, "--test_after_fit=true"])
    seconds = time.perf_counter() - start
    return float(cli.trainer.callback_metrics["test_accuracy"]), seconds, cli.trainer.max_epochs


def prepare_batch(algorithm: str, data: Path, steps: int):
    """One training batch as a function; a sequence of one step runs before, so that first-use costs do not count."""
    quiet()
    warm_up, measured = build(algorithm, data, 1), build(algorithm, data, steps)
    warm_up.trainer.fit(warm_up.model, datamodule=warm_up.datamodule)
    measured.datamodule.setup()
    return lambda: measured.trainer.fit(measured.model, datamodule=measured.datamodule)


def build(algorithm: str, data: Path, steps: int) -> STLLRCLI:
    """Task, data and a trainer for one batch."""
    one_batch = [f"--data.num_steps={steps}", "--trainer.fast_dev_run=1", "--trainer.limit_val_batches=0"]
    return STLLRCLI([*options(algorithm, data), *one_batch, "--trainer.accelerator=cpu"], run=False)


def table(results: dict[str, Result], epochs: int) -> str:
    """The Markdown table."""
    lines = [
        f"| algorithm | test accuracy, {epochs} epochs, mean ± sd | each seed | seconds | peak memory of a batch |",
        "|---|---|---|---|---|",
    ]
    for algorithm, result in results.items():
        mean = statistics.mean(result.accuracies)
        spread = statistics.stdev(result.accuracies) if len(result.accuracies) > 1 else 0.0
        each = " / ".join(f"{accuracy:.1%}" for accuracy in result.accuracies)
        seconds = statistics.median(result.seconds)
        lines.append(
            f"| {NAMES[algorithm]} | **{mean:.1%}** ± {100 * spread:.1f} | {each} | {seconds:.0f} "
            f"| {format_bytes(result.memory)} |"
        )
    return "\n".join(lines)


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/nmnist_small.npz"))
    parser.add_argument("--algorithms", nargs="+", default=["bptt", "ottt", "stllr"], choices=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="other than those of the YAML file")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads (default: 1, fastest for layers this small)"
    )
    parser.add_argument("--output", type=Path, help="file for the table, besides the terminal")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        print(f"Skipped: there is no {arguments.data} (N-MNIST subset, see lightning_modules/data/nmnist_subset.py).")
        return 0
    torch.set_num_threads(arguments.threads)
    quiet()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for algorithm in arguments.algorithms:
            result = results[algorithm] = Result()
            for seed in arguments.seeds:
                accuracy, seconds, epochs = fit(algorithm, seed, arguments.data, arguments.epochs, folder)
                result.accuracies.append(accuracy)
                result.seconds.append(seconds)
                print(f"{algorithm} seed {seed}: {accuracy:.1%}, {seconds:.0f} s", file=sys.stderr, flush=True)
            result.memory = measure_peak_memory(prepare_batch, algorithm, arguments.data, 15)
    text = table(results, epochs)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
