"""Exchanges between processes in one order, whatever other callbacks read."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.processes import reduce_pending_metrics


class OneOrder(Callback):
    """Has the metrics of an epoch reduced over all processes before any other callback looks at them.

    Lightning reduces them at the first look. A progress bar looks on the first process alone, which then waits for
    the others while these wait for it in the next callback's exchange. Tasks bring this callback with them; it puts
    itself before all others.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go to the front. A new list: Lightning is walking through the old one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [self, *(one for one in callbacks if one is not self)]  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduce what the epoch's steps logged. After validation and tests Lightning itself does so in time."""
        reduce_pending_metrics(trainer)
