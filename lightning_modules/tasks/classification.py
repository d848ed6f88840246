"""Classification of event sequences."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.class_numbers import check_data, check_outputs
from lightning_modules.tasks.in_windows import learn_in_windows
from lightning_modules.tasks.step_weights import step_weights, valid_steps
from stllr_plugin.losses import TETLoss

Batch = tuple[Tensor, Tensor, Tensor]


class SpikingClassifier(SpikingTask):
    """Classifies sequences of frames: batches are (frames [B, T, C, H, W], lengths [B], labels [B]).

    The loss is the cross-entropy or the TET loss of each supervised step, averaged over the supervised steps of each
    sample and over the batch. The prediction averages the logits over the same steps unless ``predict_over`` says
    otherwise: a network that was trained on the last steps alone has learned nothing about its output in the first
    ones.

    Everything else (algorithms, loops, states, checkpoints, several processes) is described at
    :class:`lightning_modules.SpikingTask`, which takes all further arguments.

    Args:
        network: The spiking network; one call maps a frame [B, C, H, W] to logits [B, num_classes]. In YAML a
            ``class_path``.
        num_classes: Number of classes.
        predict_over: Steps read for the prediction: "supervised", "all" (padding excluded) or "last".
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        loss: "cross_entropy", or "tet" for :class:`stllr_plugin.losses.TETLoss`.
        tet_phi: The value that "tet" keeps the outputs near. Read by "tet" alone.
        tet_lamb: Weight of that term. Read by "tet" alone.
        **kwargs: Arguments of :class:`lightning_modules.SpikingTask`.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        predict_over: Literal["supervised", "all", "last"] = "supervised",
        label_smoothing: float = 0.0,
        loss: Literal["cross_entropy", "tet"] = "cross_entropy",
        tet_phi: float = 1.0,
        tet_lamb: float = 0.05,
        **kwargs: Any,
    ) -> None:
        if loss not in ("cross_entropy", "tet"):
            raise ValueError(f'loss={loss!r} is not known; use "cross_entropy" or "tet".')
        self.num_classes = num_classes
        self.predict_over = predict_over
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.tet_phi = tet_phi
        self.tet_lamb = tet_lamb
        super().__init__(network, **kwargs)
        self.save_plain_hyperparameters(
            num_classes=num_classes,
            predict_over=predict_over,
            label_smoothing=label_smoothing,
            loss=loss,
            tet_phi=tet_phi,
            tet_lamb=tet_lamb,
            **kwargs,
        )

    def configure_losses(self) -> None:
        """The loss of each sample at one step."""
        smoothing = self.label_smoothing
        self.criterion: nn.Module = (
            TETLoss(self.tet_phi, self.tet_lamb, label_smoothing=smoothing, reduction="none")
            if self.loss == "tet"
            else nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
        )

    def configure_metrics(self) -> None:
        """Accuracy of training, validation and test."""
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(self.num_classes, average="micro")})
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def setup(self, stage: str) -> None:
        """Compare the number of classes with the data's."""
        super().setup(stage)
        check_data(self)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits [B, num_classes] of whole sequences [B, T, C, H, W], without a trace left in the network."""
        if lengths is None:
            lengths = torch.full((frames.shape[0],), frames.shape[1], device=frames.device)
        _, logits = self._run(frames, lengths, None)
        self._reset()
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on one batch; the returned loss is the mean over samples."""
        return self._shared_step(batch, "train", self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one validation batch."""
        self._shared_step(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one test batch."""
        self._shared_step(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities [B, num_classes] of one batch."""
        frames, lengths, *_ = batch
        return self._run(frames, lengths, None)[1].softmax(dim=1)

    def _shared_step(self, batch: Batch, phase: str, metrics: MetricCollection) -> Tensor:
        frames, lengths, labels = batch
        loss, logits = self._run(frames, lengths, labels)
        assert loss is not None
        metrics.update(logits, labels)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": labels.shape[0]}
        self.log(f"{phase}_loss", loss.detach(), prog_bar=True, sync_dist=True, **options)
        self.log_dict(metrics, prog_bar=True, **options)
        return loss

    def _run(self, frames: Tensor, lengths: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The time loop. Returns the loss (None without labels) and the logits of the prediction."""
        num_steps = min(frames.shape[1], int(lengths.max()))  # steps that are padding for every sample are left out
        loss_weights = step_weights(lengths, num_steps, self.supervise_last)
        read_weights = self._read_weights(lengths, num_steps, loss_weights)
        valid = valid_steps(lengths, num_steps)
        supervised = loss_weights.any(dim=1).tolist()
        last = self.last_supervised(supervised)

        learning = labels is not None and self.training
        # A supervised step has the same weight wherever it is.
        self.begin_sequence(num_steps, lengths, learning=learning, target=labels, scale=loss_weights.amax(0))
        prediction = frames.new_zeros(())
        if labels is not None and self.runs_in_windows:
            outputs = learn_in_windows(
                self,
                frames[:, :num_steps],
                valid,
                supervised,
                lambda logits, t: (self.criterion(logits, labels) * loss_weights[t]).mean(),
            )
            check_outputs(self, outputs[0])
            logits = torch.stack(outputs)
            return self.end_sequence(), (read_weights.unsqueeze(2) * logits).sum(0)
        for t in range(num_steps):
            self.active = valid[t]
            logits = self.network(frames[:, t])
            if t == 0:
                check_outputs(self, logits)
            prediction = prediction + read_weights[t].unsqueeze(1) * logits.detach()
            if labels is not None and supervised[t]:
                self.learn((self.criterion(logits, labels) * loss_weights[t]).mean(), last=t in last)
            self.end_step(t)
        return (self.end_sequence() if labels is not None else None), prediction

    def _read_weights(self, lengths: Tensor, num_steps: int, loss_weights: Tensor) -> Tensor:
        if self.predict_over == "supervised":
            return loss_weights
        return step_weights(lengths, num_steps, 1 if self.predict_over == "last" else None)
