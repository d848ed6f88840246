"""Trainer options that Lightning keeps for automatic optimisation, made available to the online loop."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ManualOptions(Callback):
    """Lets ``Trainer(accumulate_grad_batches=..., gradient_clip_val=...)`` pass with manual optimisation.

    Lightning refuses both there, since nobody but the module could heed them. A module that does heed them returns
    this callback from ``configure_callbacks``, which runs before Lightning looks. The options are hidden at once, and
    back in place before training is set up.

    Args:
        trainer: The trainer of the fit that is about to start.
    """

    _HIDDEN = {"accumulate_grad_batches": 1, "gradient_clip_val": None}

    def __init__(self, trainer: Trainer) -> None:
        self._options: dict[str, Any] = {name: getattr(trainer, name) for name in self._HIDDEN}
        for name, value in self._HIDDEN.items():
            setattr(trainer, name, value)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the options back; Lightning has looked."""
        self._give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the options back, should something have failed before ``setup``."""
        self._give_back(trainer)

    def _give_back(self, trainer: Trainer) -> None:
        for name, value in self._options.items():
            setattr(trainer, name, value)
        self._options.clear()
