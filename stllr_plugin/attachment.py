"""A learner as something that is attached to a model: on and off, what it was told, what there is to see."""

from __future__ import annotations

from collections.abc import MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stllr_plugin import overview
from stllr_plugin.attach import Plan
from stllr_plugin.errors import NotAttachedError
from stllr_plugin.network import Network
from stllr_plugin.report import Report
from stllr_plugin.session import Session
from stllr_plugin.settings import check_switch
from stllr_plugin.signals import LearningSignal
from stllr_plugin.supervision import Supervision

if TYPE_CHECKING:
    from typing_extensions import Self


class Attachment:
    """What is attached to a model, as users see it. :class:`~stllr_plugin.learner.STLLRLearner` fills in the parts."""

    _plan: Plan
    _session: Session
    _signal: LearningSignal
    _network: Network
    _num_steps: int | None

    # On and off.

    def detach(self) -> None:
        """Takes everything off the model again, which is then bit for bit what it was. Calling it twice is harmless."""
        self._network.detach()

    def __enter__(self) -> Self:
        """The learner, attached until the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches, also after an error."""
        self.detach()

    def enable(self) -> None:
        """Switches the rule on again after :meth:`disable`."""
        self._require_attached()
        self._session.enabled = True

    def disable(self) -> None:
        """Lets the model run and train as if nothing were attached, until :meth:`enable`."""
        self._session.enabled = False

    @property
    def enabled(self) -> bool:
        """Whether the rule is switched on."""
        return self._session.enabled

    @property
    def attached(self) -> bool:
        """Whether the learner is attached to its model."""
        return self._network.attached

    def _require_attached(self) -> None:
        if not self._network.attached:
            raise NotAttachedError("This learner was detached from its model; build a new STLLRLearner to go on.")

    # What it was told.

    @property
    def model(self) -> nn.Module:
        """The attached model."""
        return self._session.model

    @property
    def supervision(self) -> Supervision:
        """Which steps are supervised, and the running sequence."""
        return self._session.supervision

    @property
    def learning_signal(self) -> str:
        """Name of the learning signal."""
        return self._signal.name

    @property
    def fold_steps(self) -> int:
        """How many steps' gradients are put into ``.grad`` together."""
        return self._session.fold_steps

    @property
    def product_dtype(self) -> torch.dtype | None:
        """In which the weights' gradients are multiplied; None for at least float32."""
        return self._session.product_dtype

    @property
    def window_checks(self) -> dict[Any, str | None]:
        """By kind of input, why ``run()`` must go step by step; None for windows. A few answers are kept."""
        return self._network.window_checks

    @property
    def trial(self) -> bool:
        """Whether ``run()`` is trying out a few steps, which hooks that count should not count."""
        return self._session.trial

    # What may be set. All of it is kept in the session: wrappers (Fabric's, Lightning's) inherit from the learner's
    # class, and what is set on one of them would otherwise stay there.

    @property
    def reset_after_step(self) -> bool:
        """Whether ``step()`` ends the sequence; may be set."""
        return self._session.reset_after_step

    @reset_after_step.setter
    def reset_after_step(self, value: bool) -> None:
        check_switch("reset_after_step", value)
        self._session.reset_after_step = value

    @property
    def check_finite(self) -> bool:
        """Whether ``step()`` looks for NaN and infinity first; may be set."""
        return self._session.check_finite

    @check_finite.setter
    def check_finite(self, value: bool) -> None:
        check_switch("check_finite", value)
        self._session.check_finite = value

    # What the learning signal is made from, where that is no loss.

    @property
    def needs_target(self) -> bool:
        """Whether the learning signal is made from the target, so that :meth:`set_target` must be called."""
        return self._signal.needs_target

    def set_target(self, target: Tensor, scale: float | Tensor = 1.0, *, loss_scale: float = 1.0) -> None:
        """Gives the target of the sequence to come to the signals "drtp", "local", "local_random" and "tess".

        Call it before the first step of each sequence. :meth:`step` and :meth:`reset` forget it.

        Args:
            target: Class numbers [B] (integers), or values [B, C] (floats).
            scale: What the signal of hidden layers is multiplied with, a number or one value per sample [B]. It is an
                average over the batch, per step: pass 1/T for a loss that you divide by the number of steps.
            loss_scale: ``scaler.get_scale()`` where a GradScaler scales the loss, since it unscales all gradients.

        Raises:
            RuleError: If the learning signal uses no target, or it is of neither form.
        """
        self._signal.set_target(target, scale, loss_scale)

    def reinforce(self, reward: float | Tensor = 1.0) -> None:
        """In place of ``loss.backward()`` under learning_signal="one": moves the weights along their eligibilities.

        To be called after a time step. It leaves ``-reward * e_ij``, summed over the batch, in the gradient of each
        weight that feeds a spiking neuron; a negative reward moves the weights the other way. Biases get nothing.

        Args:
            reward: A number, or one per sample [B] (not with ``Plasticity(eligibility_decay=...)``).

        Raises:
            RuleError: If the learner has another learning signal.
            StateError: If no time step has run, the reward does not fit, or several processes train together.
        """
        self._require_attached()
        self._session.captures += self._signal.reinforce(reward)

    # Looking inside.

    @property
    def feedback(self) -> MutableMapping[str, Tensor]:
        """Feedback matrices by neuron module name, [outputs, *neuron shape]; may be read and set.

        For "local" and "local_random" they are the readouts, for "tess" the square waves [classes, channels].

        Raises:
            RuleError: If the learning signal uses none.
        """
        return self._signal.feedback

    def report(self) -> Report:
        """What is trained how; print it. Connections show once the model has run a step in training mode."""
        settings = {
            "learning_signal": self.learning_signal,
            "supervise_last": self.supervision.last,
            "supervise_random": self.supervision.random,
            "num_steps": self._num_steps,
            "propagate": self._plan.rule.propagate,
            "convention": self._plan.rule.convention,
            "enabled": self.enabled,
        }
        return overview.report(self._network, settings)

    def traces(self) -> dict[str, dict[str, Tensor | None]]:
        """The running traces by edge name: "pre" (shape of the synapse's input) and "post" (of the neuron), or None."""
        return overview.traces(self._network)

    def memory_usage(self) -> dict[str, int]:
        """Bytes held between time steps: "pre" and "post" traces, "feedback" matrices, and their "total".

        With ``Plasticity(eligibility_decay=...)`` also "eligibility", one number per weight, and with ``fold_steps``
        "waiting", what is kept for gradients to come.
        """
        return overview.memory_usage(self._network)
