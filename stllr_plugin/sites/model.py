"""Around one call of the whole model: what it returns at a step that is not supervised teaches nothing.

Neurons and readouts drop such signals themselves. What lies behind them (a norm layer or a scale after the last
synapse) has no hook of ours, so its share is dropped where the model returns. Where the loop over time is inside
``forward``, that is so for outputs that are stacked over time; parameters behind other ones, such as a sum over time,
follow the caller's loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.marks import mark_of
from stllr_plugin.masked import masked
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.session import Session
from stllr_plugin.sites.unknown import look_for_spikes
from stllr_plugin.supervision import Sequence
from stllr_plugin.walk import find_calls

_FEW = 64  # nodes behind an output, among which its time steps are looked for


class ModelSite:
    """The attached model as a whole."""

    def __init__(self, session: Session, model: nn.Module) -> None:
        """See the class."""
        self.session = session
        self.model = model

    def attach(self) -> list[Any]:
        """Registers the hooks, behind those of synapses and neurons; returns their handles."""
        return [
            self.model.register_forward_pre_hook(_BeforeModel(self)),
            self.model.register_forward_hook(_AfterModel(self)),
        ]

    def before(self, args: tuple[Any, ...]) -> None:
        """Notes where the sequence stands."""
        if self.session.is_recording:
            self.session.enter()
            if self.session.updates.watching and self.session.window is None:
                sequence = self.session.sequence
                self.session.updates.see_input(sequence.number, not sequence.steps, args)
        self.session.time.call_begins(args[0].shape if args and isinstance(args[0], Tensor) else None)

    def after(self, output: Any) -> Any:
        """Masks the output of one time step; looks for neurons that the learner does not know behind the last layer."""
        sequence = self.session.sequence
        if not self.session.is_recording or self.session.window is not None:
            return None
        map_tensors(output, self._look)
        self.session.time.call_ends()
        if self.session.fold_steps > 1 and sequence.ends_at(sequence.clock):
            map_tensors(output, self._complete)
        if sequence.all_supervised:
            return None
        step, count = sequence.clock, self.session.time.steps_of_call
        if count > 1:  # the loop over time is inside
            return map_tensors(output, lambda tensor: _of_steps(tensor, sequence, range(step - count + 1, step + 1)))
        if not sequence.needs_graph(step):
            return map_tensors(output, Tensor.detach)
        return map_tensors(output, lambda tensor: _of_step(tensor, sequence, step))

    def _complete(self, tensor: Tensor) -> Tensor:
        """The last step's backward pass brings in what waits, also where it comes by no neuron."""
        if tensor.requires_grad and tensor.grad_fn is not None:
            session, span = self.session, self.session.span(self.session.clock)
            tensor.register_hook(lambda _: session.complete_after(span))
        return tensor

    def _look(self, tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:
            number = self.session.time.model_calls
            calls, _ = find_calls(tensor.grad_fn, tensor.shape, behind=self.session.weights, number=number)
            look_for_spikes(self.session, "the loss (the model's output)", tensor, [call for _, call, _ in calls])
        return tensor


def _of_step(tensor: Tensor, sequence: Sequence, step: int) -> Tensor:
    lengths = sequence.lengths
    per_sample = lengths is None or (tensor.dim() > 0 and tensor.shape[0] == lengths.shape[0])
    return masked(tensor, lambda grad: sequence.mask(grad, step)) if per_sample else tensor


def _of_steps(tensor: Tensor, sequence: Sequence, steps: range) -> Tensor:
    """An output that holds all steps of a call along one dimension: each step is masked on its own."""
    dim = None if tensor.grad_fn is None else _time_of(tensor, len(steps))
    if dim is None:
        return tensor

    def mask(grad: Tensor) -> Tensor:
        rows = []
        for step, row in zip(steps, grad.unbind(dim), strict=True):
            lengths = sequence.lengths
            fits = lengths is None or (row.dim() > 0 and row.shape[0] == lengths.shape[0])
            shown = sequence.mask(row, step) if fits and sequence.needs_graph(step) else None if fits else row
            rows.append(torch.zeros_like(row) if shown is None else shown)
        return torch.stack(rows, dim)

    return masked(tensor, mask)


def _time_of(tensor: Tensor, count: int) -> int | None:
    """The dimension along which outputs of ``count`` steps were stacked, if that can be told."""
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack and len(seen) < _FEW:
        node = stack.pop()
        if node is None or node in seen or mark_of(node) is not None:
            continue
        seen.add(node)
        if type(node).__name__ == "StackBackward0" and len(node.next_functions) == count:
            shape = node._input_metadata[0].shape
            dim: int = node._saved_dim
            dim -= 2**64 if dim >= 2**63 else 0
            dim += len(shape) if dim < 0 else 0
            return dim if tensor.dim() > dim and tensor.shape[dim] == count else None
        stack += [following for following, _ in node.next_functions]
    return None


class _BeforeModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.site.before(args)


class _AfterModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.site.after(output)
