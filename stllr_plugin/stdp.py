"""Training without a loss: spike-timing-dependent plasticity (STDP), with or without reward.

With ``learning_signal="one"`` the learning signal of all spiking neurons is one number. ``learner.reinforce(reward)``
leaves ``-reward * e_ij``, summed over the batch, in the gradient of every weight that feeds a spiking neuron, so that
an optimizer moves the weights along the eligibility; layers are cut from each other. With the preset "stdp", whose psi
is the spike itself, the eligibility is pair-based STDP::

    e_ij[t] = y_i[t] * tr_x_j[t]  -  x_j[t] * tr_y_i[t]

(Bi & Poo, Journal of Neuroscience 1998; Song, Miller & Abbott, Nature Neuroscience 2000. With a reward: Florian,
"Reinforcement Learning Through Modulation of Spike-Timing-Dependent Synaptic Plasticity", Neural Computation 2007.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.marks import mark_of
from stllr_plugin.precision import num_bytes
from stllr_plugin.record import Record
from stllr_plugin.registry import register_signal
from stllr_plugin.session import several_processes
from stllr_plugin.signals.base import LearningSignal, SignalSetup

WeightFactor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plasticity:
    """How eligibilities become weight changes under ``learning_signal="one"``.

    Args:
        eligibility_decay: With a number in [0, 1] every weight keeps an eligibility ``E[t] = decay * E[t-1] + e[t]``,
            summed over the batch, and a reward changes the weight by it: a reward may then come later than the spikes
            that earned it. This costs as much memory as the weights. None: the eligibility of the last step alone.
        potentiation: Factor of the first term, from the weight, e.g. ``lambda w: w_max - w``; None for 1.
        depression: Factor of the second term, from the weight, e.g. ``lambda w: w - w_min``; None for 1.

    Raises:
        RuleError: If the decay is out of its range, or a factor is no function.
    """

    eligibility_decay: float | None = None
    potentiation: WeightFactor | None = None
    depression: WeightFactor | None = None

    def __post_init__(self) -> None:
        """Checks the decay and the factors."""
        for name, factor in (("potentiation", self.potentiation), ("depression", self.depression)):
            if factor is not None and not callable(factor):
                raise RuleError(f"{name}={factor!r}: expected a function of the weight, or None.")
        decay = self.eligibility_decay
        if decay is None:
            return
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 <= decay <= 1.0:
            raise RuleError(f"eligibility_decay={decay!r}: expected a number in [0, 1], or None.")

    def eligibilities(self, record: Record, delta: Tensor) -> list[Tensor | None]:
        """``sum_b delta_i e_ij`` for the weight of each input of a neuron, with the factors."""
        if self.potentiation is None and self.depression is None:
            return record.spike_gradients(delta)
        # Both factors depend on the weight alone, so each is taken out of the sum over samples and places.
        totals: list[Tensor | None] = [None] * len(record.inputs)
        for terms, factor in (({"noncausal": False}, self.potentiation), ({"causal": False}, self.depression)):
            for index, gradient in enumerate(record.spike_gradients(delta, **terms)):
                if gradient is None:
                    continue
                if factor is not None:
                    gradient = gradient * factor(record.inputs[index].call.trained_weight().detach())
                before = totals[index]
                totals[index] = gradient if before is None else before + gradient
        return totals


@dataclass
class _Weight:
    """Where the eligibility of a weight is kept, and the weight as the last step used it."""

    weight: Tensor
    eligibility: Tensor


@register_signal("one")
class Reinforcement(LearningSignal):
    """The signal "one": the same for every spiking neuron, given by :meth:`reinforce`.

    Attributes:
        plasticity: How eligibilities become weight changes.
    """

    reaches_layers = False

    def __init__(self, setup: SignalSetup) -> None:
        """See the base class."""
        super().__init__(setup)
        self.plasticity = Plasticity()
        self._spiking: set[str] = set()  # names of the neurons that gave out spikes
        self._step = -1
        self._records: list[tuple[Record, Tensor]] = []  # of the last time step, with the spikes of each
        self._weights: dict[int, _Weight] = {}  # by synapse

    def use_plasticity(self, plasticity: Any) -> None:
        """See the base class."""
        if plasticity is not None and not isinstance(plasticity, Plasticity):
            raise RuleError(
                f"plasticity is a {type(plasticity).__name__}; pass a stllr_plugin.stdp.Plasticity, or None."
            )
        self.plasticity = plasticity or Plasticity()

    def hidden(self, name: str, spikes: Tensor) -> Tensor:
        """Keeps this step of the neuron; the layers above see its spikes cut off."""
        mark = None if spikes.grad_fn is None else mark_of(spikes.grad_fn)
        record: Any = None if mark is None else mark.record
        if record is None:
            return spikes
        self._spiking.add(name)
        clock = self.session.clock
        if clock != self._step:
            self._begin_step(clock)
        if self.plasticity.eligibility_decay is None:
            self._records.append((record, spikes))
        else:
            self._accumulate(record, spikes)
        return spikes.detach()

    def passed_over(self, name: str) -> None:
        """See the base class; eligibilities decay, and there is nothing to reward."""
        clock = self.session.clock
        if clock != self._step:
            self._begin_step(clock)

    def _begin_step(self, clock: int) -> None:
        self._step = clock
        self._records.clear()
        for kept in self._weights.values():
            kept.eligibility = kept.eligibility * float(self.plasticity.eligibility_decay or 0.0)

    def _accumulate(self, record: Record, spikes: Tensor) -> None:
        delta = record.span.mask(torch.ones_like(spikes))
        if delta is None:
            return
        found = self.plasticity.eligibilities(record, delta)
        for synaptic, eligibility in zip(record.inputs, found, strict=True):
            if eligibility is None:
                continue
            key, weight = id(synaptic.call.site), synaptic.call.trained_weight()
            kept = self._weights.get(key)
            if kept is None:
                self._weights[key] = _Weight(weight, eligibility)
            else:
                kept.weight, kept.eligibility = weight, kept.eligibility + eligibility

    def reaches(self, name: str) -> bool:
        """True for spiking neurons."""
        return name in self._spiking

    def restart(self, **_: Any) -> None:
        """See the base class."""
        self._step = -1
        self._records.clear()
        self._weights.clear()

    def memory(self) -> dict[str, int]:
        """See the base class."""
        return {"eligibility": sum(num_bytes(kept.eligibility) for kept in self._weights.values())}

    def reinforce(self, reward: float | Tensor) -> int:
        """Adds ``-reward * eligibility`` to the gradients; returns how many weights got one.

        Raises:
            StateError: If no time step has run, the reward does not fit, or several processes train together.
        """
        if several_processes():
            raise StateError("reinforce() does not average over processes; train with one.")
        decayed = self.plasticity.eligibility_decay is not None
        if self._step < 0:
            raise StateError(
                "reinforce() was called, but no time step ran since the last reset (or the last step()). Run the model "
                "in training mode and with gradients enabled (not within no_grad), then call reinforce(); to update at "
                "each time step build the learner with reset_after_step=False."
            )
        reward = _checked(reward, per_sample=not decayed)
        found: list[tuple[Tensor, Tensor]] = []
        if decayed:
            for kept in self._weights.values():
                found.append((kept.weight, kept.eligibility * -reward))
        for record, spikes in self._records:
            found += self._gradients(record, spikes, reward)
        found = [(weight, gradient) for weight, gradient in found if weight.requires_grad]
        if found:
            # Through autograd, so that parametrizations, hooks on weights and the like see it. A parametrization's
            # graph may be needed for a second reward.
            weights, gradients = zip(*found, strict=True)
            torch.autograd.backward(weights, gradients, retain_graph=True)
        return len(found)

    def _gradients(self, record: Record, spikes: Tensor, reward: float | Tensor) -> list[tuple[Tensor, Tensor]]:
        delta = torch.full_like(spikes, -1.0)
        if isinstance(reward, Tensor):
            if reward.dim() == 1:
                # Sequence modules keep a time dimension of 1 in front of the batch.
                batch = 1 if spikes.shape[0] == 1 and spikes.dim() > 1 and reward.shape[0] == spikes.shape[1] else 0
                if reward.shape[0] != spikes.shape[batch]:
                    raise StateError(f"reinforce(): {reward.shape[0]} rewards for a batch of {spikes.shape[batch]}.")
                reward = reward.view(-1, *[1] * (spikes.dim() - 1 - batch))
            reward = reward.to(delta)
        masked = record.span.mask(delta * reward)
        if masked is None:
            return []
        found = self.plasticity.eligibilities(record, masked)
        pairs = zip(record.inputs, found, strict=True)
        return [(synaptic.call.trained_weight(), gradient) for synaptic, gradient in pairs if gradient is not None]


def _checked(reward: float | Tensor, per_sample: bool) -> float | Tensor:
    if isinstance(reward, Tensor):
        if reward.dim() == 0 or (reward.dim() == 1 and per_sample):
            return reward.detach()
        what = (
            "a number or one per sample, [B]" if per_sample else "a number (the eligibility is summed over the batch)"
        )
        raise StateError(f"reinforce(): reward must be {what}; found shape {tuple(reward.shape)}.")
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise StateError(f"reinforce(): reward={reward!r}; expected a finite number or a tensor.")
    return float(reward)
