"""Optical flow from events, over recordings that are longer than a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_modules.flow.batch import FlowBatch
from lightning_modules.flow.fields import Mask
from lightning_modules.flow.metrics import flow_metrics
from lightning_modules.processes import over_processes
from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.states import keep_states, reset_samples, reset_states

_METRICS = ("metrics", "dense_metrics", "sharpness")
"""What may be measured in a phase, always in this order."""


class OpticalFlowEstimator(SpikingTask):
    """Estimates the optical flow of consecutive windows of events: batches are :class:`FlowBatch`.

    **Supervision.** The network runs once for each time step of a window; the flow of the window is what it gives at
    the last one. The loss is taken at the last ``supervise_last`` time steps of every window, and averaged over them
    and over all windows of the batch. Samples whose recording is over (``present``) neither learn nor count; a batch,
    or with ``update_every_window`` a window, in which nobody is present updates nothing.

    **States** are those of a recording, not of a batch: membranes, recurrent spikes and traces stay from one window and
    one batch to the next, without a graph between batches. Where a sample begins a new recording (``new_recording``)
    its states and traces are reset and those of the other samples stay. Every epoch, every validation, test and
    prediction begins at rest. Validation between two training batches, and :meth:`forward`, leave the states of
    training as they were. They are not part of a checkpoint: a run that resumes within an epoch begins with states at
    rest.

    **Memory.** With "stllr", "ottt" and "sltt" it depends on neither the number of windows of a batch nor their time
    steps: every supervised time step has its own backward pass. "bptt" goes back through all windows of a batch and
    keeps the graph of all of them.

    **Metrics** (``train_``, ``val_``, ``test_``), where the data have what they need: ``aee`` (mean endpoint error in
    pixels per window), ``aee_zero`` (that of a flow that is zero everywhere), ``aee_ratio`` (the first divided by the
    second: below 1 something was learned) and outliers, from true flow; ``fwl`` and ``rsat`` from single events, not
    in training. See :mod:`lightning_modules.flow.metrics`. Where ``metric_mask`` leaves pixels with true flow out,
    validation and test give the same over all of them as ``val_dense_aee``, ``val_dense_aee_ratio``, ...

    Everything else (algorithms, learning signals, checkpoints, several processes) is described at
    :class:`lightning_modules.SpikingTask`, which takes all further arguments.

    Args:
        network: The spiking network; one call maps a time step's counts [B, 2, H, W] to a list of flows [B, 2, h, w],
            from the coarsest scale to the full resolution, in pixels per window. In YAML a ``class_path``.
        loss: Gives one value per sample [B] for the flows of all scales and a :class:`FlowWindow`. In YAML a
            ``class_path``, such as ``EndpointErrorLoss``.
        supervise_last: Number of last time steps of each window with a loss.
        update_every_window: Update the weights after every window; once per batch if not. "bptt" then goes back through
            one window only.
        metric_mask: Pixels on which flow is compared with the true one: "valid" (where the true flow is known),
            "events" (where there is an event) or "both".
        **kwargs: Arguments of :class:`lightning_modules.SpikingTask`.

    Raises:
        ValueError: If an argument is not valid, or is one of ``SpikingTask`` that means nothing here.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        supervise_last: int = 1,
        update_every_window: bool = False,
        metric_mask: Mask = "valid",
        **kwargs: Any,
    ) -> None:
        algorithm = kwargs.get("algorithm", "stllr")
        if supervise_last < 1:
            raise ValueError(f"supervise_last={supervise_last}: at least the last time step of a window has a loss.")
        if kwargs.get("update_every") is not None:
            raise ValueError("update_every counts time steps; optical flow updates by windows: update_every_window.")
        if kwargs.get("window") is not None:
            raise ValueError(f"window={kwargs['window']} runs time steps at once, optical flow runs one at a time.")
        if algorithm == "tess" or kwargs.get("learning_signal") not in (None, "bp"):
            what = "tess" if algorithm == "tess" else kwargs["learning_signal"]
            raise ValueError(
                f"{what!r} feeds the error of a few classes back to each layer; a flow has two values per pixel. Use "
                'algorithm "stllr", "ottt" or "sltt" with learning_signal "bp", or "bptt".'
            )
        if kwargs.get("loop", "online") != "online" and algorithm != "bptt":
            raise ValueError(
                'loop="automatic" would keep the graph of all windows of a batch; use "online" with '
                f'"{algorithm}". Only "bptt" goes back through the batch.'
            )
        self.update_every_window = update_every_window
        self.metric_mask: Mask = metric_mask
        super().__init__(network, supervise_last=supervise_last, **kwargs)
        self.loss = loss
        self._running = False  # whether the states are those of the windows before
        self._back_to_training: Callable[[], None] | None = None
        self.save_plain_hyperparameters(
            supervise_last=supervise_last, update_every_window=update_every_window, metric_mask=metric_mask, **kwargs
        )

    def configure_metrics(self) -> None:
        """Against true flow in each phase; sharpness of the warped events in validation and test."""
        for phase in ("train", "val", "test"):
            self.add_module(f"{phase}_metrics", flow_metrics(self.metric_mask, events=False, prefix=f"{phase}_"))
            if phase != "train":
                self.add_module(f"{phase}_sharpness", flow_metrics(truth=False, prefix=f"{phase}_"))
            if phase != "train" and self.metric_mask != "valid":
                self.add_module(f"{phase}_dense_metrics", flow_metrics(events=False, prefix=f"{phase}_dense_"))

    @property
    def updates_within(self) -> bool:
        """Whether the weights are updated after each window of a batch."""
        return self.update_every_window

    @property
    def updates_option(self) -> str:
        """The setting that says so, for messages."""
        return "update_every_window"

    # Phases of the trainer.

    def forward(self, batch: FlowBatch) -> Tensor:
        """Flows [B, W, 2, H, W] of a batch whose recordings begin at rest, without a trace left in the network."""
        back = keep_states(self.network)
        reset_states(self.network)
        with torch.no_grad():
            flows = self._flows(batch)
        back()
        return flows

    def training_step(self, batch: FlowBatch, batch_idx: int) -> Tensor | None:
        """Train on one batch; returns what was learned from, None where nobody is present."""
        return self._shared_step(batch, "train")

    def validation_step(self, batch: FlowBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics of one validation batch."""
        self._shared_step(batch, "val")

    def test_step(self, batch: FlowBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics of one test batch."""
        self._shared_step(batch, "test")

    def predict_step(self, batch: FlowBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Flows [B, W, 2, H, W] of the windows of one batch, in pixels per window."""
        self._begin_batch(batch, learning=False)
        return self._flows(batch)

    def _flows(self, batch: FlowBatch) -> Tensor:
        flows = []
        for w in range(batch.num_windows):
            for step in batch.counts[:, w].unbind(1):
                outputs = self.network(step)
            flows.append(outputs[-1].detach())
        return torch.stack(flows, dim=1)

    def _shared_step(self, batch: FlowBatch, phase: str) -> Tensor | None:
        metrics = list(self._metrics_for(batch, phase))
        loss, mean = self._run(batch, metrics)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True}
        if loss is not None:
            counted = max(int(batch.present.sum()), 1)
            self.log(f"{phase}_loss", mean, prog_bar=True, sync_dist=True, batch_size=counted, **options)
        return loss

    def _metrics_for(self, batch: FlowBatch, phase: str) -> Iterator[MetricCollection]:
        """The metrics for which a batch has what they need."""
        if batch.flow is not None:
            yield getattr(self, f"{phase}_metrics")
            if hasattr(self, f"{phase}_dense_metrics"):
                yield getattr(self, f"{phase}_dense_metrics")
        if batch.events is not None and phase != "train":
            yield getattr(self, f"{phase}_sharpness")

    def _run(self, batch: FlowBatch, metrics: Sequence[MetricCollection]) -> tuple[Tensor | None, Tensor]:
        """The time loop. Returns what was learned from, None where there was nothing, and the windows' mean loss."""
        learning, num_steps = self.training, batch.counts.shape[2]
        first = max(num_steps - (self.supervise_last or 1), 0)
        together = self.trainer.world_size > 1  # processes exchange gradients: all of them go backward, or none
        self._begin_batch(batch, learning)
        present = batch.present.sum().clamp(min=1)
        mean = present.new_zeros((), dtype=torch.float32)
        for w in range(batch.num_windows):
            window = batch.window(w)
            self.active = window.present
            if self.learner is not None and learning:
                self.learner.extend(num_steps)
            learns = together or bool(window.present.any())
            share = window.present.sum().clamp(min=1) if self.update_every_window else present
            for t, step in enumerate(window.counts.unbind(1)):
                flows = self.network(step)
                if learns and t >= first:
                    total = self.loss(flows, window).sum() / (num_steps - first)
                    mean += total.detach() / present
                    ends_update = self.update_every_window or w == batch.num_windows - 1
                    self.learn(total / share, last=ends_update and t == num_steps - 1)
            for collection in metrics:
                collection.update(flows[-1].detach(), window)
            if self._online and self.update_every_window:
                self._update()
        if self._loss is None:
            self._loss = batch.counts.new_zeros(())
            self.end_sequence()
            return None, mean
        return self.end_sequence(), mean

    # States.

    def _begin_batch(self, batch: FlowBatch, learning: bool) -> None:
        """Reset what begins anew: everything, or the samples that begin a new recording."""
        fresh = not self._running or bool(batch.new_recording.all())
        learner = self.learner if learning else None
        if fresh:
            self._reset(by_learner=learner is not None)
            if learner is not None:
                learner.reset(num_steps=batch.counts.shape[2])
        elif bool(batch.new_recording.any()):
            reset_samples(self.network, batch.new_recording)
            if learner is not None:
                learner.reset(batch.new_recording)
        self._running = True
        self._begin_loss(learning)

    def _begin_at_rest(self) -> None:
        self._running = False

    def on_train_epoch_start(self) -> None:
        """Every epoch begins at rest."""
        self._begin_at_rest()

    def on_validation_start(self) -> None:
        """Put the states of training aside."""
        running, back = self._running, keep_states(self.network)

        def back_to_training() -> None:
            back()
            self._running = running

        self._back_to_training = back_to_training
        self._begin_at_rest()

    def on_validation_end(self) -> None:
        """Go on where training was."""
        if self._back_to_training is not None:
            self._back_to_training()
            self._back_to_training = None

    def on_test_start(self) -> None:
        """Recordings begin at rest."""
        self._begin_at_rest()

    def on_predict_start(self) -> None:
        """Recordings begin at rest."""
        self._begin_at_rest()

    def teardown(self, stage: str) -> None:
        """Detach the learner and leave nothing behind in the network."""
        super().teardown(stage)
        self._begin_at_rest()

    # Metrics, logged when the epoch is over: the ratio is no mean over batches, and recordings with true flow may all
    # lie with one process, while an exchange needs them all.

    def on_train_epoch_end(self) -> None:
        """Log the metrics; step schedulers that wait for one."""
        self._log_metrics("train")
        super().on_train_epoch_end()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def _log_metrics(self, phase: str) -> None:
        names = [name for kind in _METRICS if hasattr(self, name := f"{phase}_{kind}")]
        collections: list[MetricCollection] = [getattr(self, name) for name in names]
        updated = [next(iter(one.values())).update_called for one in collections]
        known = over_processes(self.trainer, torch.tensor(updated, dtype=torch.float32, device=self.device)) > 0
        for collection, anywhere in zip(collections, known.tolist(), strict=True):
            if not anywhere:
                continue
            values = collection.compute()
            prefix = collection.prefix
            if f"{prefix}aee" in values:
                values[f"{prefix}aee_ratio"] = values[f"{prefix}aee"] / values[f"{prefix}aee_zero"]
            collection.reset()
            for name, value in values.items():  # the same in all processes; to say so spares Lightning's warning
                self.log(name, value, prog_bar=name == f"{phase}_aee_ratio", sync_dist=True)
