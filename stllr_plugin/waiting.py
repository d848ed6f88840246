"""Steps whose gradients wait, to be multiplied together (``fold_steps``).

Let p[t] be what the causal term multiplies the trace with, and n[t] what the other term multiplies the input with. For
steps 0 .. k of a sequence, since tr_x[t] = lambda tr_x[t-1] + x[t],

    sum_t p[t] tr_x[t]^T + n[t] x[t]^T  =  G[0] tr_x[0]^T + n[0] x[0]^T + sum_{t>0} (G[t] + n[t]) x[t]^T,

with G[t] = p[t] + lambda G[t+1]: a product over k + 2 inputs in place of one over 2 (k + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stllr_plugin.calls import SynapseCall
from stllr_plugin.precision import full_precision


@dataclass(slots=True, eq=False)
class WaitingSteps:
    """What an edge's gradient of consecutive steps is made of, before it is multiplied.

    Attributes:
        limit: Number of steps that are multiplied together.
        decay: lambda_pre.
        call: The synapse's call at the first of the steps; None where nothing waits.
        step: The last of them.
        causal: p[t] of each.
        inputs: The first step's trace, then each step's input: copies, since the caller may use their memory again.
        factors: What these are multiplied with; the causal part is still to be added.
    """

    limit: int
    decay: float
    call: SynapseCall | None = None
    step: int = -1
    causal: list[Tensor | None] = field(default_factory=list)
    inputs: Tensor | None = None
    factors: Tensor | None = None

    def takes(self, step: int, x: Tensor) -> bool:
        """Whether a step follows those that wait, or is the last of them once more."""
        fits = self.inputs is not None and self.inputs.shape[1:] == x.shape and self.inputs.dtype == x.dtype
        return self.call is not None and fits and step in (self.step, self.step + 1)

    @property
    def full(self) -> bool:
        """Whether no other step has room."""
        return len(self.causal) >= self.limit

    def add(
        self,
        call: SynapseCall,
        step: int,
        trace: Callable[[], Tensor],
        causal: Tensor | None,
        noncausal: Tensor | None,
    ) -> None:
        """Takes a step in: tr_x[t] and (in the call) x[t] [B, ...], and what they are multiplied with."""
        shown = noncausal if causal is None else causal
        if shown is None:
            return
        if self.call is None:
            self._begin(call, trace(), shown)
        assert self.inputs is not None and self.factors is not None
        if step == self.step and self.causal:  # a second loss of the same step
            before = self.causal[-1]
            self.causal[-1] = causal if before is None else before if causal is None else before + causal
            if noncausal is not None:
                self.factors[len(self.causal)].add_(noncausal)
            return
        self.step = step
        self.causal.append(causal)
        self.inputs[len(self.causal)].copy_(call.x)
        place = self.factors[len(self.causal)]
        if noncausal is None:
            place.zero_()
        else:
            place.copy_(noncausal)

    def _begin(self, call: SynapseCall, trace: Tensor, factor: Tensor) -> None:
        self.call = call
        self.causal.clear()
        self.inputs = self._room(self.inputs, trace)
        self.factors = self._room(self.factors, full_precision(factor))
        self.inputs[0].copy_(trace)

    def _room(self, before: Tensor | None, like: Tensor) -> Tensor:
        """Memory for all steps, the same again if it fits."""
        fits = before is not None and before.shape[1:] == like.shape
        if fits and before.dtype == like.dtype and before.device == like.device:  # type: ignore[union-attr]
            return before  # type: ignore[return-value]
        return like.new_empty(self.limit + 1, *like.shape)

    def gradient(self) -> Tensor | None:
        """The weight's gradient of the steps that wait, which then wait no more; None if there are none."""
        if self.call is None:
            return None
        call = self.call
        weight, (x, g) = call.trained_weight().detach(), self._take()
        if call.site.is_batched(x[0], weight):  # without a batch the steps are one
            x, g = x.flatten(0, 1), g.flatten(0, 1)
        return call.site.product(weight, [(x, g)])

    def _take(self) -> tuple[Tensor, Tensor]:
        """The inputs [steps, B, ...] and their factors; nothing waits any more."""
        assert self.inputs is not None and self.factors is not None
        folded: Tensor | None = None
        for t in range(len(self.causal), 0, -1):
            causal = self.causal[t - 1]
            if folded is None:
                folded = causal
            elif causal is None:
                folded = folded * self.decay
            else:
                folded = torch.add(causal, folded, alpha=self.decay)
            if folded is not None and t > 1:
                self.factors[t].add_(folded)
        if folded is None:
            self.factors[0].zero_()
        else:
            self.factors[0].copy_(folded)
        count = len(self.causal) + 1
        self.discard()
        return self.inputs[:count], self.factors[:count]

    def discard(self) -> None:
        """Forgets what waits."""
        self.call, self.step = None, -1
        self.causal.clear()
