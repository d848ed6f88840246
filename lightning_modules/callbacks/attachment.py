"""What is trained how, kept with the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.processes import log_folder


class AttachmentReport(Callback):
    """Says at the start of a fit what the learner attached to, and keeps its full report with the logs.

    The one line at the start counts synapses and neurons. The report with every edge and its rule needs one batch,
    since connections show when the network runs. Then it is written into TensorBoard (tab "Text"), or elsewhere into
    the file ``attachment.txt`` in the folder of the logs. Without a logger nothing is written.
    """

    def __init__(self) -> None:
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line at the start."""
        self._written = False
        learner = getattr(pl_module, "learner", None)
        if learner is not None:
            rank_zero_info(repr(learner))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The report, after the first batch."""
        learner = getattr(pl_module, "learner", None)
        if self._written or learner is None or not trainer.loggers:
            return
        self._written = True
        report = str(learner.report())
        folder = log_folder(trainer)  # asks all processes
        if not trainer.is_global_zero:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for board in boards:
            fenced = "\n".join(f"    {line}" for line in report.splitlines())  # a code block in Markdown
            board.experiment.add_text("attachment", fenced, trainer.global_step)
        if not boards and folder is not None:
            path = Path(folder, "attachment.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{report}\n", encoding="utf-8")
