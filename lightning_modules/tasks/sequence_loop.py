"""The time loop's bookkeeping: backward passes, updates, learning rates, and what processes do together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn

from lightning_modules.processes import from_all_processes, over_processes, reduce_pending_metrics
from lightning_modules.tasks.states import detach_states, reset_states
from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.signals import SIGNALS


class SequenceLoop(LightningModule):
    """What a task's time loop calls, at its begin and end and at each step. The settings are those of `SpikingTask`."""

    network: nn.Module
    rule: STLLRRule | None
    update_every: int | None
    window: int | None
    lr_interval: Literal["epoch", "step"]
    gradient_clip: float | None

    def __init__(self) -> None:
        super().__init__()
        self.learner: STLLRLearner | None = None
        self.neurons_of_learner: frozenset[str] = frozenset()
        """Names of the neurons whose states the learner resets where it begins a sequence."""
        self.watched = False
        """Whether a callback looks at single time steps; the batch then runs step by step. Callbacks set it."""
        self.active: Tensor | None = None
        """Samples for which the current time step is not padding, shape [B]; set by the time loops for callbacks."""
        self._loss: Tensor | None = None
        self._since_update: Tensor | None = None  # the loss; with "bptt" it holds the graph of these steps
        self._online = False

    @property
    def updates_within(self) -> bool:
        """Whether the weights are updated several times within a batch."""
        return self.update_every is not None

    @property
    def updates_option(self) -> str:
        """The setting that says so, for messages."""
        return f"update_every={self.update_every}"

    def begin_sequence(
        self,
        num_steps: int,
        lengths: Tensor,
        *,
        learning: bool,
        target: Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> None:
        """Reset hidden states and traces for a new batch of sequences.

        Args:
            num_steps: Number of time steps of the padded batch.
            lengths: Valid time steps of each sample, shape [B].
            learning: Whether the weights are updated from this sequence.
            target: Class numbers [B] or values [B, C], for learning signals that are made from the target.
            scale: Weight of one time step in the loss, a number or one value per sample [B]; for these signals too.
        """
        self._reset(by_learner=self.learner is not None and learning)
        if self.learner is not None and learning:
            self.learner.reset(num_steps=num_steps, lengths=lengths)
            if target is not None and self.learner.needs_target:
                self.set_target(target, scale)
        self._begin_loss(learning)

    def _begin_loss(self, learning: bool) -> None:
        """Start the sums of a batch's losses and, where an update begins, of its gradients."""
        self._loss = self._since_update = None
        self._online = learning and not self.automatic_optimization
        if self._online and self.trainer.fit_loop.batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._optimizer().zero_grad()

    def set_target(self, target: Tensor, scale: float | Tensor = 1.0) -> None:
        """Give the learning signals that are made from the target the one of the steps to come.

        Args:
            target: Class numbers [B] or values [B, C].
            scale: Weight of one time step in the loss, a number or one value per sample [B].
        """
        assert self.learner is not None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        loss_scale = 1.0 if scaler is None else scaler.get_scale()
        self.learner.set_target(target, scale, loss_scale=loss_scale / self.trainer.accumulate_grad_batches)

    def learn(self, loss: Tensor, *, last: bool) -> None:
        """Take in the loss of one supervised time step: backward at once, or add to the loss of the sequence.

        Args:
            loss: Scalar loss of this step.
            last: Whether this is the last supervised step before an update (see :meth:`last_supervised`); gradients
                are averaged over processes then.
        """
        if self._online:
            kept = loss if self.rule is None else loss.detach()
            self._since_update = kept if self._since_update is None else self._since_update + kept
        if self._online and self.rule is not None:
            with nullcontext() if last and self._completes_update() else self._no_gradient_sync():
                self.manual_backward(loss / self.trainer.accumulate_grad_batches)
        if self._online:
            loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    @property
    def runs_in_windows(self) -> bool:
        """Whether the batch that has begun is trained on in windows."""
        learner = self.learner
        wanted = self._online and self.window is not None and not self.watched
        return wanted and learner is not None and not SIGNALS[learner.learning_signal].at_each_step

    def last_supervised(self, supervised: Sequence[bool]) -> set[int]:
        """The last supervised step before each update, from which of the T steps are supervised."""
        every = self.update_every or len(supervised)
        updates = {t // every: t for t, one in enumerate(supervised) if one}
        if self.update_every is not None and self.training and self._trainer is not None:
            self._compare_updates(sorted(updates))
        return set(updates.values())

    def _compare_updates(self, updates: list[int]) -> None:
        """Each update averages over all processes: one that has none to make would leave the others waiting."""
        everyone = from_all_processes(updates)
        if any(one != updates for one in everyone):
            raise ValueError(
                f"update_every={self.update_every} in {len(everyone)} processes: the updates of a batch would be "
                f"{' and '.join(str(len(one)) for one in everyone)}, because its sequences differ in length or in "
                "supervised steps. Leave update_every out, supervise all steps of sequences of the same length, or "
                "use one process."
            )

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes, while training; so that each weighs as in the joint batch."""
        return over_processes(self.trainer, value.float(), "mean") if self.training and self._trainer else value

    def end_step(self, t: int) -> None:
        """Update the weights after step ``t`` if the last of ``update_every`` steps is there."""
        if self._online and self.update_every is not None and (t + 1) % self.update_every == 0:
            self._update()

    def end_sequence(self) -> Tensor:
        """Update the weights (online loop, training) and return the loss summed over the supervised steps."""
        assert self._loss is not None, "A sequence needs at least one supervised step."
        loss, self._loss = self._loss, None
        self.active = None
        if self._online:
            self._update()
            if self.lr_interval == "epoch" and self.trainer.is_last_batch:  # before checkpoints, as Lightning does
                self._step_lr_schedulers(plateau=False)
        return loss

    def _update(self) -> None:
        """One optimizer step with the gradients since the last one; nothing where there was no loss."""
        loss, self._since_update = self._since_update, None
        if loss is not None:
            optimizer = self._optimizer()
            if self.rule is None:
                self.manual_backward(loss)
            if not self._completes_update():
                return
            optimizer.step()
            if self.updates_within:
                optimizer.zero_grad()
            if self.lr_interval == "step":
                self._step_lr_schedulers()
        if self.rule is None:
            detach_states(self.network)

    def _completes_update(self) -> bool:
        """Whether this is the last of the batches whose gradients are accumulated for one update (online loop)."""
        done = self.trainer.fit_loop.batch_idx + 1
        return done % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def _reset(self, *, by_learner: bool = False) -> None:
        """Resets hidden states; those of the learner's neurons not, where it does so itself."""
        reset_states(self.network, self.neurons_of_learner if by_learner else ())

    def _optimizer(self) -> Any:
        return self.optimizers()

    def _no_gradient_sync(self) -> Any:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if block is None else block()

    def log(self, name: str, *args: Any, **options: Any) -> None:
        """Lightning's ``log``; what is logged at the end of an epoch is reduced over processes at once.

        Callbacks log there one after the other, and one that reads on the first process alone may stand between them.
        """
        super().log(name, *args, **options)
        if str(self._current_fx_name).endswith("_epoch_end"):
            reduce_pending_metrics(self.trainer)

    # Hooks of the training loop.

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let go of graphs: with "bptt" the states hold that of the sequence. The next batch begins as it needs."""
        detach_states(self.network)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient. Here because both loops pass here, after mixed precision has unscaled the gradients."""
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        if not self.automatic_optimization:  # there Lightning does it
            self.clip_gradients(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        """Step schedulers that wait for a metric in the online loop (Lightning does it in automatic optimisation)."""
        if not self.automatic_optimization and self.lr_interval == "epoch":
            self._step_lr_schedulers(plateau=True)

    def _step_lr_schedulers(self, plateau: bool | None = None) -> None:
        """Step all schedulers, or only those that wait for a metric, or only the others."""
        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, Iterable) else [schedulers]:
            if plateau is not None and plateau != isinstance(scheduler, ReduceLROnPlateau):
                continue
            if isinstance(scheduler, ReduceLROnPlateau):
                metrics: Mapping[str, Tensor] = self.trainer.callback_metrics
                if scheduler.monitor in metrics:
                    scheduler.step(metrics[scheduler.monitor])
            else:
                scheduler.step()
