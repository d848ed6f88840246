"""What every task shares: the learning algorithm, the time loop's bookkeeping and the hidden states.

A task subclasses :class:`SpikingTask`, fills in the phases ``configure_losses`` and ``configure_metrics``, and
writes its time loop once, for training and evaluation alike::

    self.begin_sequence(num_steps, lengths, learning=...)
    for t in range(num_steps):
        output = self.network(frames[:, t])
        ...
        self.learn(loss_of_this_step, last=...)       # only at supervised steps
        self.end_step(t)
    return self.end_sequence()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.callbacks import (
    AttachmentReport,
    FiringRates,
    ManualOptions,
    OneOrder,
    PeakMemory,
    ResumeRandomness,
    Throughput,
)
from lightning_modules.processes import from_all_processes, over_processes, reduce_pending_metrics
from lightning_modules.tasks.rules import learning_rules
from lightning_modules.tasks.states import detach_states, hidden_buffer_names, reset_states
from stllr_plugin import STLLRLearner, STLLRRule

Algorithm = Literal["stllr", "ottt", "sltt", "tess", "bptt"]
Loop = Literal["online", "automatic"]
LearningSignal = Literal["bp", "dfa", "sign_dfa", "drtp", "local", "local_random", "tess"]


class SpikingTask(LightningModule):
    """Base of the tasks: trains a network whose ``forward`` is one time step.

    **Algorithms.** "stllr" trains with S-TLLR (settings in ``rule``). "ottt" and "sltt" are special cases of the
    same rule and run through the same learner; "ottt" takes the leak of each neuron layer as its ``lambda_pre``. "tess"
    is the rule with a fixed classifier per layer as its learning signal.
    "bptt" is ordinary backpropagation through time on the same network, without a learner.

    **Loops.** "online" calls ``backward`` in each supervised step and updates the weights once per batch; memory
    does not grow with the number of time steps (manual optimisation in Lightning's terms). "automatic" sums the
    loss over the steps and calls ``backward`` once at the end (automatic optimisation); the graph of the supervised
    steps is kept. Both give the same gradients, and heed the trainer's ``accumulate_grad_batches``,
    ``gradient_clip_val`` and ``precision``. "bptt" always uses "automatic".

    **Updates within a sequence.** With ``update_every=n`` the weights are updated after every n time steps and at the
    end, while membranes and traces go on: an online rule then learns before a long sequence is over. "bptt" becomes
    truncated backpropagation through time with windows of n steps, whose memory is that of one window. Windows without
    a loss update nothing. ``trainer.global_step`` counts every update.

    **Hidden states** are reset at the start and end of every batch of training, validation, testing and prediction (the
    sanity check included), those of this network only.

    **What is trained how** is logged after the first training batch: the learner's report with every connection and
    rule.

    **Checkpoints.** The learner is the optimizer that Lightning sees, so its state is saved and restored with the
    rest and ``trainer.global_step`` counts one per optimizer step in every mode.

    **Several processes (DDP).** Gradients are averaged once per optimizer step, in the backward of the last
    supervised step. The buffers that hold membranes are put on DDP's ignore list in :meth:`setup`: each process has
    sequences of its own, and broadcasting rank 0's states would corrupt the others'. Nothing has to be set on the
    strategy.

    Args:
        network: The spiking network; one call is one time step. In YAML a ``class_path``.
        algorithm: "stllr", "ottt", "sltt", "tess" or "bptt".
        rule: S-TLLR settings: the name of a preset, a rule, or a dictionary of its fields, in which ``preset`` may name
            the preset to start from, e.g. ``{preset: dvs_gesture, alpha_post: -0.2}``. Read by "stllr" alone, so
            that the algorithm can be changed by itself.
        layer_rules: Other rules for some layers: name pattern to rule, given as for ``rule`` and read by "stllr" alone.
        learning_signal: How hidden layers learn of the error: "bp" (through the layers, same time step), "dfa" or
            "sign_dfa" (fixed random feedback), "drtp" (a random projection of the target), "local" or "local_random" (a
            trained or a random classifier per layer), "tess" (a classifier of square waves). If left out, as the rule
            says, which is "bp" unless it comes with another.
        feedback_seed: Seed of the random feedback. All processes need the same.
        output: Name of the module whose output the loss sees; needed with all signals but "bp" if it is not the last
            one.
        exclude: Names of modules that the learner shall leave alone.
        supervise_last: Number of last time steps with a loss, from each sample's own end; all steps if left out.
        update_every: Update the weights after every so many time steps; once per batch if left out. Needs the loop
            "online", or "bptt".
        loop: "online" or "automatic".
        window: Train on so many time steps at once, layer by layer, with the same gradients (the learner's fast path,
            see ``STLLRLearner.run``); step by step if left out. Memory grows with the window. Networks and signals
            that do not allow it run step by step; the learner's report says why. Not read by "bptt".
        products: "bfloat16" multiplies what goes into the weights' gradients in bfloat16 (``product_dtype`` of
            ``STLLRLearner``), which about halves the time of that on hardware with bfloat16 units. Not read by "bptt",
            which follows the trainer's ``precision``.
        optimizer: Makes the optimizer from the parameters. In YAML a ``class_path`` with ``init_args``.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none if left out.
        lr_interval: Step the scheduler once an "epoch" or once a "step" of the optimizer.
        gradient_clip: Largest norm of the gradient over all parameters; no clipping if left out. The same as
            ``Trainer(gradient_clip_val=...)``, which works in both loops too.
    """

    carries_states: ClassVar[bool] = False
    """Whether a batch goes on with the states that the one before it has left; the task itself then resets them."""

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm = "stllr",
        rule: str | dict[str, Any] | STLLRRule | None = None,
        layer_rules: dict[str, Any] | None = None,
        learning_signal: LearningSignal | None = None,
        feedback_seed: int = 0,
        output: str | None = None,
        exclude: list[str] | None = None,
        supervise_last: int | None = None,
        update_every: int | None = None,
        loop: Loop = "online",
        window: int | None = None,
        products: Literal["float32", "bfloat16"] = "float32",
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.algorithm = algorithm
        self.rule, self.layer_rules = learning_rules(algorithm, rule, layer_rules)
        self.learning_signal = learning_signal
        self.feedback_seed = feedback_seed
        self.output = output
        self.exclude = tuple(exclude or ())
        self.supervise_last = supervise_last
        self.update_every = update_every
        self.window = window
        self.products = products
        self.watched = False
        """Whether a callback looks at single time steps; the batch then runs step by step. Callbacks set it."""
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.gradient_clip = gradient_clip
        if update_every is not None:
            if update_every < 1:
                raise ValueError(f"update_every={update_every}: at least one time step lies between two updates.")
            if loop == "automatic" and algorithm != "bptt":
                raise ValueError('update_every needs loop="online"; "automatic" makes one update per batch.')
        if products not in ("float32", "bfloat16"):
            raise ValueError(f'products={products!r} is not known; use "float32" or "bfloat16".')
        if window is not None and window < 1:
            raise ValueError(f"window={window}: a window has at least one time step.")
        if window is not None and loop == "automatic" and algorithm != "bptt":
            raise ValueError('window needs loop="online"; "automatic" runs step by step.')
        self.automatic_optimization = update_every is None and (algorithm == "bptt" or loop == "automatic")
        self.learner: STLLRLearner | None = None
        self.active: Tensor | None = None
        """Samples for which the current time step is not padding, shape [B]; set by the time loops for callbacks."""
        self._loss: Tensor | None = None
        self._window: Tensor | None = None  # loss since the last update; with "bptt" it holds the window's graph
        self._online = False
        self._reported = False
        self.configure_losses()
        self.configure_metrics()

    # Phases that tasks fill in.

    def configure_losses(self) -> None:
        """Set up the loss."""

    def configure_metrics(self) -> None:
        """Set up the metrics."""

    def save_plain_hyperparameters(self, **arguments: Any) -> None:
        """Save the constructor's arguments in checkpoints, as plain data.

        Under the command line everything is plain (a network is its ``class_path`` and ``init_args``), so
        ``load_from_checkpoint(path)`` builds the whole task again. Elsewhere live objects (network, optimizer) are
        left out: pass them, as in ``load_from_checkpoint(path, network=network)``.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
            return
        if isinstance(arguments.get("rule"), STLLRRule):
            arguments["rule"] = arguments["rule"].describe()
        self.save_hyperparameters({name: value for name, value in arguments.items() if _is_plain(value)})

    # The learner's life: made when Lightning asks for the optimizer, gone when the fit is over.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and, unless the algorithm is "bptt", attach the learner that becomes the optimizer."""
        self._detach_learner()  # a former fit may have ended in an exception
        self._reported = False
        optimizer = self.make_optimizer(self.parameters())
        if self.rule is not None:
            optimizer = self.learner = STLLRLearner(
                self.network,
                optimizer,
                rule=self.rule,
                layer_rules=self.layer_rules,
                learning_signal=self.learning_signal,
                feedback_seed=self.feedback_seed,
                output=self.output,
                exclude=self.exclude,
                supervise_last=self.supervise_last,
                product_dtype=torch.bfloat16 if self.products == "bfloat16" else None,
                reset_after_step=self.update_every is None and not self.carries_states,
            )
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def configure_callbacks(self) -> list[Callback]:
        """Firing rates, peak memory and samples per second are logged unless the trainer has such callbacks.

        With them come those that resumed runs and the trainer's options in the online loop need.
        """
        present = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        standard = (OneOrder, AttachmentReport, FiringRates, PeakMemory, Throughput, ResumeRandomness)
        callbacks: list[Callback] = [kind() for kind in standard if kind not in present]
        if not self.automatic_optimization and self.trainer.state.fn == TrainerFn.FITTING:
            if self.update_every is not None and self.trainer.accumulate_grad_batches != 1:
                raise ValueError(
                    f"update_every={self.update_every} makes several updates per batch and accumulate_grad_batches="
                    f"{self.trainer.accumulate_grad_batches} one update per several batches; leave one of them out."
                )
            callbacks.append(ManualOptions(self.trainer))
        return callbacks

    def setup(self, stage: str) -> None:
        """Keep hidden states out of DDP's broadcast (before the strategy wraps the module)."""
        names = hidden_buffer_names(self.network, prefix="network")
        known = getattr(self, "_ddp_params_and_buffers_to_ignore", ())
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, list(dict.fromkeys([*known, *names])))

    def teardown(self, stage: str) -> None:
        """Detach the learner: the network is again the one that was passed in, with trained weights."""
        self._detach_learner()

    def _detach_learner(self) -> None:
        if self.learner is not None:
            self.learner.detach()
            self.learner = None

    # The time loop's bookkeeping.

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
        self._reset()
        if self.learner is not None and learning:
            self.learner.reset(num_steps=num_steps, lengths=lengths)
            if target is not None and self.learner.needs_target:
                self.set_target(target, scale)
        self._begin_loss(learning)

    def _begin_loss(self, learning: bool) -> None:
        """Start the sums of a batch's losses and, where an update begins, of its gradients."""
        self._loss = self._window = None
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
            window = loss if self.rule is None else loss.detach()
            self._window = window if self._window is None else self._window + window
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
        return wanted and learner is not None and learner.learning_signal == "bp"

    def last_supervised(self, supervised: Sequence[bool]) -> set[int]:
        """The last supervised step before each update, from which of the T steps are supervised."""
        every = self.update_every or len(supervised)
        windows = {t // every: t for t, one in enumerate(supervised) if one}
        if self.update_every is not None and self.training and self._trainer is not None:
            self._compare_windows(sorted(windows))
        return set(windows.values())

    def _compare_windows(self, windows: list[int]) -> None:
        """Each update averages over all processes: one that has none to make would leave the others waiting."""
        everyone = from_all_processes(windows)
        if any(one != windows for one in everyone):
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
        """Update the weights after step ``t`` if a window of ``update_every`` steps ends there."""
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
        """One optimizer step with the gradients of the window; nothing where the window had no loss."""
        window, self._window = self._window, None
        if window is not None:
            optimizer = self._optimizer()
            if self.rule is None:
                self.manual_backward(window)
            if not self._completes_update():
                return
            optimizer.step()
            if self.update_every is not None:
                optimizer.zero_grad()
            if self.lr_interval == "step":
                self._step_lr_schedulers()
        if self.rule is None:
            detach_states(self.network)

    def _completes_update(self) -> bool:
        """Whether this is the last of the batches whose gradients are accumulated for one update (online loop)."""
        done = self.trainer.fit_loop.batch_idx + 1
        return done % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def _reset(self) -> None:
        reset_states(self.network)

    def _end_batch(self) -> None:
        """What becomes of the hidden states at the end of a batch: nothing stays behind for the next one."""
        self._reset()

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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient. Here because both loops pass here, after mixed precision has unscaled the gradients."""
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        if not self.automatic_optimization:  # there Lightning does it
            self.clip_gradients(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let go of the states, which with "bptt" hold the graph of the sequence; say once what is trained how."""
        self._end_batch()
        if self.learner is not None and not self._reported:
            self._reported = True
            rank_zero_info(str(self.learner.report()))  # here: its edges show after a step

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Leave nothing behind for the next training batch."""
        self._end_batch()

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Leave nothing behind for the next batch."""
        self._end_batch()

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Leave nothing behind for the next batch."""
        self._end_batch()

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


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
