"""``stllr fit``, ``validate``, ``test`` and ``predict``: LightningCLI with this package's classes."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

import lightning_modules
from lightning_modules.callbacks import FlowPictures
from lightning_modules.command.config_files import named_files, problem_of
from lightning_modules.command.errors import TRACEBACK, check_checkpoint, plain_words
from lightning_modules.command.named_classes import import_named_classes
from lightning_modules.command.rule_options import whole_rule
from lightning_modules.command.texts import explain
from lightning_modules.comparison.store import differences
from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.optical_flow import OpticalFlowEstimator

import_named_classes()


class Parser(LightningArgumentParser):
    """Argument parser whose errors are short and name the key or class that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 and the message."""
        parser: Parser = getattr(ex, "subcommand_parser", None) or self
        keys = [action.dest for action in parser._actions]
        text = explain(message, keys, lightning_modules)
        if not self.exit_on_error:
            raise ArgumentError(None, text) from ex
        parser.fail(text)

    def fail(self, text: str) -> NoReturn:
        """Exit with status 2 and a text that is for people already."""
        command = self.prog.replace(" [options]", "")
        sys.stderr.write(f"{command}: error\n{indent(text, '  ')}\n  More: {command} --help\n")
        self.exit(2)


class STLLRCLI(LightningCLI):
    """LightningCLI with this package's tasks and data, a rich progress bar and ``test_after_fit``.

    Args:
        args: Arguments that begin with the subcommand; those of the process if left out.
        run: Whether to run a subcommand. If not, ``args`` has none, and the objects are built for use in a script:
            ``cli.trainer.fit(cli.model, datamodule=cli.datamodule)``.
        prog: Name of the command in errors.
        save_config: Whether the trainer keeps the configuration beside its logs.
    """

    def __init__(self, args: ArgsType = None, run: bool = True, prog: str = "stllr", save_config: bool = True) -> None:
        super().__init__(
            SpikingTask,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"prog": prog},
            seed_everything_default=0,
            save_config_callback=SaveConfigCallback if save_config else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,  # the task takes its optimizer as an argument and gives it to the learner
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of this command itself."""
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit, test the best checkpoint (the last weights if no checkpoint was written).",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about arguments that are given from Python, as our own ``main`` does."""
        if args is not None and not isinstance(args, list):
            self.config = parser.parse_object(args)
            self._given = None
            return

        arguments = sys.argv[1:] if args is None else args
        for file in named_files(arguments):
            if problem := problem_of(file):
                self._command(arguments[0]).fail(problem)

        def rule_of(words: list[str]) -> Any:
            config = parser.parse_args(words)
            settings = config.get(config.get("subcommand") or "", config)
            return settings["model"]["init_args"].get("rule")

        self.config = parser.parse_args(whole_rule(arguments, rule_of))
        subcommand = self.config.get("subcommand")
        settings = self.config.get(subcommand, self.config) if subcommand else self.config
        if problem := check_checkpoint(settings.get("ckpt_path"), settings.get("trainer.default_root_dir")):
            self._command(subcommand).fail(problem)
        self._given = copy.deepcopy(settings.get("model")) if settings.get("ckpt_path") else None

    def before_instantiate_classes(self) -> None:
        """Say where a checkpoint's own settings of the model have taken the place of those that were given."""
        given, now = self._given, self._get(self.config, "model")
        if given is not None and now is not None:
            settings = [json.loads(json.dumps(one.as_dict(), default=str)) for one in (now, given)]
            if lines := differences(*settings):
                rank_zero_warn(
                    "A model that comes from a checkpoint has the checkpoint's settings, whatever is given here:\n  "
                    + "\n  ".join(lines)
                )

    def instantiate_classes(self) -> None:
        """Build everything; values that are refused are errors in the arguments, not crashes."""
        try:
            super().instantiate_classes()
        except Exception as error:
            self._tell(error, self.subcommand, "")
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; data that cannot be used and settings that do not fit each other are errors, not crashes."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            self._tell(error, subcommand, f"\nThe place in the code: set {TRACEBACK}=1.")
            raise

    def _tell(self, error: Exception, subcommand: str | None, hint: str) -> None:
        """Exit with a short message, if that is all that the user needs."""
        text = plain_words(error)
        if text is not None:
            self._command(subcommand).fail(text + hint)

    def _command(self, name: str | None) -> Parser:
        """The parser of a subcommand, or the whole command's."""
        found = self._subcommand_parsers.get(name, self.parser) if name else self.parser
        assert isinstance(found, Parser)
        return found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add a rich progress bar unless the user chose another or none."""
        settings = self._get(self.config_init, "trainer", default={})
        callbacks = settings.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if settings.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            kwargs["callbacks"] = [*callbacks, RichProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and keep the result beside the logs.

        Class probabilities [samples, classes] go to ``predictions.pt``. Of optical flow `FlowPictures` makes pictures;
        it is there even if the configuration does not name it.
        """
        if isinstance(self.model, OpticalFlowEstimator):
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            if not any(isinstance(callback, FlowPictures) for callback in callbacks):
                callbacks.append(FlowPictures())
            self.trainer.predict(**(kwargs | {"return_predictions": False}))  # long recordings do not fit into memory
            return
        batches = self.trainer.predict(**kwargs)
        if not batches or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(self.trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = folder / f"predictions{rank}.pt"
        torch.save(torch.cat(batches), path)  # type: ignore[arg-type]
        print(f"Class probabilities: {path}")

    def after_fit(self) -> None:
        """Say where things are, and test the best checkpoint if asked to."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        if self._get(self.config_init, "test_after_fit"):
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        if self.trainer.log_dir:
            rank_zero_info(f"Logs and configuration: {self.trainer.log_dir}")
        if checkpoint:
            rank_zero_info(f"Best checkpoint:        {checkpoint}")
