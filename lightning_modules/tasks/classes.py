"""What both classifiers share: accuracy, the phases of the trainer, the time loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.class_numbers import check_data, check_outputs
from lightning_modules.tasks.in_windows import learn_in_windows

Batch = tuple[Tensor, Tensor, Tensor]

UNLABELLED = -1


class ClassificationTask(SpikingTask):
    """A task whose batches are (frames [B, T, ...], lengths [B], labels) and whose network gives logits at each step.

    Args:
        network: The spiking network; one call maps a frame [B, ...] to logits [B, num_classes].
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`lightning_modules.SpikingTask`.
    """

    def __init__(self, network: nn.Module, num_classes: int, **kwargs: Any) -> None:
        self.num_classes = num_classes
        super().__init__(network, **kwargs)

    @abstractmethod
    def learn_batch(self, batch: Batch, phase: str, metrics: MetricCollection) -> Tensor:
        """Loss of one batch of "train", "val" or "test", logged with the metrics; training happens in "train"."""

    @abstractmethod
    def predict_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits of one batch, the classes in the last dimension."""

    def configure_metrics(self) -> None:
        """Accuracy of training, validation and test, over what has a label."""
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", ignore_index=UNLABELLED)
        metrics = MetricCollection({"accuracy": accuracy})
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def setup(self, stage: str) -> None:
        """Compare the number of classes with the data's."""
        super().setup(stage)
        check_data(self)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of whole sequences [B, T, ...], without a trace left in the network."""
        if lengths is None:
            lengths = torch.full((frames.shape[0],), frames.shape[1], device=frames.device)
        logits = self.predict_batch(frames, lengths)
        self._reset()
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on one batch; returns its loss."""
        return self.learn_batch(batch, "train", self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one validation batch."""
        self.learn_batch(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one test batch."""
        self.learn_batch(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities of one batch, the classes in the last dimension."""
        frames, lengths, *_ = batch
        return self.predict_batch(frames, lengths).softmax(dim=-1)

    def log_batch(self, phase: str, loss: Tensor, metrics: MetricCollection, batch_size: int) -> None:
        """Log the mean loss of ``batch_size`` labels, and the metrics, over the epoch."""
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": batch_size}
        self.log(f"{phase}_loss", loss, sync_dist=True, **options)
        self.log_dict(metrics, **options)

    def play(
        self,
        frames: Tensor,
        valid: Tensor,
        supervised: Sequence[bool],
        loss_at: Callable[[Tensor, int], Tensor],
        heard: Callable[[Tensor, int], None],
        before: Callable[[int], None] = lambda t: None,
    ) -> None:
        """The time loop, after ``begin_sequence``.

        Args:
            frames: [B, T, ...]; as many steps are run as ``supervised`` has.
            valid: Which steps of each sample are no padding, bool [T, B].
            supervised: Which steps have a loss.
            loss_at: The loss of a supervised step, from the network's output and the number of the step.
            heard: Takes the output of each step, detached, and the number of the step.
            before: Is told of each supervised step before it runs; not where steps run in windows.
        """
        last = self.last_supervised(supervised)
        if self.runs_in_windows:
            outputs = learn_in_windows(self, frames[:, : len(supervised)], valid, supervised, loss_at)
            check_outputs(self, outputs[0])
            for t, logits in enumerate(outputs):
                heard(logits, t)
            return
        for t, has_loss in enumerate(supervised):
            self.active = valid[t]
            if has_loss:
                before(t)
            logits = self.network(frames[:, t])
            if t == 0:
                check_outputs(self, logits)
            heard(logits.detach(), t)
            if has_loss:
                self.learn(loss_at(logits, t), last=t in last)
            self.end_step(t)
