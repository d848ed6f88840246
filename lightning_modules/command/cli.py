"""The ``stllr`` command: its overview, and the way to the subcommands.

This module stays light, so that ``stllr --help`` answers at once; Lightning loads when a subcommand needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = ("demo", "fit", "validate", "test", "predict", "compare", "ablate")

OVERVIEW = """\
usage: stllr COMMAND [options]

Train spiking networks with S-TLLR, a local learning rule whose memory does not grow with the number of time steps.

commands:
  demo       train a small network on built-in event data (a few minutes on a CPU) and draw what happened
  fit        train a network as a YAML file says
  validate   accuracy of a trained network on the validation data
  test       accuracy of a trained network on the test data
  predict    beside the logs: class probabilities in predictions.pt, or pictures and GIFs of optical flow
  compare    several algorithms on the same data: accuracies, memory, time and energy in one report
  ablate     grids of the rule's settings: a heat map and a table in one report

first steps:
  stllr demo
  stllr fit --config configs/quickstart.yaml
  stllr test --config configs/quickstart.yaml --ckpt_path lightning_logs/version_0/checkpoints/best.ckpt
  stllr compare --config configs/quickstart.yaml --algorithms stllr bptt --seeds 1 --epochs 2

change anything of a YAML file on the command line:
  stllr fit --config configs/quickstart.yaml --model.algorithm bptt --trainer.max_epochs 5
  stllr fit --config configs/nmnist_subset.yaml --data.path PATH --seed_everything 3

find out what can be set:
  stllr fit --help                                the trainer, and how to get help on a class
  stllr fit --model.help SpikingClassifier        the task: algorithm, rule, optimizer, ...
  stllr fit --data.help EventDigitsDataModule     the data
  stllr fit --config configs/quickstart.yaml --print_config     a complete YAML file to start from

Errors are told in a few words; with STLLR_TRACEBACK=1 before the command, with the place in the code.
Classes are named in YAML by `class_path`; those of this package by their name alone. Logs and checkpoints go to
lightning_logs/version_N (or to --trainer.default_root_dir).
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the ``stllr`` command.

    Args:
        args: Arguments after the program's name; those of the process if left out.

    Returns:
        The exit status. Errors in arguments exit with status 2, as usual for command line tools.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"stllr-plugin {version('stllr-plugin')}")
        return 0
    if arguments[0] not in COMMANDS:
        return _no_command(arguments[0])
    if arguments[0] == "demo":
        from lightning_modules.demo.demo import main as demo

        return demo(arguments[1:])
    if arguments[0] == "compare":
        from lightning_modules.comparison.compare import main as compare

        return compare(arguments[1:])
    if arguments[0] == "ablate":
        from lightning_modules.comparison.ablate import main as ablate

        return ablate(arguments[1:])
    from lightning_modules.command.trainer_cli import STLLRCLI

    if any(argument.partition("=")[0].endswith(("--help", ".help", "-h")) for argument in arguments):
        return _print_help(arguments)
    STLLRCLI(arguments)
    return 0


def _no_command(word: str) -> int:
    """Say which commands there are."""
    from lightning_modules.command.texts import did_you_mean

    said = f"There is no command {word!r}.{did_you_mean(word, COMMANDS)}"
    if word.startswith("-"):
        said = f"A command comes before {word.partition('=')[0]}, such as: stllr fit --config configs/quickstart.yaml"
    sys.stderr.write(f"stllr: error\n  {said}\n  Commands: {', '.join(COMMANDS)}.\n  More: stllr --help\n")
    return 2


def _print_help(arguments: list[str]) -> int:
    """Print a help page of a subcommand, with its lists of classes cut to what matters."""
    import contextlib
    import io

    from lightning_modules.command.texts import shorten_help
    from lightning_modules.command.trainer_cli import STLLRCLI

    page = io.StringIO()
    try:
        with contextlib.redirect_stdout(page):
            STLLRCLI(arguments)
    finally:
        print(shorten_help(page.getvalue(), "lightning_modules"), end="")
    return 0
