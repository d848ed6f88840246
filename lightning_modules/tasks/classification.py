"""Classification of event sequences."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_modules.tasks.classes import Batch, ClassificationTask
from lightning_modules.tasks.step_weights import step_weights, valid_steps
from stllr_plugin.losses import TETLoss


class SpikingClassifier(ClassificationTask):
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
        self.predict_over = predict_over
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.tet_phi = tet_phi
        self.tet_lamb = tet_lamb
        super().__init__(network, num_classes, **kwargs)
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

    def predict_batch(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, num_classes] of the prediction."""
        return self._run(frames, lengths, None)[1]

    def learn_batch(self, batch: Batch, phase: str, metrics: MetricCollection) -> Tensor:
        """Loss of one batch, the mean over samples."""
        frames, lengths, labels = batch
        loss, logits = self._run(frames, lengths, labels)
        assert loss is not None
        metrics.update(logits, labels)
        self.log_batch(phase, loss.detach(), metrics, labels.shape[0])
        return loss

    def _run(self, frames: Tensor, lengths: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """One batch. Returns the loss (None without labels) and the logits of the prediction."""
        num_steps = min(frames.shape[1], int(lengths.max()))  # steps that are padding for every sample are left out
        loss_weights = step_weights(lengths, num_steps, self.supervise_last)
        read_weights = self._read_weights(lengths, num_steps, loss_weights)
        supervised = loss_weights.any(dim=1).tolist() if labels is not None else [False] * num_steps
        # A supervised step has the same weight wherever it is.
        learning = labels is not None and self.training
        self.begin_sequence(num_steps, lengths, learning=learning, target=labels, scale=loss_weights.amax(0))
        prediction = frames.new_zeros(())

        def loss_at(logits: Tensor, t: int) -> Tensor:
            loss: Tensor = (self.criterion(logits, labels) * loss_weights[t]).mean()
            return loss

        def heard(logits: Tensor, t: int) -> None:
            nonlocal prediction
            prediction = prediction + read_weights[t].unsqueeze(1) * logits

        self.play(frames, valid_steps(lengths, num_steps), supervised, loss_at, heard)
        return (self.end_sequence() if labels is not None else None), prediction

    def _read_weights(self, lengths: Tensor, num_steps: int, loss_weights: Tensor) -> Tensor:
        if self.predict_over == "supervised":
            return loss_weights
        return step_weights(lengths, num_steps, 1 if self.predict_over == "last" else None)
