"""Training on several time steps at once (``window=K``), by the learner's fast path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from lightning_modules.tasks.base import SpikingTask


def learn_in_windows(
    task: SpikingTask,
    frames: Tensor,
    valid: Tensor,
    supervised: Sequence[bool],
    loss_at: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """Trains on one batch; the counterpart of a loop of ``network``, ``task.learn`` and ``task.end_step``.

    Args:
        task: The task, after its ``begin_sequence``.
        frames: [B, T, ...].
        valid: Which steps of each sample are no padding, bool [T, B].
        supervised: Which of the T steps have a loss.
        loss_at: The loss of one step, from the network's output and the number of the step.

    Returns:
        The network's output at each step, detached.
    """
    assert task.learner is not None and task.window is not None
    num_steps = len(supervised)
    every = task.update_every or num_steps
    result, outputs = None, []
    for start in range(0, num_steps, every):
        stop = min(start + every, num_steps)
        part = _Part(task, start, valid, max((t for t in range(start, stop) if supervised[t]), default=-1))
        task.active = None
        result = task.learner.run(
            task.network,
            frames[:, start:stop].transpose(0, 1),
            list(range(start, stop)),
            lambda output, t: loss_at(output, t) if supervised[t] else None,
            window=task.window,
            # Within parts of a sequence the loss alone says which steps count.
            supervise_last=None if every >= num_steps else stop - start,
            lengths=valid.sum(0) if every >= num_steps else None,
            backward=part.backward,
            continue_from=result,
            before_window=part.before_window,
        )
        outputs += result.outputs
        if stop < num_steps:  # the last update comes at the end of the sequence
            task.end_step(stop - 1)
    return outputs


class _Part:
    """The steps up to an update."""

    def __init__(self, task: SpikingTask, start: int, valid: Tensor, last: int) -> None:
        self.task, self.start, self.valid, self.last = task, start, valid, last
        self.reached = False

    def before_window(self, first: int, end: int) -> None:
        """Tells callbacks which rows are no padding, and whether the last supervised step is among these."""
        first, end = self.start + first, self.start + end
        self.task.active = self.valid[first:end].flatten()
        self.reached = first <= self.last < end

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a window."""
        self.task.learn(loss, last=self.reached)
