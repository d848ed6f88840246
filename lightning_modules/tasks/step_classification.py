"""Classification of every time step of a sequence, such as the segments of an electrocardiogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_modules.tasks.classes import UNLABELLED, Batch, ClassificationTask
from lightning_modules.tasks.step_weights import step_weights, valid_steps


class SpikingStepClassifier(ClassificationTask):
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
        self.skip_first = skip_first
        self.label_smoothing = label_smoothing
        super().__init__(network, num_classes, **kwargs)
        self.save_plain_hyperparameters(
            num_classes=num_classes, skip_first=skip_first, label_smoothing=label_smoothing, **kwargs
        )

    def configure_losses(self) -> None:
        """The loss of each sample at one step; 0 where it has no label."""
        self.criterion = nn.CrossEntropyLoss(
            reduction="none", ignore_index=UNLABELLED, label_smoothing=self.label_smoothing
        )

    def predict_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, T, num_classes]."""
        return self._run(frames, lengths, None)[1]

    def learn_batch(self, batch: Batch, phase: str, metrics: MetricCollection) -> Tensor:
        """Loss of one batch, the mean over labelled steps."""
        frames, lengths, labels = batch
        labels = self._supervised_labels(lengths, labels)
        known = (labels != UNLABELLED).sum()
        total = self.mean_over_processes(known)
        loss, logits = self._run(frames, lengths, labels, total)
        assert loss is not None
        metrics.update(logits.flatten(0, 1), labels[:, : logits.shape[1]].flatten())
        own = loss.detach() * (total / known)  # the mean over the labels of this process
        self.log_batch(phase, own, metrics, int(known))
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
        """One batch. Returns the loss (None without labels), divided by ``total``, and the logits of each step."""
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
        weigh = frames.shape[0] / total  # target signals are means over the batch
        wants_target = learning and self.learner is not None and self.learner.needs_target
        outputs: list[Tensor] = []

        def loss_at(logits: Tensor, t: int) -> Tensor:
            assert labels is not None
            loss: Tensor = self.criterion(logits, labels[:, t]).sum() / total
            return loss

        def before(t: int) -> None:
            if wants_target:
                assert labels is not None
                self.set_target(labels[:, t].clamp(min=0), labelled[t] * weigh)

        self.play(frames, valid, supervised, loss_at, lambda logits, t: outputs.append(logits), before)
        return (self.end_sequence() if labels is not None else None), torch.stack(outputs, dim=1)
