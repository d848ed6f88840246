"""``stllr ablate``: grids of settings on the same data and order, as a heat map and a table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.comparison.ablate_report import write_report
from lightning_modules.comparison.compare import say
from lightning_modules.comparison.experiment import RULE, Experiment, Variant
from lightning_modules.comparison.options import Parser, follow_epochs
from lightning_modules.comparison.store import OtherConfigurationError, Store
from lightning_modules.comparison.studies import STUDIES, StudyError, check_study, grid, read_grid, study
from lightning_modules.comparison.training import RunError, look, train
from stllr_plugin.errors import RuleError

DESCRIPTION = """\
Train with one setting after the other changed, on the same data and in the same order, and write a report (Markdown,
and one HTML file) with a heat map and a table. Cut off, it goes on where it was: give the same command again.

studies:
"""

EXAMPLES = """\
examples:
  stllr ablate --config configs/quickstart.yaml --study psi_alpha
  stllr ablate --config configs/quickstart.yaml --study ottt_to_stllr --seeds 3 --epochs 5
  stllr ablate --config configs/quickstart.yaml --grid model.rule.alpha_post=-1,0,1 model.rule.psi=triangle,sigmoid
  stllr ablate --config configs/quickstart.yaml --grid model.supervise_last=1,5,null model.algorithm=stllr,bptt

More seeds or values later: the same command with them added runs only what is new."""


def make_parser() -> Parser:
    """The command's parser."""
    studies = "\n".join(f"  {name:<18}{says}" for name, says in STUDIES.items())
    parser = Parser("stllr ablate", DESCRIPTION + studies, EXAMPLES)
    parser.add_argument("--study", metavar="NAME", help="a study of the list above")
    parser.add_argument(
        "--grid", nargs="*", metavar="OPTION=A,B", help="options and their values; all combinations are trained"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=["1"],
        metavar="N",
        help="how many (3: seeds 0, 1, 2), or which: 4 7, [7] (default: 1)",
    )
    parser.add_argument(
        "--no_best_test_epoch", action="store_true", help="do not test after every epoch (faster; no best test epoch)"
    )
    return parser


def main(args: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser()
    own, arguments = parser.read(args, {})
    if (own.study is None) == (own.grid is None):
        parser.error(
            "Say what to vary, one of:\n"
            f"  --study NAME         of {', '.join(STUDIES)}\n"
            "  --grid OPTION=A,B    such as --grid model.rule.alpha_post=-1,0,1 model.rule.psi=triangle,sigmoid"
        )
    try:
        axes = None if own.grid is None else read_grid(own.grid)
        if own.study is not None:
            check_study(own.study)
    except StudyError as error:
        parser.error(str(error))
    seeds = parser.seeds(own.seeds)
    experiment = Experiment(arguments, parser.prog)
    more = follow_epochs(experiment.settings, own.epochs)
    experiment = Experiment([*arguments, *more], parser.prog) if more else experiment
    what = own.study or re.sub(r"[^\w-]+", "-", "-".join(name.rpartition(".")[2] for name in axes or ()))
    folder = own.output or Path("runs") / "ablate" / f"{Path(own.config[0]).stem}-{what}"
    try:
        if axes is not None:
            variants = grid(axes)
            check(experiment, variants)
        store = Store(folder, {"command": "ablate", **experiment.settings})
        facts = look(experiment)
        if axes is None:
            variants = study(own.study, experiment, facts["num_steps"])
            check(experiment, variants)
        say(f"{len(variants)} variants with {len(seeds)} seed(s): {len(variants) * len(seeds)} runs. Results: {folder}")
        results = {
            variant.name: [
                train(experiment, variant, seed, store, every_epoch=not own.no_best_test_epoch, say=say)
                for seed in seeds
            ]
            for variant in variants
        }
    except (RunError, OtherConfigurationError, StudyError, RuleError) as error:
        parser.error(str(error))
    except Exception as error:
        parser.tell(error)
        raise
    title = f"{own.study}: {STUDIES[own.study]}" if own.study else " x ".join(variants[0].place)
    command = shlex.join(["stllr", "ablate", *args])
    paths = write_report(folder, f"{title} ({Path(own.config[0]).stem})", command, facts, variants, results)
    print(f"Report: {paths[1]} (and {paths[0].name} beside it)")
    return 0


def check(experiment: Experiment, variants: Sequence[Variant]) -> None:
    """Find errors of all variants before anything runs.

    Raises:
        StudyError: If the rule is varied where nothing reads it.
        RuleError: If a rule is not valid.
        SystemExit: If an option is not known.
    """
    for variant in variants:
        experiment.check(variant)
        algorithm = experiment.describe(variant)["model"]["init_args"]["algorithm"]
        if algorithm != "stllr" and any(name.startswith(RULE) for name in variant.changes):
            raise StudyError(
                f"The rule is varied, but the algorithm is {algorithm!r}, which has a rule of its own.\n"
                "Add --model.algorithm=stllr."
            )
