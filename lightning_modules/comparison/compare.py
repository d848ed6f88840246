"""``stllr compare``: algorithms on the same data and order, with what they cost."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning_modules.comparison.measure as measure
from lightning_modules.command.texts import did_you_mean
from lightning_modules.comparison.compare_report import NAMES, Measurements, write_report
from lightning_modules.comparison.experiment import Experiment, Variant
from lightning_modules.comparison.options import Parser, follow_epochs
from lightning_modules.comparison.store import OtherConfigurationError, Store, key_of
from lightning_modules.comparison.training import RunError, look, train
from lightning_modules.tasks.base import Algorithm
from stllr_plugin.errors import RuleError

ALGORITHMS = get_args(Algorithm)
DEFAULT = ("stllr", "ottt", "sltt", "bptt")

DESCRIPTION = """\
Train each algorithm on the same data, in the same order, with every seed, and write a report (Markdown, and one HTML
file): accuracies with their spread, memory, time, operations, energy. Cut off, it goes on where it was: give the same
command again."""

EXAMPLES = """\
examples:
  stllr compare --config configs/quickstart.yaml
  stllr compare --config configs/quickstart.yaml --algorithms stllr bptt --seeds 1 --epochs 2        a quick look
  stllr compare --config configs/nmnist_subset.yaml --data.path PATH/nmnist_small.npz --seeds 0 1 2 3 4
  stllr compare --config configs/shd.yaml --data.path FOLDER --model.network.init_args.hidden 128 --output runs/shd128

More seeds or algorithms later: the same command with them added runs only what is new."""


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser("stllr compare", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--algorithms",
        nargs="+",
        default=list(DEFAULT),
        metavar="NAME",
        help=f"of {', '.join(ALGORITHMS)} (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=["3"],
        metavar="N",
        help="how many (3: seeds 0, 1, 2), or which: 4 7, [7] (default: 3)",
    )
    parser.add_argument(
        "--memory_steps",
        nargs="+",
        type=int,
        metavar="T",
        help="numbers of time steps for memory against T (default: 1/2, 1, 2, 4 times the data's)",
    )
    parser.add_argument(
        "--no_best_test_epoch", action="store_true", help="do not test after every epoch (faster; no best test epoch)"
    )
    parser.add_argument("--no_measurements", action="store_true", help="leave out memory and time")
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser()
    own, arguments = parser.read(args, {"--model.algorithm": "Use --algorithms."})
    algorithms = list(dict.fromkeys(own.algorithms))
    for name in algorithms:
        if name not in ALGORITHMS:
            parser.error(
                f"There is no algorithm {name!r}.{did_you_mean(name, ALGORITHMS)}\nThere are: {', '.join(ALGORITHMS)}."
            )
    if own.memory_steps and min(own.memory_steps) < 1:
        parser.error("--memory_steps: a sequence has at least one time step.")
    seeds = parser.seeds(own.seeds)
    experiment = Experiment(arguments, parser.prog)
    more = follow_epochs(experiment.settings, own.epochs)
    experiment = Experiment([*arguments, *more], parser.prog) if more else experiment
    folder = own.output or Path("runs") / "compare" / Path(own.config[0]).stem
    variants = [Variant(NAMES[name], {"model.algorithm": name}) for name in algorithms]
    try:
        for variant in variants:
            experiment.check(variant)
        store = Store(folder, {"command": "compare", **_shared(experiment)})
        facts = look(experiment)
        results = {
            variant.name: [
                train(experiment, variant, seed, store, every_epoch=not own.no_best_test_epoch, say=say)
                for seed in seeds
            ]
            for variant in variants
        }
        steps = sorted({facts["num_steps"], *(own.memory_steps or measure.default_steps(facts["num_steps"]))})
        measured = None if own.no_measurements else measurements(experiment, variants, facts, steps, store)
    except (RunError, OtherConfigurationError, RuleError) as error:
        parser.error(str(error))
    except Exception as error:
        parser.tell(error)
        raise
    command = shlex.join(["stllr", "compare", *args])
    paths = write_report(folder, command, experiment, facts, results, measured)
    print(f"Report: {paths[1]} (and {paths[0].name} beside it)")
    return 0


def measurements(
    experiment: Experiment, variants: Sequence[Variant], facts: dict[str, Any], steps: Sequence[int], store: Store
) -> Measurements:
    """Memory against T and time of a step, from the store where they have been measured before."""
    device = facts["device"]
    memory: dict[str, dict[int, int | None]] = {}
    for variant in variants:
        for num_steps in steps:
            key = key_of({"settings": experiment.describe(variant), "memory": num_steps, "device": device})
            work = partial(_memory, experiment, variant, num_steps, device)
            found = _once(store, f"memory-{variant.name}-T{num_steps}", key, work)
            memory.setdefault(variant.name, {})[num_steps] = found["bytes"]
    names = [variant.name for variant in variants]
    key = key_of({"settings": experiment.settings, "seconds": names, "device": device})
    seconds = _once(store, f"seconds-{'-'.join(names)}", key, partial(_seconds, experiment, variants))
    return Measurements(memory, seconds)


def _memory(experiment: Experiment, variant: Variant, num_steps: int, device: str) -> dict[str, Any]:
    say(f"{variant.name}: measuring the peak memory of a batch with {num_steps} time steps ...")
    return {"bytes": measure.peak_memory(experiment, variant, num_steps, device)}


def _seconds(experiment: Experiment, variants: Sequence[Variant]) -> dict[str, Any]:
    say("Measuring seconds per training step, contenders in turn ...")
    return dict(measure.seconds_per_step(experiment, variants))


def _once(store: Store, name: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found = store.get(name, key)
    if found is None:
        store.put(name, key, found := work())
    return found


def _shared(experiment: Experiment) -> dict[str, Any]:
    """The configuration without what the command varies."""
    model = experiment.settings["model"]
    task = {name: value for name, value in model["init_args"].items() if name != "algorithm"}
    return {**experiment.settings, "model": {**model, "init_args": task}}


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)
