"""Peak memory, samples per second, and a history for plots."""

from __future__ import annotations

import time
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.memory import PeakMemoryMeter


class PeakMemory(Callback):
    """Logs ``peak_memory_mb`` (millions of bytes) once per training epoch, as the peak above the start of training.

    On CUDA these are bytes of torch's allocator; elsewhere it is the resident memory of the process, which
    includes data loading and what the allocator keeps (see :mod:`lightning_modules.memory`). For comparisons between
    algorithms use :func:`lightning_modules.memory.measure_peak_memory`, which starts a new process for each.
    """

    def __init__(self) -> None:
        self._meter: PeakMemoryMeter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the memory before the first batch as zero."""
        self._meter = PeakMemoryMeter(pl_module.device)
        self._meter.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the highest level so far."""
        if self._meter is not None:
            pl_module.log("peak_memory_mb", self._meter.peak() / 1e6, sync_dist=True, reduce_fx="max")


class Throughput(Callback):
    """Logs ``samples_per_second`` of training once per epoch, validation time excluded, summed over processes."""

    def __init__(self) -> None:
        self._samples = 0
        self._seconds = 0.0
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._samples, self._seconds = 0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the watch."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the watch."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds += time.perf_counter() - self._began
        self._samples += _batch_size(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        if self._seconds > 0:
            rate = self._samples / self._seconds
            pl_module.log("samples_per_second", rate, sync_dist=True, reduce_fx="sum")


class History(Callback):
    """Keeps what was logged at the end of each epoch, for plots: ``history["val_accuracy"]`` is a list of floats."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        return self.epochs.get(name, [])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the metrics of this epoch."""
        for name, value in trainer.callback_metrics.items():
            self.epochs.setdefault(name, []).append(float(value))


def _batch_size(batch: Any) -> int:
    while isinstance(batch, (tuple, list)) or is_dataclass(batch):
        batch = getattr(batch, fields(batch)[0].name) if is_dataclass(batch) else batch[0]
    return int(batch.shape[0]) if isinstance(batch, Tensor) else 0
