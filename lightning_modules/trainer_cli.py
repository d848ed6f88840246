"""``stllr fit``, ``validate``, ``test`` and ``predict``: LightningCLI with this package's classes."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

# Classes that YAML may name without their module are those imported here.
import lightning_modules.callbacks
import lightning_modules.classification
import lightning_modules.data
import lightning_modules.networks
import lightning_modules.step_classification  # noqa: F401
from lightning_modules.base import SpikingTask
from lightning_modules.cli_texts import explain, our_error
from lightning_modules.data import CacheError, DownloadError, EventDataError
from lightning_modules.rule_options import whole_rule


class Parser(LightningArgumentParser):
    """Argument parser whose errors are short and name the key or class that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 and the message."""
        parser: LightningArgumentParser = getattr(ex, "subcommand_parser", None) or self
        keys = [action.dest for action in parser._actions]
        text = explain(message, keys, lightning_modules)
        if not self.exit_on_error:
            raise ArgumentError(None, text) from ex
        command = parser.prog.replace(" [options]", "")
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
            return

        def rule_of(words: list[str]) -> Any:
            config = parser.parse_args(words)
            settings = config.get(config.get("subcommand") or "", config)
            return settings["model"]["init_args"].get("rule")

        self.config = parser.parse_args(whole_rule(sys.argv[1:] if args is None else args, rule_of))

    def instantiate_classes(self) -> None:
        """Build everything; values that our own classes refuse are errors in the arguments, not crashes."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            ours = our_error(error, ("lightning_modules", "stllr_plugin"))
            if ours is None:
                raise
            self._parser(self.subcommand).error(str(ours))

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; data that are missing, damaged or cannot be fetched or kept are errors, not crashes."""
        try:
            super()._run_subcommand(subcommand)
        except (EventDataError, DownloadError, CacheError) as error:
            self._parser(subcommand).error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add a rich progress bar unless the user chose another or none."""
        settings = self._get(self.config_init, "trainer", default={})
        callbacks = settings.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if settings.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            kwargs["callbacks"] = [*callbacks, RichProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and keep the class probabilities [samples, classes] in ``predictions.pt`` beside the logs."""
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
