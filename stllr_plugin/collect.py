"""One product per step where a backward pass comes by several steps, as with one loss on the whole sequence.

The pass goes from the last step to the first. With p[t] what the causal term multiplies the trace with and n[t] what
the other term multiplies the input with,

    sum_t p[t] tr_x[t]^T + n[t] x[t]^T  =  sum_t (G[t] + n[t]) x[t]^T  +  lambda G[0] tr_x[-1]^T,

with G[t] = p[t] + lambda G[t+1], over consecutive steps t >= 0. All steps get their weight from :class:`Collected`,
which autograd runs after the last of them that takes part in the pass, and which delivers the sum.

An input that is the same at several steps (a picture that is shown all the time) is multiplied once, with the sum of
its factors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from stllr_plugin.calls import SynapseCall, SynapseSite, is_same_tensor
from stllr_plugin.precision import without_autocast
from stllr_plugin.steps import InputSteps

# A factor of the input as a learning signal, what it is multiplied with element by element, and a number.
Scaled = tuple[Tensor, Tensor, float]
# Of edges of one layer, which share their factors: G[t+1], then G[t] and the factor of the input that follow from it.
Shared = tuple["Tensor | None", Tensor, Tensor]

_STEPS = 8  # whose products are made as one, and which are kept for that
_BYTES = 1 << 22  # of inputs and factors that are kept


@dataclass(slots=True, eq=False)
class Collection:
    """What has come in during one backward pass, for one edge.

    Attributes:
        site: The synapse.
        decay: lambda_pre.
        task: Number of the backward pass; what an earlier one left behind, as it was cut off by an error, is forgotten.
        folded: G[t] of the step that came in last.
        last: Which that is.
        call: Its call.
        inputs: What is still to be multiplied, [B, ...] each.
        factors: With what.
        summed: Whether the last factor is a sum, which nobody else holds.
        kept: Bytes of these.
        total: The gradient so far.
    """

    site: SynapseSite
    decay: float
    task: int = -1
    folded: Tensor | None = None
    last: tuple[InputSteps, int] | None = None
    call: SynapseCall | None = None
    inputs: list[Tensor] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    summed: bool = False
    kept: int = 0
    total: Tensor | None = None

    def take(
        self,
        call: SynapseCall,
        steps: InputSteps,
        position: int,
        causal: Tensor | None,
        noncausal: Tensor | None,
    ) -> None:
        """Takes a step in.

        Args:
            call: The synapse call, with its input x[t], [B, ...].
            steps: The steps of which it is one.
            position: Which of them.
            causal: p[t], at the synapse's output.
            noncausal: n[t].
        """
        self._begin(call, steps, position)
        folded = causal
        if self.folded is not None:
            folded = self.folded * self.decay if causal is None else torch.add(causal, self.folded, alpha=self.decay)
        self.last, self.folded = (steps, position), folded if self.decay else None
        factor = noncausal if folded is None else folded if noncausal is None else folded + noncausal
        if factor is not None:
            self._keep(call.held, factor)

    def take_plain(
        self,
        call: SynapseCall,
        steps: InputSteps,
        position: int,
        causal: Tensor,
        scaled: Scaled | None,
        shared: list[Shared],
    ) -> None:
        """As :meth:`take`, in fewer operations.

        Args:
            call: The synapse call, with its input x[t], [B, ...].
            steps: The steps of which it is one.
            position: Which of them.
            causal: p[t], at the synapse's output.
            scaled: n[t], as the product of these.
            shared: What other edges of the layer have already worked out from the same factors.
        """
        self._begin(call, steps, position)
        before = self.folded
        found = next((one for one in shared if one[0] is before), None)
        if found is None:
            folded = causal if before is None else torch.add(causal, before, alpha=self.decay)
            factor = folded if scaled is None else torch.addcmul(folded, scaled[0], scaled[1], value=scaled[2])
            found = (before, folded, factor)
            shared.append(found)
        self.last, self.folded = (steps, position), found[1] if self.decay else None
        self._keep(call.held, found[2])

    def _begin(self, call: SynapseCall, steps: InputSteps, position: int) -> None:
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self._forget(task)
        self.site.check_input(call)
        steps.used = True
        if self.folded is not None and not self._precedes(steps, position):
            self._end_run()  # the step that came in before does not follow on this one
        self.call = call

    def _precedes(self, steps: InputSteps, position: int) -> bool:
        assert self.last is not None
        later, place = self.last
        return later.run is steps.run and later.first + place == steps.first + position + 1

    def _end_run(self) -> None:
        """Brings in what the steps before the last one that came in have left in the trace."""
        if self.folded is not None and self.last is not None:
            steps, position = self.last
            before = steps.before(position)
            if before is not None:
                self._keep(before, self.folded * self.decay)
        self.folded = self.last = None

    def _keep(self, x: Tensor, factor: Tensor) -> None:
        if self.inputs and is_same_tensor(x, self.inputs[-1]) and factor.shape == self.factors[-1].shape:
            if self.summed:
                self.factors[-1].add_(factor)
            else:
                self.factors[-1] = self.factors[-1] + factor
                self.summed = True
            return
        fits = not self.inputs or (
            x.shape == self.inputs[0].shape and x.dtype == self.inputs[0].dtype and x.device == self.inputs[0].device
        )
        if not fits or factor.shape[1:] != (self.factors[0].shape[1:] if self.factors else factor.shape[1:]):
            self._multiply()
        self.inputs.append(x)
        self.factors.append(factor)
        self.summed = False
        self.kept += x.numel() * x.element_size() + factor.numel() * factor.element_size()
        if len(self.inputs) >= _STEPS or self.kept > _BYTES:
            self._multiply()

    def _multiply(self) -> None:
        if not self.inputs:
            return
        assert self.call is not None
        weight = self.call.trained_weight().detach()
        if len(self.inputs) > 1 and self.site.is_batched(self.inputs[0], weight):
            terms = [(torch.cat(self.inputs), torch.cat(self.factors))]
        else:
            terms = list(zip(self.inputs, self.factors, strict=True))
        self.inputs.clear()
        self.factors.clear()
        self.kept = 0
        with without_autocast(weight):
            product = self.site.product(weight, terms)
        self.total = product if self.total is None else self.total.add_(product)

    def deliver(self) -> Tensor | None:
        """The gradient of all steps that came in during the pass; None if there was none."""
        if torch._C._current_graph_task_id() != self.task:
            return None
        self._end_run()
        self._multiply()
        total = self.total
        self._forget(-1)
        return total

    def _forget(self, task: int) -> None:
        self.task, self.folded, self.last, self.call, self.total, self.kept = task, None, None, None, None, 0
        self.inputs.clear()
        self.factors.clear()


class Collected(Function):
    """Identity on a weight, from which all steps of an edge get it; its gradient is what the collection holds."""

    @staticmethod
    def forward(ctx: Any, collection: Collection, weight: Tensor) -> Tensor:
        """Returns the weight, under a new tensor."""
        ctx.collection = collection
        ctx.set_materialize_grads(False)
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, Tensor | None]:
        """See the class."""
        collection: Collection = ctx.collection
        found = collection.deliver()
        if found is None and grad is None and collection.site.owned:
            found = torch.zeros_like(collection.site.current_weight())  # Norse puts hooks on them that cannot take None
        return None, found if grad is None else grad if found is None else grad + found
