"""From a YAML file, overrides and variants of it to runs, each with the settings that it really has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_modules.command.quiet import quiet_loggers
from lightning_modules.command.trainer_cli import STLLRCLI
from lightning_modules.comparison.store import key_of
from lightning_modules.tasks.rules import make_rule

RULE = "model.rule"


@dataclass(frozen=True)
class Variant:
    """One way of training: the experiment with some settings changed.

    Attributes:
        name: Name in tables and files.
        changes: Option to value, such as ``{"model.algorithm": "bptt"}``; fields of the rule are ``model.rule.FIELD``.
        place: Where it stands in a grid: axis to label.
    """

    name: str
    changes: Mapping[str, Any]
    place: Mapping[str, str] = field(default_factory=dict)


class RunCLI(STLLRCLI):
    """Task, data and a quiet trainer of one run, which writes nothing but what ``callbacks`` write.

    Args:
        args: Arguments as for ``stllr fit``, without the subcommand.
        prog: Name of the command in errors.
        callbacks: Further callbacks of the trainer.
        trainer: Settings of the trainer that go before the configuration's.
    """

    def __init__(
        self,
        args: Sequence[str],
        prog: str = "stllr",
        callbacks: Sequence[Callback] = (),
        trainer: Mapping[str, Any] | None = None,
    ) -> None:
        self.more_callbacks = list(callbacks)
        self.trainer_settings = dict(trainer or {})
        with quiet_seeding():
            super().__init__(list(args), run=False, prog=prog, save_config=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configuration's trainer without its checkpoints and logs, on one device."""
        settings = self._get(self.config_init, "trainer", default={})
        given = settings.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        callbacks = [one for one in given if not isinstance(one, ModelCheckpoint)] + self.more_callbacks
        kwargs |= {"logger": False, "devices": 1, "num_nodes": 1, "enable_model_summary": False}
        kwargs |= {"enable_progress_bar": False, "callbacks": callbacks}
        kwargs["enable_checkpointing"] = any(isinstance(one, ModelCheckpoint) for one in callbacks)
        return LightningCLI.instantiate_trainer(self, **{**kwargs, **self.trainer_settings})


class _Parsed(STLLRCLI):
    """Reads a configuration and builds nothing."""

    def __init__(self, args: Sequence[str], prog: str) -> None:
        with quiet_seeding():
            super().__init__(list(args), run=False, prog=prog, save_config=False)

    def instantiate_classes(self) -> None:
        pass


class Experiment:
    """A configuration, of which variants are trained.

    Args:
        args: ``--config FILE`` and overrides, as for ``stllr fit``.
        prog: Name of the command in errors.
    """

    def __init__(self, args: Sequence[str], prog: str = "stllr") -> None:
        self.args = list(args)
        self.prog = prog
        self._described: dict[str, dict[str, Any]] = {}
        self.settings = self._parse(self.args)
        self.task: dict[str, Any] = self.settings["model"]["init_args"]

    def arguments(self, variant: Variant | None = None, seed: int | None = None) -> list[str]:
        """The arguments of one run, as for ``stllr fit``."""
        changes = dict(variant.changes) if variant else {}
        prefix = f"{RULE}."
        fields = {name.removeprefix(prefix): changes.pop(name) for name in list(changes) if name.startswith(prefix)}
        if fields:
            # The whole rule at once: a field by itself would replace a preset that is given by its name.
            rule = changes.pop(RULE, self.task.get("rule"))
            rule = {"preset": rule} if isinstance(rule, str) else dict(rule or {})
            changes[RULE] = {**rule, **fields}
        options = [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()
        ]
        if seed is not None:
            options.append(f"--seed_everything={seed}")
        return [*self.args, *options]

    def describe(self, variant: Variant | None = None) -> dict[str, Any]:
        """All settings of a variant that bear on its results, but for the seed."""
        if variant is None or not variant.changes:
            return self.settings
        arguments = self.arguments(variant)
        known = json.dumps(arguments)
        if known not in self._described:
            self._described[known] = self._parse(arguments)
        return self._described[known]

    def key(self, variant: Variant, seed: int, **more: Any) -> str:
        """Key of a run in the store."""
        return key_of({"settings": self.describe(variant), "seed": seed, **more})

    def check(self, variant: Variant) -> None:
        """Find errors of a variant before anything runs.

        Raises:
            ValueError: If its rule is not valid.
            SystemExit: If an option is not known.
        """
        task = self.describe(variant)["model"]["init_args"]
        if task["algorithm"] == "stllr":
            make_rule(task.get("rule"))

    def build(
        self,
        variant: Variant | None = None,
        seed: int | None = None,
        callbacks: Sequence[Callback] = (),
        trainer: Mapping[str, Any] | None = None,
    ) -> RunCLI:
        """Task, data and trainer of one run."""
        return RunCLI(self.arguments(variant, seed), self.prog, callbacks, trainer)

    def _parse(self, args: Sequence[str]) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps(_Parsed(args, self.prog).config.as_dict(), default=str))
        for name in ("config", "seed_everything", "test_after_fit", "ckpt_path"):
            settings.pop(name, None)
        for name in ("default_root_dir", "logger", "enable_progress_bar", "enable_model_summary"):
            settings["trainer"].pop(name, None)
        return settings


def choosing(settings: Mapping[str, Any]) -> tuple[str, str]:
    """What chooses the epoch: metric, and "min" or "max"; as the configuration's first checkpoint callback says."""
    callbacks = settings["trainer"].get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        arguments = callback.get("init_args") or {}
        if callback.get("class_path", "").endswith(ModelCheckpoint.__name__) and arguments.get("monitor"):
            return arguments["monitor"], arguments.get("mode", "min")
    return "val_accuracy", "max"


def quiet_seeding() -> AbstractContextManager[None]:
    """Keep "Seed set to 0" out of the output."""
    return quiet_loggers("lightning.fabric", "lightning.pytorch", "lightning.fabric.utilities.seed")
