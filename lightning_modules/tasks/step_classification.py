"""Classification of every time step of a sequence, such as the segments of an electrocardiogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.class_numbers import check_data, check_outputs
from lightning_modules.tasks.in_windows import learn_in_windows
from lightning_modules.tasks.step_weights import step_weights, valid_steps

Batch = tuple[Tensor, Tensor, Tensor]

UNLABELLED = -1


class SpikingStepClassifier(SpikingTask):
    """Names the class of each time step: batches are (frames [B, T, ...], lengths [B], labels [B, T]).

    A label of -1 marks a step without one. Such steps, padding, and with ``supervise_last`` all but the last steps of a
    sample carry no loss and are not counted. The loss is the cross-entropy, averaged over the labelled steps of the
    whole batch, so that each of them weighs the same. The accuracy is the share of all labelled steps that are named
    right; the prediction of a step is made from that step's output alone.

    Everything else (algorithms, learning signals, updates within a sequence, states, checkpoints, several processes) is
    described at :class:`lightning_modules.SpikingTask`, which takes all further arguments. Signals that are made
    from the target get the one of each step.

    Args:
        network: The spiking network; one call maps a frame [B, ...] to logits [B, num_classes]. In YAML a
            ``class_path``.
        num_classes: Number of classes.
        skip_first: The first so many steps of each sample are neither trained nor counted: the network's states are
            still those of the start.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        **kwargs: Arguments of :class:`lightning_modules.SpikingTask`.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        skip_first: int = 0,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if skip_first < 0:
            raise ValueError(f"skip_first must not be negative, got {skip_first}.")
        self.num_classes = num_classes
        self.skip_first = skip_first
        self.label_smoothing = label_smoothing
        super().__init__(network, **kwargs)
        self.save_plain_hyperparameters(
            num_classes=num_classes, skip_first=skip_first, label_smoothing=label_smoothing, **kwargs
        )

    def configure_losses(self) -> None:
        """The loss of each sample at one step; 0 where it has no label."""
        self.criterion = nn.CrossEntropyLoss(
            reduction="none", ignore_index=UNLABELLED, label_smoothing=self.label_smoothing
        )

    def configure_metrics(self) -> None:
        """Accuracy of training, validation and test, over labelled steps."""
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
        """Logits [B, T, num_classes] of whole sequences [B, T, ...], without a trace left in the network."""
        if lengths is None:
            lengths = torch.full((frames.shape[0],), frames.shape[1], device=frames.device)
        _, logits = self._run(frames, lengths, None)
        self._reset()
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on one batch; the returned loss is the mean over labelled steps."""
        return self._shared_step(batch, "train", self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one validation batch."""
        self._shared_step(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one test batch."""
        self._shared_step(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities [B, T, num_classes] of one batch."""
        frames, lengths, *_ = batch
        return self._run(frames, lengths, None)[1].softmax(dim=2)

    def _shared_step(self, batch: Batch, phase: str, metrics: MetricCollection) -> Tensor:
        frames, lengths, labels = batch
        labels = self._supervised_labels(lengths, labels)
        known = (labels != UNLABELLED).sum()
        total = self.mean_over_processes(known)
        loss, logits = self._run(frames, lengths, labels, total)
        assert loss is not None
        metrics.update(logits.flatten(0, 1), labels[:, : logits.shape[1]].flatten())
        counted = int(known)
        own = loss.detach() * (total / known)  # the mean over the labels of this process
        options: dict[str, Any] = {"on_step": False, "on_epoch": True}
        self.log(f"{phase}_loss", own, prog_bar=True, sync_dist=True, batch_size=counted, **options)
        self.log_dict(metrics, prog_bar=True, batch_size=counted, **options)
        return loss

    def _supervised_labels(self, lengths: Tensor, labels: Tensor) -> Tensor:
        """The labels [B, T], with -1 at every step that shall not count."""
        num_steps = labels.shape[1]
        counts = step_weights(lengths, num_steps, self.supervise_last).t() > 0
        counts[:, : self.skip_first] = False
        return labels.masked_fill(~counts, UNLABELLED)

    def _run(
        self, frames: Tensor, lengths: Tensor, labels: Tensor | None, total: Tensor | float = 1.0
    ) -> tuple[Tensor | None, Tensor]:
        """The time loop. Returns the loss (None without labels), divided by ``total``, and the logits of each step."""
        num_steps = min(frames.shape[1], int(lengths.max()))  # steps that are padding for every sample are left out
        valid = valid_steps(lengths, num_steps)
        learning = labels is not None and self.training
        self.begin_sequence(num_steps, lengths, learning=learning)
        labelled = torch.zeros_like(valid) if labels is None else labels[:, :num_steps].t() != UNLABELLED
        supervised = labelled.any(dim=1).tolist()
        if labels is not None and not any(supervised):
            raise ValueError(
                "A batch has no label at any step that counts; look at its labels, lengths and skip_first."
            )
        last = self.last_supervised(supervised)
        weigh = frames.shape[0] / total  # target signals are means over the batch
        wants_target = learning and self.learner is not None and self.learner.needs_target
        outputs: list[Tensor] = []
        if labels is not None and self.runs_in_windows:
            outputs = learn_in_windows(
                self,
                frames[:, :num_steps],
                valid,
                supervised,
                lambda logits, t: self.criterion(logits, labels[:, t]).sum() / total,
            )
            return self.end_sequence(), torch.stack(outputs, dim=1)
        for t in range(num_steps):
            self.active = valid[t]
            if wants_target and supervised[t]:
                assert labels is not None
                self.set_target(labels[:, t].clamp(min=0), labelled[t] * weigh)
            logits = self.network(frames[:, t])
            if t == 0:
                check_outputs(self, logits)
            outputs.append(logits.detach())
            if labels is not None and supervised[t]:
                self.learn(self.criterion(logits, labels[:, t]).sum() / total, last=t in last)
            self.end_step(t)
        return (self.end_sequence() if labels is not None else None), torch.stack(outputs, dim=1)
