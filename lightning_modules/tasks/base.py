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

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
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
from lightning_modules.moved import keep_former_name
from lightning_modules.tasks.rules import check_signal, learning_rules
from lightning_modules.tasks.sequence_loop import SequenceLoop
from lightning_modules.tasks.states import hidden_buffer_names
from stllr_plugin import STLLRLearner, STLLRRule

Algorithm = Literal["stllr", "ottt", "sltt", "tess", "bptt"]
Loop = Literal["online", "automatic"]


class SpikingTask(SequenceLoop):
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
    truncated backpropagation through time over n steps, whose memory is that of these steps. Steps without a loss
    update nothing. ``trainer.global_step`` counts every update.

    **Hidden states** are reset at the start of every batch of training, validation, testing and prediction (the sanity
    check included) and when the trainer is done, those of this network only.

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
            trained or a random classifier per layer), "tess" (a classifier of square waves), or another one of
            ``stllr_plugin.signals``. If left out, as the rule says, which is "bp" unless it comes with another.
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

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm = "stllr",
        rule: str | dict[str, Any] | STLLRRule | None = None,
        layer_rules: dict[str, Any] | None = None,
        learning_signal: str | None = None,
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
        self.learning_signal: Any = learning_signal  # one of a list that users may extend
        self.feedback_seed = feedback_seed
        self.output = output
        self.exclude = tuple(exclude or ())
        self.supervise_last = supervise_last
        self.update_every = update_every
        self.window = window
        self.products = products
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.gradient_clip = gradient_clip
        _check_loop(algorithm, loop, update_every, window)
        if products not in ("float32", "bfloat16"):
            raise ValueError(f'products={products!r} is not known; use "float32" or "bfloat16".')
        if learning_signal is not None:
            check_signal(learning_signal)
        self.automatic_optimization = not self.updates_within and (algorithm == "bptt" or loop == "automatic")
        self._reported = False
        self.configure_losses()
        self.configure_metrics()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checkpoints may name the class by its former place."""
        super().__init_subclass__(**kwargs)
        keep_former_name(cls.__module__)

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
                reset_after_step=False,  # a batch begins at rest, or goes on: the task sees to it
            )
            self.neurons_of_learner = frozenset(self.learner.report().neurons)
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
            if self.updates_within and self.trainer.accumulate_grad_batches != 1:
                raise ValueError(
                    f"{self.updates_option} makes several updates per batch and accumulate_grad_batches="
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
        """Detach the learner: the network is again the one that was passed in, at rest, with trained weights."""
        self._detach_learner()
        self._reset()

    def _detach_learner(self) -> None:
        if self.learner is not None:
            self.learner.detach()
            self.learner = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let go of graphs; say once what is trained how."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.learner is not None and not self._reported:
            self._reported = True
            rank_zero_info(str(self.learner.report()))  # here: its edges show after a step


def _check_loop(algorithm: str, loop: str, update_every: int | None, window: int | None) -> None:
    """Raises ValueError where these settings do not go together."""
    if update_every is not None and update_every < 1:
        raise ValueError(f"update_every={update_every}: at least one time step lies between two updates.")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a window has at least one time step.")
    if loop == "automatic" and algorithm != "bptt":
        if update_every is not None:
            raise ValueError('update_every needs loop="online"; "automatic" makes one update per batch.')
        if window is not None:
            raise ValueError('window needs loop="online"; "automatic" runs step by step.')


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
