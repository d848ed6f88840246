"""``learner.run``: a whole sequence, several time steps at once where the model allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stllr_plugin.errors import SequenceInputError, StateError
from stllr_plugin.masked import masked
from stllr_plugin.network import Network
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.responses.base import NeedsStepsError
from stllr_plugin.session import several_processes
from stllr_plugin.supervision import OpenWindow, Span, checked_lengths
from stllr_plugin.ways.stream import make_stream
from stllr_plugin.ways.windows.check import Model, leaves_of, why_steps
from stllr_plugin.ways.windows.window import Window
from stllr_plugin.ways.within import checked_loss, refuse_no_function, refuse_other_network

LossFunction = Callable[[Any, Any], "Tensor | None"]


@dataclass
class RunResult:
    """What ``learner.run`` did.

    Attributes:
        loss: Sum of the supervised steps' losses, detached; 0.0 if there was none.
        supervised_steps: How many steps had a loss.
        outputs: What the model returned at each step, detached; empty if they were not to be kept.
        steps_because: Why the model ran step by step; None if it ran in windows.
        state: What a model that passes its state in and out returned at the end (Norse); for ``continue_from``.
        sequence: Number of the learner's sequence that ran.
        session: Number of the learner that ran it.
    """

    loss: Tensor | float = 0.0
    supervised_steps: int = 0
    outputs: list[Any] = field(default_factory=list)
    steps_because: str | None = None
    state: Any = None
    sequence: int = -1
    session: int = -1


def run(
    network: Network,
    net: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    targets: Any,
    loss_fn: LossFunction,
    *,
    window: int,
    supervise_last: int | None,
    lengths: Tensor | None,
    backward: Callable[[Tensor], Any] | None,
    keep_outputs: bool,
    continue_from: RunResult | None,
    before_window: Callable[[int, int], Any] | None,
) -> RunResult:
    """See ``STLLRLearner.run``."""
    if before_window is not None:
        refuse_no_function(before_window, "before_window", "run()")
    task = _Task(network, net, inputs, targets, loss_fn, window, supervise_last, lengths, backward, keep_outputs)
    task.before_window = before_window or task.before_window
    if continue_from is None:
        reason = task.agreed(why_steps(network, task.model, task.inputs))
    else:
        task.go_on_from(continue_from)
        reason = continue_from.steps_because
    if reason is None:
        result = task.in_windows()
        network.run_notes = f"in windows of {window} steps"
    else:
        network.run_notes = f"step by step: {reason}"
        result = task.step_by_step()
        result.steps_because = reason
    network.complete()
    result.sequence, result.session = network.session.sequence.number, network.session.number
    return result


class _Task:
    """The arguments of one run, checked."""

    def __init__(
        self,
        network: Network,
        net: Callable[..., Any],
        inputs: Tensor | Sequence[Tensor],
        targets: Any,
        loss_fn: LossFunction,
        window: int,
        supervise_last: int | None,
        lengths: Tensor | None,
        backward: Callable[[Tensor], Any] | None,
        keep_outputs: bool,
    ) -> None:
        if not network.session.is_recording:
            raise StateError(
                "run() trains: call model.train(), leave torch.no_grad() and enable the learner. To evaluate, call the "
                "model at each step, or learner.stream(inputs)."
            )
        refuse_other_network(network, net, "run()")
        refuse_no_function(loss_fn, "loss_fn", "run()")
        if backward is not None:
            refuse_no_function(backward, "backward", "run()")
        self.network = network
        self.net = net
        self.inputs = _checked_inputs(inputs)
        self.num_steps, self.batch = len(self.inputs), self.inputs[0].shape[0]
        self.targets = _per_step(targets, self.num_steps, self.batch)
        self.long_targets = [value for value in _for_all_steps(targets) if value.shape[:1] == (self.num_steps,)]
        self.loss_fn = loss_fn
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise StateError(f"window={window!r}: expected a positive number of time steps.")
        self.window = window
        self.last = network.session.supervision.last if supervise_last is None else supervise_last
        if self.last is not None and (isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1):
            raise StateError(f"supervise_last={self.last!r}: expected a positive number of time steps, or None.")
        self.lengths = None if lengths is None else checked_lengths(lengths)
        if self.lengths is not None and self.lengths.shape != (self.batch,):
            raise StateError(
                f"run() got lengths of shape {tuple(self.lengths.shape)} for a batch of {self.batch}; pass one integer "
                "per sample."
            )
        if self.lengths is not None and int(self.lengths.max()) > self.num_steps:
            raise StateError(
                f"run() got inputs of {self.num_steps} time steps, but the longest of the given lengths is "
                f"{int(self.lengths.max())}."
            )
        self.backward = torch.Tensor.backward if backward is None else backward
        self.keep_outputs = keep_outputs
        self.model = Model(network, net)
        self.begins = True
        self.common_first: int | None = None  # of all processes
        self.steps_before = 0
        self.before_window: Callable[[int, int], Any] = lambda start, stop: None

    def go_on_from(self, before: RunResult) -> None:
        """Makes this a further part of the sequence that another run began."""
        if self.lengths is not None or self.first_supervised > 0:
            raise StateError(
                "continue_from goes on with a sequence; lengths and supervise_last belong to its whole. Leave the loss "
                "of single steps out by returning None from loss_fn."
            )
        if not isinstance(before, RunResult):
            raise StateError(f"continue_from={before!r}: expected what an earlier run() of this learner returned.")
        if before.session != self.network.session.number:
            raise StateError(
                "continue_from was given the result of another learner, or of none. Pass what run() of this learner "
                "returned for the part of the sequence before."
            )
        if before.sequence != self.network.session.sequence.number:
            raise StateError(
                "continue_from goes on with a sequence that has ended since: step() ends it, unless the learner was "
                "built with reset_after_step=False, and so do reset() and another run(). Build the learner with "
                "reset_after_step=False, or leave continue_from out to begin a sequence."
            )
        self.begins = False
        self.steps_before = self.network.session.sequence.steps
        self.model.state = before.state

    def agreed(self, reason: str | None) -> str | None:
        """Whether all processes can run in windows; sees to it that they cut the same ones.

        What processes exchange must not depend on the data that one of them has. So they speak once in each run.
        """
        if not several_processes():
            return reason
        mine = [float(reason is not None), -self.first_supervised]
        all_of = torch.tensor(mine, device=self.inputs[0].device)
        torch.distributed.all_reduce(all_of, torch.distributed.ReduceOp.MAX)
        must_step, first = (int(value) for value in all_of.cpu())
        self.common_first = -first
        return "another process must run step by step" if reason is None and must_step else reason

    @property
    def first_supervised(self) -> int:
        """The first step that is supervised for any sample."""
        if self.last is None:
            return 0
        shortest = self.num_steps if self.lengths is None else int(self.lengths.min())
        return max(0, shortest - self.last)

    def step_by_step(self) -> RunResult:
        """One step after the other."""
        result = RunResult()
        supervision, first = self.network.session.supervision, self.first_supervised
        self.before_window(0, 1)
        for t, output in enumerate(self._outputs()):
            wanted = t >= first if supervision.random is None else supervision.is_supervised(t)
            if wanted:
                loss = self._loss(output, t)
                self._learn(result, loss, t == self.num_steps - 1)
                result.supervised_steps += loss is not None
            if self.keep_outputs:
                result.outputs.append(map_tensors(output, torch.Tensor.detach))
            if t + 1 < self.num_steps:
                self.before_window(t + 1, t + 2)
        result.state = self.model.state
        return result

    def _outputs(self) -> Iterator[Any]:
        if self.begins:
            data = self.inputs if isinstance(self.inputs, Tensor) else list(self.inputs)
            stream = make_stream(self.network, data, None, self.lengths, self.net, self.last)
            yield from stream
            self.model.state = stream.state
        elif self.network.keeps_time:
            raise StateError("continue_from is for models whose call is one time step [batch, ...].")
        else:
            self.network.session.supervision.extend(self.num_steps)
            yield from map(self.model, self.inputs)

    def in_windows(self) -> RunResult:
        """A window of steps after the other; the weights' gradients are those of one step after the other."""
        network, result = self.network, RunResult()
        if self.begins:
            network.begin_sequence(self.num_steps, self.lengths, keep_target=True, last=self.last)
        for start, stop, supervised in self._windows():
            try:
                loss = self._one_window(result, start, stop, supervised)
                self._learn(result, loss, stop == self.num_steps)
            except NeedsStepsError as error:
                raise StateError(f"run() cannot go on at step {start}: {error}.") from error
        result.state = map_tensors(self.model.state, torch.Tensor.detach)
        return result

    def _windows(self) -> Iterator[tuple[int, int, bool]]:
        first = self.first_supervised if self.common_first is None else self.common_first
        for begin, end, supervised in ((0, first, False), (first, self.num_steps, True)):
            for start in range(begin, end, self.window):
                yield start, min(start + self.window, end), supervised

    def _one_window(self, result: RunResult, start: int, stop: int, supervised: bool) -> Tensor | None:
        count, session = stop - start, self.network.session
        self.before_window(start, stop)
        rows = session.sequence.rows(start, stop)
        rows = None if rows is None else rows.to(self.inputs[0].device)
        # A run that goes on from another counts its steps from there.
        opened = OpenWindow(self.steps_before + start, self.steps_before + stop, supervised, rows)
        with Window(self.network, opened, self.batch):
            output = self.model(stacked(self.inputs, start, stop))
        if self.keep_outputs:
            result.outputs += [map_tensors(output, self._step(t, count, detached=True)) for t in range(count)]
        if not supervised:
            return None
        if rows is not None:  # what lies behind the last synapse has no part of the learner's on its way
            span = Span(session.sequence, opened.stop - 1, opened)
            output = map_tensors(output, lambda leaf: masked(leaf, span.mask) if _has_rows(leaf, rows) else leaf)
        steps = [map_tensors(output, self._step(t, count)) for t in range(count)]
        total = None
        for t, step in enumerate(steps):
            loss = self._loss(step, start + t)
            if loss is not None:
                total = loss if total is None else total + loss
                result.supervised_steps += 1
        return total

    def _step(self, t: int, num_steps: int, detached: bool = False) -> Callable[[Tensor], Tensor]:
        """Takes one step of a window out of a tensor [K * B, ...]."""
        part = slice(t * self.batch, (t + 1) * self.batch)

        def take(tensor: Tensor) -> Tensor:
            tensor = tensor.detach() if detached else tensor
            return tensor[part] if tensor.shape[:1] == (num_steps * self.batch,) else tensor

        return take

    def _loss(self, output: Any, t: int) -> Tensor | None:
        """The loss of a step; None if it has none.

        Raises:
            StateError: If it is no loss.
            SequenceInputError: If the target has a dimension that the output lacks: it would be broadcast.
        """
        target = self.targets(t)
        for value in self.long_targets:
            if value.ndim > max((leaf.dim() for leaf in leaves_of(output)), default=value.ndim):
                raise _which_steps(value)
        loss = self.loss_fn(output, target)
        return None if loss is None else checked_loss(loss, "run()")

    def _learn(self, result: RunResult, loss: Tensor | None, last: bool) -> None:
        if loss is None:
            return
        with nullcontext() if last else self._no_gradient_sync():
            self.backward(loss)
        result.loss = result.loss + loss.detach()

    def _no_gradient_sync(self) -> AbstractContextManager[Any]:
        """DistributedDataParallel averages once, in the last backward pass."""
        no_sync = getattr(self.net, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()


def stacked(inputs: Tensor | Sequence[Tensor], start: int, stop: int) -> Tensor:
    """The steps of a window as one batch, [K * B, ...]."""
    part = inputs[start:stop]
    steps = part if isinstance(part, Tensor) else torch.stack(list(part))
    return steps.flatten(0, 1)


def _has_rows(tensor: Tensor, rows: Tensor) -> bool:
    return tensor.shape[:1] == rows.shape


def _checked_inputs(inputs: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    tensor = isinstance(inputs, Tensor)
    if not tensor and not (isinstance(inputs, Sequence) and all(isinstance(x, Tensor) for x in inputs)):
        raise SequenceInputError(
            "run() takes the inputs as a tensor [time, batch, ...] or a list of one tensor [batch, ...] per time step; "
            f"found {type(inputs).__name__}."
        )
    parts: Sequence[Tensor] = [inputs] if isinstance(inputs, Tensor) else inputs
    odd = next((x for x in parts if x.layout != torch.strided or x.is_complex() or x.is_meta), None)
    if odd is not None:
        raise SequenceInputError(
            f"run() takes dense tensors of real values; found {odd.dtype}, {odd.layout}, on {odd.device}. Convert "
            "them, as by to_dense()."
        )
    if (tensor and inputs.dim() < 2) or len(inputs) == 0 or inputs[0].dim() == 0:  # type: ignore[union-attr]
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else "an empty list or scalars"
        raise SequenceInputError(f"run() takes inputs [time, batch, ...] of at least one time step; found {found}.")
    for what, seen in (
        ("shape", {str(tuple(x.shape)) for x in parts}),
        ("type", {str(x.dtype) for x in parts}),
        ("device", {str(x.device) for x in parts}),
    ):
        if len(seen) > 1:
            raise SequenceInputError(f"run() takes inputs of one {what} at all time steps; found {sorted(seen)}.")
    return inputs


def _per_step(targets: Any, num_steps: int, batch: int) -> Callable[[int], Any]:
    """The target of each step."""
    if isinstance(targets, (list, tuple)):
        if len(targets) != num_steps:
            raise SequenceInputError(f"run() got a list of {len(targets)} targets for {num_steps} time steps.")
        return targets.__getitem__
    for value in _for_all_steps(targets):
        # One for all steps begins with the batch. As long as the sequence, it may be one per step.
        if value.shape[:1] == (num_steps,) and (num_steps != batch or value.shape[1:2] == (batch,)):
            raise _which_steps(value)
    return lambda t: targets


def _for_all_steps(targets: Any) -> list[Any]:
    """The tensors (or arrays) among targets that every step gets."""
    if isinstance(targets, (list, tuple)):
        return []
    values = targets.values() if isinstance(targets, Mapping) else (targets,)
    return [value for value in values if isinstance(getattr(value, "shape", None), tuple)]


def _which_steps(targets: Any) -> SequenceInputError:
    return SequenceInputError(
        f"run() got targets of shape {tuple(targets.shape)}: one per time step, or one for all steps? For one per step "
        "pass a list, list(targets). What is the same at all steps can be left out of the targets and used in loss_fn: "
        "loss_fn=lambda output, _: loss(output, targets)."
    )
