"""Steps that ran one after the other, and whose traces are computed together once somebody needs them.

A step of an attached layer only notes what it saw. In a backward pass over the whole sequence, psi and the traces of
several steps are then had for the price of one; a backward pass at each step finds one step noted, and it is as if each
had been computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stllr_plugin.activations import Psi
from stllr_plugin.errors import StateError
from stllr_plugin.folding import last_trace, traces_before

TOGETHER = 8  # steps at most
_INPUT_BYTES = 1 << 23  # of inputs, from which on it is not worth to wait for more
_BYTES = 1 << 21  # of distances, the same: they are memory that nobody else holds


@dataclass(slots=True, eq=False)
class InputSteps:
    """Inputs of one edge at consecutive steps.

    Attributes:
        start: tr_x before the first of them; None at the beginning of a sequence.
        decay: lambda_pre.
        first: Number of the first of them within an undisturbed run of the trace.
        run: Stands for that run.
        name: The synapse, for messages.
        dtype: Of the trace.
        inputs: The inputs [B, ...], which belong to others; spikes may be bool.
        versions: Of their memory, to notice a change in place.
        used: Whether a backward pass has come by, so that it may well come by each step on its own.
        known: The last position whose trace was computed, and that trace.
    """

    start: Tensor | None
    decay: float
    first: int
    run: object
    name: str
    dtype: torch.dtype
    used: bool = False
    inputs: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    known: tuple[int, Tensor] | None = None

    def add(self, x: Tensor) -> None:
        """Notes a step."""
        self.inputs.append(x)
        self.versions.append(x._version)

    def takes(self, x: Tensor) -> bool:
        """Whether there is room for another step with this input."""
        count, first, last = len(self.inputs), self.inputs[0], self.inputs[-1]
        if self.used or last._version != self.versions[-1]:  # its memory is used again
            return False
        fits = x.shape == first.shape and x.dtype is first.dtype and x.device == first.device
        return fits and count < TOGETHER and count * x.numel() * x.element_size() < _INPUT_BYTES

    def before(self, position: int) -> Tensor | None:
        """tr_x of the step before one of these; None at the beginning of a sequence."""
        return self.start if position == 0 else self.after(position - 1)

    def after(self, position: int) -> Tensor:
        """tr_x at one of these steps.

        Raises:
            StateError: If an input was changed in place since.
        """
        known = self.known
        if known is not None and known[0] == position:
            return known[1]
        begin, start = 0, self.start
        if known is not None and known[0] < position:
            begin, start = known[0] + 1, known[1]
        found = self._moved_on(start, begin, position + 1)
        self.known = (position, found)
        return found

    def _moved_on(self, start: Tensor | None, begin: int, end: int) -> Tensor:
        inputs = self.inputs[begin:end]
        if any(x._version != version for x, version in zip(inputs, self.versions[begin:end], strict=True)):
            raise StateError(
                f"The input of synapse {self.name!r} was changed in place, in a later step or before the backward "
                "pass. Use the out-of-place operation (y = y * mask, not y *= mask), or pass x.clone() to the layer."
            )
        if len(inputs) > 1 and self.decay != 0.0:
            return last_trace(start, torch.stack(inputs).to(self.dtype), self.decay)
        x = inputs[-1]
        if start is None or self.decay == 0.0:
            return x.to(self.dtype, copy=True)
        x = x.to(self.dtype)
        return torch.add(x, start.to(x.device, x.dtype), alpha=self.decay)


Key = tuple["Psi | None", float]


def _nothing(psi: Psi | None, v: Tensor) -> Tensor:
    raise AssertionError


@dataclass(slots=True, eq=False)
class MembraneSteps:
    """Distances of the membranes of one layer from the threshold at consecutive steps.

    Attributes:
        look: Gives psi of v [K, B, ...].
        starts: tr_psi before the first of them, by psi and lambda_post; None at the beginning of a sequence.
        wanted: The psi that are asked for.
        distances: v of each step [B, ...], until psi is computed.
        count: Their number.
        closed: Whether no other step is noted here.
        dtype: Of v, and of psi.
    """

    look: Callable[[Psi | None, Tensor], Tensor]
    starts: dict[Key, Tensor | None]
    wanted: Sequence[Psi | None]
    distances: list[Tensor] = field(default_factory=list)
    count: int = 0
    closed: bool = False
    _psis: dict[Psi | None, Tensor] = field(default_factory=dict)
    _single: dict[Psi | None, tuple[Tensor, ...]] = field(default_factory=dict)
    _seen: dict[Key, tuple[Tensor, ...]] = field(default_factory=dict)

    dtype: torch.dtype = torch.float32

    @classmethod
    def of_one(cls, psis: dict[Psi | None, Tensor], starts: dict[Key, Tensor | None], v: Tensor) -> MembraneSteps:
        """A single step, whose psi(v) [B, ...] was computed at once."""
        found = cls(_nothing, starts, (), count=1, closed=True, dtype=v.dtype)
        found._psis = {psi: value.unsqueeze(0) for psi, value in psis.items()}
        found._single = {psi: (value,) for psi, value in psis.items()}
        return found

    def add(self, v: Tensor) -> int:
        """Notes a step; returns its position."""
        self.distances.append(v)
        self.dtype = v.dtype
        self.count += 1
        return self.count - 1

    def takes(self, v: Tensor) -> bool:
        """Whether there is room for another step."""
        if self.closed:
            return False
        first = self.distances[0] if self.distances else v
        fits = v.shape == first.shape and v.dtype is first.dtype and v.device == first.device
        return fits and self.count < TOGETHER and self.count * v.numel() * v.element_size() < _BYTES

    def _close(self) -> None:
        """Computes psi of all steps; nothing but that is needed of them from then on."""
        self.closed = True
        values = self.distances
        v = values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
        for psi in self.wanted:
            self._psis[psi] = self.look(psi, v)
        self.distances = []

    def all_psi(self, psi: Psi | None) -> Tensor:
        """psi(v) of all steps, [K, B, ...]."""
        if not self.closed:
            self._close()
        return self._psis[psi]

    def psi(self, psi: Psi | None, position: int) -> Tensor:
        """Of one step, [B, ...]."""
        single = self._single.get(psi)
        if single is None:
            single = self._single[psi] = self.all_psi(psi).unbind(0)
        return single[position]

    def before(self, key: Key, position: int) -> Tensor | None:
        """tr_psi before one of the steps."""
        start = self.starts[key]
        if position == 0:
            return start
        seen = self._seen.get(key)
        if seen is None:
            values = self.all_psi(key[0])
            start = None if start is None else start.to(values.device, values.dtype)
            seen = self._seen[key] = traces_before(start, values, key[1])[0].unbind(0)
        return seen[position]

    def end(self, key: Key) -> Tensor:
        """tr_psi after the last of them."""
        psi, decay = key
        values, start = self.all_psi(psi), self.starts[key]
        if len(values) > 1:
            return last_trace(start, values, decay)
        if start is None or decay == 0.0:
            return values[0]
        return torch.add(values[0], start.to(values.device, values.dtype), alpha=decay)
