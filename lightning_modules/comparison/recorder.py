"""A callback that keeps what each epoch gave, and tests as it goes."""

from __future__ import annotations

import contextlib
import itertools
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.tasks.base import SpikingTask
from stllr_plugin.signals import SIGNALS

Epoch = dict[str, float]


class Recorder(Callback):
    """Keeps the metrics of every epoch and the test accuracy, in the checkpoint as well.

    The network is tested at the end of an epoch if it is the last one, or the best so far by the metric that chooses
    the epoch, or always. Testing changes nothing of the training: no random number is drawn, no state is left.

    Args:
        monitor: The metric that chooses the epoch.
        mode: "min" or "max".
        every_epoch: Test after each epoch.
    """

    def __init__(self, monitor: str, mode: str, every_epoch: bool = True) -> None:
        self.monitor = monitor
        self.mode = mode
        self.every_epoch = every_epoch
        self.epochs: list[Epoch] = []
        self.chosen: int | None = None
        self.order = 0
        self.edges: list[dict[str, Any]] | None = None
        self.signal = "bp"
        self.matrices = 0
        self._began = 0.0
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        names = ("epochs", "chosen", "order", "edges", "signal", "matrices")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the watch."""
        self._began = time.perf_counter()
        self._validated = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation time is not training time."""
        self._spent = time.perf_counter() - self._began

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has fresh validation metrics."""
        self._validated = not trainer.sanity_checking

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the samples of this batch to the fingerprint of the order."""
        frames, _, labels = batch
        summary = torch.cat((labels.flatten().double(), frames.flatten(1).sum(1, dtype=torch.float64))).cpu()
        self.order = zlib.crc32(summary.numpy().tobytes(), self.order)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep which synapse learned by which rule."""
        learner = getattr(pl_module, "learner", None)
        if self.edges is None and learner is not None:
            report = learner.report()
            self.signal = str(report.settings.get("learning_signal", "bp"))
            if SIGNALS[self.signal].direct:
                self.matrices = sum(matrix.numel() for matrix in learner.feedback.values())
            self.edges = [asdict(edge) for edge in report.edges]
            for edge in self.edges:  # plain data alone may stand in a checkpoint
                edge["rule"]["psi"] = str(edge["rule"]["psi"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics, and test."""
        seconds = self._spent if self._validated else time.perf_counter() - self._began
        kept = (
            "train_loss",
            "train_accuracy",
            *(("val_loss", "val_accuracy", self.monitor) if self._validated else ()),
        )
        metrics = {name: float(trainer.callback_metrics[name]) for name in kept if name in trainer.callback_metrics}
        number = len(self.epochs)
        if self._better(metrics):
            self.chosen = number
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        if self.every_epoch or last or self.chosen == number:
            metrics |= self._test(trainer, pl_module)
        self.epochs.append({"seconds": seconds, **metrics})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test the last epoch if nothing said beforehand that it would be the last."""
        if self.epochs and "test_accuracy" not in self.epochs[-1]:
            self.epochs[-1] |= self._test(trainer, pl_module)

    def _better(self, metrics: Epoch) -> bool:
        if self.monitor not in metrics:
            return False
        if self.chosen is None:
            return True
        new, old = metrics[self.monitor], self.epochs[self.chosen][self.monitor]
        return new < old if self.mode == "min" else new > old

    def _test(self, trainer: Trainer, task: LightningModule) -> Epoch:
        assert isinstance(task, SpikingTask)
        collection: Any = task.test_metrics
        collection.reset()
        training = task.training
        with (
            _silent(task),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            trainer.precision_plugin.forward_context(),
        ):
            task.eval()
            for index, batch in enumerate(test_batches(trainer)):
                task.test_step(trainer.strategy.batch_to_device(batch, task.device), index)
                task.on_test_batch_end(None, batch, index)
        task.train(training)
        found = {name: float(value) for name, value in collection.compute().items()}
        collection.reset()
        return found


def test_batches(trainer: Trainer) -> Iterator[Any]:
    """The test batches that the trainer's limit lets through."""
    loader = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
    limit = trainer.limit_test_batches
    return itertools.islice(loader, limit if isinstance(limit, int) else round(limit * len(loader)))


@contextlib.contextmanager
def _silent(task: Any) -> Iterator[None]:
    """The task logs nothing: the trainer's logs are those of the training."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    object.__setattr__(task, "log", nothing)
    object.__setattr__(task, "log_dict", nothing)
    try:
        yield
    finally:
        object.__delattr__(task, "log")
        object.__delattr__(task, "log_dict")
