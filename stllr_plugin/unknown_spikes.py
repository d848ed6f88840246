"""Spike functions that the learner does not know, on the way between synapses, neurons and the loss.

A spiking neuron that is no adapter's looks like a plain layer in between, and its synapses would learn by other
gradients. Two things give it away: an autograd function that gives two values only although its derivative is that of
something smooth, and a tensor of two values that was made from a synapse's output with no neuron between.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import Node

from stllr_plugin.errors import StateError

WAY_OUT = (
    "If it is a spiking neuron of your own, make it known with an adapter, `class MyAdapter(FiringAdapter): kind = "
    "MyNeuron` under @register_adapter (stllr_plugin.neurons.own and .base), or use a neuron of snnTorch or Norse. To "
    "leave the module to ordinary gradients, name it in exclude=[...]."
)

# Where every autograd function is a spike function or a whole neuron, and where none is.
_SPIKING = ("snntorch.surrogate", "norse.torch.functional.", "spikingjelly.", "stllr_plugin.surrogates")
_HARMLESS = ("snntorch.", "stllr_plugin.", "torch.")
_KNOWN: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def spike_function_at(node: Node) -> str | None:
    """The name of the spike function that left a node in the graph; None for all other nodes."""
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return None
    function: Any = getattr(node, "_forward_cls", None)
    if not isinstance(function, type):
        return None
    known = _KNOWN.get(function)
    if known is None:
        known = _KNOWN[function] = _is_spike_function(function)
    return function.__qualname__ if known else None


def _is_spike_function(function: Any) -> bool:
    if function.__module__.startswith((*_SPIKING, *_HARMLESS)):
        return bool(function.__module__.startswith(_SPIKING))
    at = torch.linspace(-4.0, 4.0, 97)
    with torch.random.fork_rng(devices=[]):
        for others in _arguments(function):
            try:
                with torch.enable_grad():
                    v = at.clone().requires_grad_()
                    values = function.apply(v, *others)
                    (slope,) = torch.autograd.grad(values.sum(), v)
            except Exception:  # not called like this
                continue
            if isinstance(values, Tensor) and values.shape == at.shape and slope.shape == at.shape:
                steps = values.detach().unique()
                return len(steps) == 2 and bool(slope.any())  # flat almost everywhere, and yet with a slope
    return False


def _arguments(function: Any) -> Iterable[tuple[Any, ...]]:
    """What the function might be called with beside v: nothing, or numbers, one for each further argument."""
    try:
        parameters = list(inspect.signature(function.forward).parameters.values())
    except (TypeError, ValueError):
        return [()]
    needs_context = "setup_context" not in function.__dict__
    others = parameters[(2 if needs_context else 1) :]
    positional = [p for p in others if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    filled = [tuple([value] * len(needed)) for value in (1.0, torch.ones(()), 1)] if needed else []
    return [(), *filled]


def refuse_spike_functions(names: Iterable[str], where: str) -> None:
    """Raises StateError if there are any.

    Args:
        names: Of the spike functions.
        where: Where they were found, for the message.
    """
    found = sorted(set(names))
    if found:
        raise StateError(
            f"There is a spike function that the learner does not know ({', '.join(found)}) {where}. {WAY_OUT}"
        )


@dataclass
class _Seen:
    """What was seen at one place: of each tensor its least and largest value and whether it holds no other; [3]."""

    rows: list[Tensor] = field(default_factory=list)
    count: int = 0


class ValueWatch:
    """Notes, without reading values from the device, whether tensors hold two values only.

    Each way of wiring is looked at in its first sequences. What was seen is judged once per sequence.
    """

    SEQUENCES = 3
    LEAST = 32  # values that must have been seen: of a few, two are nothing special

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._places: dict[str, _Seen] = {}
        self._sequences: dict[Hashable, set[int]] = {}

    def wants(self, wiring: Hashable, sequence: int) -> bool:
        """Whether a way of wiring is to be looked at in this sequence."""
        seen = self._sequences.setdefault(wiring, set())
        if sequence in seen:
            return True
        if len(seen) >= self.SEQUENCES:
            return False
        seen.add(sequence)
        return True

    def look(self, place: str, tensor: Tensor) -> None:
        """Takes in one tensor.

        Args:
            place: Where it was, as the beginning of a sentence.
            tensor: The tensor.
        """
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return
        x = tensor.detach()
        low, high = x.min(), x.max()
        slack = 1e-5 * (high - low)
        pure = ((x - low <= slack) | (high - x <= slack)).all()
        seen = self._places.setdefault(place, _Seen())
        seen.rows.append(torch.stack([low, high, pure.to(x.dtype)]))
        seen.count += x.numel()

    def check(self) -> None:
        """Judges what was seen since the last time; reads from the device if there is anything.

        Raises:
            StateError: If a tensor that was made from a synapse's output took two values only, and both of them.
        """
        places, self._places = self._places, {}
        for place, seen in places.items():
            if seen.count < self.LEAST:
                continue
            low, high, pure = torch.stack(seen.rows).double().cpu().unbind(1)
            least, largest = low.min(), high.max()
            slack = 1e-4 * (largest - least)
            ends = torch.cat([low, high])
            two = ((ends - least <= slack) | (largest - ends <= slack)).all() and (high - low > slack).any()
            if bool(pure.all()) and bool(two):
                raise StateError(
                    f"{place} took two values only, {least.item():g} and {largest.item():g}, although it was made from "
                    f"a synapse's output with no neuron between that the learner knows. {WAY_OUT}"
                )
