"""Neurons whose steps are known here operation by operation: no call of the module at each step, and no graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stllr_plugin.sparse import SparseMatrix, in_parts
from stllr_plugin.windows.scan import Scan

if TYPE_CHECKING:
    from stllr_plugin.sites import NeuronSite


@dataclass(slots=True)
class FusedScan(Scan):
    """A scan in which u depends on the input current through one factor, the same for all steps and neurons.

    Attributes:
        site: The neuron.
        of_leaves: By position among the outputs, how a gradient of that output [K, B, ...] becomes one of u; None where
            it is one of u.
        surrogate: Derivative of the neuron's own surrogate, [K, B, ...], once it was needed.
        needs_distance: Whether ``of_leaves`` makes use of v.
        before: How a gradient of the input current [K * B, ...] becomes one of the input, where the neuron multiplies
            that with weights of its own.
    """

    site: NeuronSite | None = None
    of_leaves: dict[int, Callable[[FusedScan, Tensor], Tensor]] = field(default_factory=dict)
    surrogate: Tensor | None = None
    needs_distance: bool = False
    before: Callable[[Tensor], Tensor] | None = None

    def pull(
        self, membrane: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See the base class."""
        total = membrane
        for position, gradient in enumerate(leaves):
            if gradient is not None:
                assert self.shape is not None
                shaped = gradient.view(self.shape)
                change = self.of_leaves.get(position)
                shaped = shaped if change is None else change(self, shaped)
                total = shaped if total is None else total + shaped
        if total is None:
            return None, [None] * len(self.inner)
        if self.slope is not None:
            total = total * self.slope
        current = total.flatten(0, 1)
        return current if self.before is None else self.before(current), [total] * len(self.inner)

    def derivative(self) -> Tensor:
        """Derivative of the neuron's own surrogate, [K, B, ...]."""
        if self.surrogate is None:
            assert self.site is not None and self.v is not None
            self.surrogate = self.site.psi(None, self.v)
        return self.surrogate

    def forget_distance(self, psi_carries: bool) -> None:
        """See the base class."""
        if psi_carries and not self.needs_distance:
            self.v = None

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See the base class; the only other parameter there can be is the bias of a recurrence."""
        carrier = None if signal is None else signal * (self.derivative() if psi is None else psi)
        current, _ = self.pull(carrier, leaves)
        if current is None or not self.parameters:
            return current, [None] * len(self.parameters)
        dims = [0, *range(2, current.dim())] if current.dim() > 2 else [0]
        return current, [current.sum(dims)]


_HEAVISIDE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_DTYPES: WeakKeyDictionary[Any, dict[torch.dtype, torch.dtype]] = WeakKeyDictionary()


def fires_above_zero(surrogate: Any) -> bool:
    """Whether a spike function is a step at 0 with no spike at 0 itself, and draws no random numbers."""
    known = _HEAVISIDE.get(surrogate)
    if known is None:
        at = torch.tensor([-3.0, -1.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 1.0, 3.0]).repeat(8)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            known = bool((surrogate(at) == (at > 0)).all())
        _HEAVISIDE[surrogate] = known
    return known


def spike_dtype(surrogate: Any, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the spikes that a spike function gives for membranes of some dtype: snnTorch's give float32."""
    known = _DTYPES.setdefault(surrogate, {})
    if dtype not in known:
        with torch.no_grad():
            known[dtype] = surrogate(torch.zeros(1, dtype=dtype)).dtype
    return known[dtype]


def spike_product(spikes: Tensor, weight: Tensor, parts: list[list[Tensor]]) -> Tensor | None:
    """``spikes @ weight^T`` for spikes [B, in] of which few are 1; None where that is better done densely.

    Args:
        spikes: Zeros and ones.
        weight: [out, in].
        parts: Holds the transposed weight from the first call of a window on.
    """
    if spikes.dim() != 2 or weight.dtype != torch.float32 or torch.is_autocast_enabled(spikes.device.type):
        return None
    found = SparseMatrix.of(spikes, len(weight), binary=True)
    if found is None:
        return None
    if not parts:
        parts.append(in_parts(weight.t()))
    return torch.cat(found.times(parts[0]), 1)
