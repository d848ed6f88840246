"""Finds spiking neurons that nobody told the learner about, by trying: what jumps although its gradient is smooth?

A spike function hands on a derivative that is not its own. So a small change of a layer's output changes nothing behind
the function, although autograd says that it should; and a large one makes the result jump from one value to another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stllr_plugin.verify.tape import NeuronCall, SynapseCall, Tape
from stllr_plugin.verify.written_out import pull_to_synapses

Prepare = Callable[[nn.Module], None]  # changes a copy before it runs

# Small against the distance of any membrane from its threshold, large against rounding in float64.
_SMALL = 1e-6
# Of what a small change must change at least, for the gradient to be its own.
_FELT = 1e-3
# Changes below this part of a value are rounding.
_SEEN = 1e-12
_LARGE = (-1e3, -30.0, -3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0, 30.0, 1e3)


@dataclass(frozen=True)
class Jump:
    """A function behind a layer that is not what its derivative says.

    Attributes:
        synapse: Name of the layer in front of it.
        target: Name of the neuron behind it, or "the loss".
        levels: How many values the result took for changes of one unit's input.
        modules: Names of the modules in between.
    """

    synapse: str
    target: str
    levels: int
    modules: tuple[str, ...]


def find_jumps(tape: Tape, record_again: Callable[[Prepare], Tape]) -> list[Jump]:
    """Looks at one call of each layer, in the middle of the sequence.

    Args:
        tape: A recorded run of the model, in float64.
        record_again: Does the same on a new copy, with the same random numbers, once the copy has been prepared.
    """
    by_name: dict[str, list[SynapseCall]] = {}
    own = {f"{call.name}.{weight}".lstrip(".") for call in tape.neuron_calls for weight in call.adapter.weight_names}
    for call in tape.synapse_calls:
        if call.name in own or call.boundary:  # nothing can stand between those and the membrane
            continue
        by_name.setdefault(call.name, []).append(call)
    jumps = []
    for calls in by_name.values():
        call = calls[len(calls) // 2]
        for target in _targets(tape, call):
            if (jump := _try(tape, call, target, record_again)) is not None:
                jumps.append(jump)
    return jumps


def _targets(tape: Tape, call: SynapseCall) -> list[NeuronCall | None]:
    """Neuron calls that the layer's output reaches directly; None for the loss."""
    behind: list[NeuronCall | None] = [
        other
        for other in tape.neuron_calls
        if other.order > call.output.order and other.step_number == call.output.step
    ]
    return [other for other in (*behind, None) if _derivative(tape, call, other) is not None]


def _value(tape: Tape, target: NeuronCall | None) -> Tensor:
    return tape.loss if target is None else target.decided


def _derivative(tape: Tape, call: SynapseCall, target: NeuronCall | None) -> Tensor | None:
    """Of the target's weighted sum, with respect to the layer's output, past no neuron."""
    value = _value(tape, target)
    end = len(tape.calls) if target is None else target.order
    between = [other for other in tape.synapse_calls if call.output.order <= other.output.order < end]
    if target is not None:
        between = [other for other in between if other.output.step == target.step_number]
    return pull_to_synapses(between, [value], [_weights(value)]).get(call.output)


def _weights(value: Tensor) -> Tensor:
    """Weights of a sum that no layer makes constant, as a batch norm does that of equal weights."""
    return torch.arange(1, value.numel() + 1).to(value).cos().reshape(value.shape)


def _try(
    tape: Tape, call: SynapseCall, target: NeuronCall | None, record_again: Callable[[Prepare], Tape]
) -> Jump | None:
    derivative = _derivative(tape, call, target)
    assert derivative is not None
    if not derivative.any():
        return None
    before = _value(tape, target).detach()
    number = [other for other in tape.synapse_calls if other.name == call.name].index(call)

    def after(change: Tensor) -> Tensor:
        again = record_again(_Change(call.name, number, change))
        if target is None:
            return again.loss.detach()
        place = tape.neuron_calls.index(target)
        return again.neuron_calls[place].decided.detach()

    # In the direction of the gradient all that autograd promises adds up.
    direction = derivative / derivative.norm()
    promised = _SMALL * float(derivative.norm())
    if promised < _SEEN * float(before.abs().max()):
        return None
    if abs(float(((after(_SMALL * direction) - before) * _weights(before)).sum())) > _FELT * promised:
        return None
    unit = torch.zeros_like(derivative).flatten()
    unit[derivative.abs().argmax()] = 1.0
    results = [before, *(after(size * unit.reshape(derivative.shape)) for size in _LARGE)]
    moved = torch.stack([(result - before).flatten() for result in results])
    levels = max(len(set(column)) for column in (moved / (moved.abs().max() + 1e-30)).round(decimals=9).t().tolist())
    end = len(tape.calls) if target is None else target.order
    modules = [name for order in range(call.output.order + 1, end + 1) for name in tape.between.get(order, [])]
    return Jump(call.name, "the loss" if target is None else target.name, levels, tuple(dict.fromkeys(modules)))


class _Change:
    """Adds something to the output of one call of a layer."""

    def __init__(self, name: str, number: int, change: Tensor) -> None:
        self.name, self.number, self.change, self.made = name, number, change, 0

    def __call__(self, model: nn.Module) -> None:
        module = dict(model.named_modules()).get(self.name)
        if module is not None:
            module.register_forward_hook(self.add)

    def add(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        self.made += 1
        return output + self.change if self.made - 1 == self.number else None
