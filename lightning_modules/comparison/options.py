"""Options that ``stllr compare`` and ``stllr ablate`` share, and their errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn

from lightning_modules.command.config_files import problem_of
from lightning_modules.command.texts import did_you_mean

MANY = 100


class Parser(argparse.ArgumentParser):
    """Parser of one command; whatever it does not know belongs to the configuration, as in ``stllr fit``."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} --config FILE [options] [--model... --data... --trainer...]",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", action="append", metavar="FILE", help="YAML file, as for stllr fit")
        self.add_argument(
            "--epochs", type=int, metavar="N", help="epochs, if not the file's (T_max of a cosine schedule follows)"
        )
        self.add_argument("--output", type=Path, metavar="DIR", help="folder for the report and all results")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and the message."""
        sys.stderr.write(f"{self.prog}: error\n{indent(message, '  ')}\n  More: {self.prog} --help\n")
        self.exit(2)

    def tell(self, error: Exception) -> None:
        """Exit with a short message, if that is all that the user needs."""
        from lightning_modules.command.errors import TRACEBACK, plain_words

        text = plain_words(error)
        if text is not None:
            self.error(f"{text}\nThe place in the code: set {TRACEBACK}=1.")

    def read(self, args: Sequence[str], taken: Mapping[str, str]) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and the arguments of the configuration.

        Args:
            args: All arguments.
            taken: Options of the configuration that may not be given, and what to do instead.
        """
        own, overrides = self.parse_known_args(list(args))
        for argument in overrides:
            name = argument.partition("=")[0]
            instead = {
                "--trainer.default_root_dir": "Everything goes to the folder of --output.",
                "--trainer.logger": "Everything goes to the folder of --output.",
                "--trainer.devices": "A run uses one device.",
                "--ckpt_path": "A run that was cut off goes on by itself: give the same command again.",
                "--seed_everything": "Use --seeds 3 (seeds 0, 1 and 2) or a list: --seeds 4 7.",
                "--test_after_fit": "Every run is tested.",
                **taken,
            }.get(name)
            if instead:
                self.error(f"{name} cannot be set here. {instead}")
            if name.startswith("--") and "." not in name and name not in ("--model", "--data", "--trainer"):
                known = [option for action in self._actions for option in action.option_strings]
                self.error(f"There is no option {name!r}.{did_you_mean(name, known)}")
        if not own.config:
            self.error(f"Say what to train: {self.prog} --config configs/quickstart.yaml")
        for config in own.config:
            if problem := problem_of(config):
                self.error(problem)
        if own.epochs is not None:
            if own.epochs < 1:
                self.error(f"--epochs {own.epochs}: at least one epoch is needed.")
            overrides.append(f"--trainer.max_epochs={own.epochs}")
        return own, [*(part for config in own.config for part in ("--config", config)), *overrides]

    def seeds(self, words: Sequence[str]) -> list[int]:
        """Seeds from ``3`` (0, 1 and 2), ``4 7`` or ``[7]``."""
        text = " ".join(words)
        numbers = re.findall(r"\d+", text)
        if not numbers or re.sub(r"[\d\s,\[\]]", "", text):
            self.error(
                f"--seeds {text}: give how many (--seeds 3: the seeds 0, 1 and 2) or which (--seeds 4 7, --seeds [7])."
            )
        seeds = [int(number) for number in numbers]
        if len(seeds) == 1 and not re.search(r"[,\[]", text):
            if not 1 <= seeds[0] <= MANY:
                self.error(
                    f"--seeds {text}: a single number is how many seeds, from 1 to {MANY}; one seed of that number is "
                    f"[{text}]."
                )
            return list(range(seeds[0]))
        return list(dict.fromkeys(seeds))


def follow_epochs(settings: Mapping[str, Any], epochs: int | None) -> list[str]:
    """Arguments that let a cosine schedule end with the last epoch, if ``--epochs`` was given."""
    scheduler = settings["model"]["init_args"].get("lr_scheduler") or {}
    if epochs is None or "T_max" not in (scheduler.get("init_args") or {}):
        return []
    return [f"--model.lr_scheduler.init_args.T_max={epochs}"]
