"""Neurons whose steps are known here operation by operation: the module leaves no graph, and derivatives are formulas.

At a step that is attached the module's own code runs, on an input off the graph, unless the step is done here as well;
in a window all steps are done here, without a call of the module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stllr_plugin.neuron import Neuron
from stllr_plugin.neurons.base import NeuronStep
from stllr_plugin.responses.base import Response, Roots
from stllr_plugin.sparse import SparseMatrix, in_parts

OfLeaf = Callable[["KnownResponse", Tensor], Tensor]  # a gradient of a leaf [K, B, ...] as one of u


@dataclass(slots=True)
class KnownResponse(Response):
    """A response in which u depends on the input current through one factor, the same for all steps and neurons.

    Attributes:
        neuron: The neuron.
        of_leaves: By position among the leaves, how a gradient of that leaf [K, B, ...] becomes one of u; None where it
            is one of u.
        surrogate: Derivative of the neuron's own surrogate, [K, B, ...], once it was needed.
        needs_distance: Whether ``of_leaves`` makes use of v.
        before: How a gradient of the input current [K * B, ...] becomes one of the input, where the neuron multiplies
            that with weights of its own.
    """

    neuron: Neuron | None = None
    of_leaves: dict[int, OfLeaf] = field(default_factory=dict)
    surrogate: Tensor | None = None
    needs_distance: bool = False
    before: Callable[[Tensor], Tensor] | None = None

    @property
    def binary(self) -> bool:
        """See the base class."""
        return self.spikes is not None and self.gain is None

    @property
    def carries_plainly(self) -> bool:
        """See the base class."""
        return self.gain is None and self.direct

    def plain_link(self, gradient: Tensor) -> Tensor:
        """See the base class."""
        return gradient if self.before is None else self.before(gradient)

    def passes(self, position: int) -> bool:
        """See the base class."""
        return position not in self.of_leaves

    def pull(self, membrane: Tensor | None, leaves: Sequence[Tensor | None]) -> tuple[Roots, list[Tensor | None]]:
        """See the base class."""
        total = self._of_current(membrane, leaves)
        if total is None:
            return [], [None] * len(self.inner)
        roots = [] if self.root is None else [(self.root, self._of_input(total))]
        return roots, [total] * len(self.inner)

    def _of_current(self, membrane: Tensor | None, leaves: Sequence[Tensor | None]) -> Tensor | None:
        """A gradient of the input current, [K, B, ...]."""
        total = membrane
        for position, gradient in enumerate(leaves):
            if gradient is not None:
                assert self.shape is not None
                shaped = gradient.reshape(self.shape)
                change = self.of_leaves.get(position)
                shaped = shaped if change is None else change(self, shaped)
                total = shaped if total is None else total + shaped
        return total if total is None or self.slope is None else total * self.slope

    def _of_input(self, total: Tensor) -> Tensor:
        if self.before is not None:
            return self.before(total.flatten(0, 1))
        assert self.input_shape is not None
        return total.reshape(self.input_shape)

    def derivative(self) -> Tensor:
        """Derivative of the neuron's own surrogate, [K, B, ...]."""
        if self.surrogate is None:
            assert self.neuron is not None and self.v is not None
            self.surrogate = self.neuron.psi(None, self.v)
        return self.surrogate

    def forget_distance(self, psi_carries: bool) -> None:
        """See the base class."""
        if psi_carries and not self.needs_distance:
            self.v = None

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See the base class; the only other parameter there can be is the bias of a recurrence."""
        if self.root is None and not self.parameters:
            return [None], []
        carrier = None if signal is None else signal * (self.derivative() if psi is None else psi)
        total = self._of_current(carrier, leaves)
        if total is None:
            return [None], [None] * len(self.parameters)
        biases: list[Tensor | None] = []
        for _ in self.parameters:
            biases.append(total.sum([dim for dim in range(total.dim()) if dim != 2]))
        return [None if self.root is None else self._of_input(total)], biases


class Knowledge(ABC):
    """What is known by heart of one kind of neuron."""

    @abstractmethod
    def serves(self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the neuron is, now and called like this, in a form that is known.

        Args:
            neuron: The neuron.
            current: Its input.
            args: Further arguments: states.
            kwargs: The same by keyword.
        """

    @abstractmethod
    def of_step(self, neuron: Neuron, step: NeuronStep, output: Any, states: list[Tensor]) -> KnownResponse:
        """The response of a step that the module's own code has just done, off the graph.

        Args:
            neuron: The neuron.
            step: What the adapter read.
            output: What the module returned.
            states: The states, returned or kept.
        """

    def step(
        self, neuron: Neuron, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, NeuronStep, Callable[[], KnownResponse]] | None:
        """Does one step in place of the module's code, with the same numbers; None to leave it to the module.

        Args:
            neuron: The neuron.
            current: Its input, off the graph.
            args: Further arguments: states.
            kwargs: The same by keyword.

        Returns:
            What the module would return, what it did, and what makes its response. The states that it keeps are in
            place.
        """
        return None

    @abstractmethod
    def scan(
        self, neuron: Neuron, num_steps: int, current: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> KnownResponse | None:
        """Does K steps in place of the module; None if that is not possible.

        Args:
            neuron: The neuron.
            num_steps: K.
            current: Its input, [K * B, ...].
            args: Further arguments of the first step: states [B, ...].
            kwargs: The same by keyword.
        """


def spikes_first(step: NeuronStep, states: list[Tensor]) -> tuple[list[Tensor], int | None]:
    """The leaves of a step, and the place of the spikes among them."""
    return (states, None) if step.spikes is None else ([step.spikes, *states], 0)


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
