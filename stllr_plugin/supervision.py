"""Which time steps of a sequence are supervised.

``supervise_last=k`` supervises the last k steps, ``supervise_random=k`` k steps drawn for each sequence. Where the
length is known beforehand (``num_steps``, or one length per sample) the steps that are not supervised keep no graph at
all; where it is not, the learning signals of those before the last k are dropped when the backward pass reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stllr_plugin.errors import StateError


@dataclass
class Supervision:
    """The supervised steps of the running sequence.

    Attributes:
        last: Number of supervised steps at the end of each sequence; None supervises every step.
        random: Number of supervised steps drawn at random for each sequence; excludes ``last``.
        num_steps: Length of the sequence, if known.
        lengths: Length of each sample, int64 [B], if they differ.
        clock: Index of the step that runs or ran last; -1 before the first.
        steps_run: Number of steps begun since the learner was attached.
        window: While several steps run at once: whether they are supervised, all of them; None otherwise.
        rows: In a window: which of its steps and samples are supervised, bool [K * B], step 0 first; None for all.
    """

    last: int | None = None
    random: int | None = None
    num_steps: int | None = None
    lengths: Tensor | None = None
    clock: int = -1
    steps_run: int = 0
    window: bool | None = None
    rows: Tensor | None = None
    _first: int = 0
    _drawn: frozenset[int] | None = None

    def begin(self, num_steps: int | None, lengths: Tensor | None) -> None:
        """Starts a sequence of known (or unknown) length."""
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            if lengths.dim() != 1 or lengths.is_floating_point() or bool((lengths < 1).any()):
                raise StateError(
                    f"lengths must be a 1-D integer tensor of values >= 1, one per sample; found {lengths!r}."
                )
            longest = int(lengths.max())
            if num_steps is not None and num_steps < longest:
                raise StateError(f"num_steps={num_steps}, but the longest of the given lengths is {longest}.")
        if num_steps is not None and num_steps < 1:
            raise StateError(f"num_steps={num_steps}: expected a positive number of time steps.")
        self.num_steps, self.lengths, self.clock = num_steps, lengths, -1
        shortest = num_steps if lengths is None else int(lengths.min())
        self._first = 0 if self.last is None or shortest is None else max(0, shortest - self.last)
        self._drawn = None
        if self.random is not None:
            total = num_steps if num_steps is not None or lengths is None else int(lengths.max())
            if total is not None:
                self._drawn = frozenset(torch.randperm(total)[: self.random].tolist())

    def extend(self, num_steps: int | None) -> None:
        """Announces further steps of the running sequence; None if their number is not known."""
        if self.random is not None:
            raise StateError(
                f"supervise_random={self.random} draws its steps for a whole sequence beforehand, so a stream cannot "
                "go on "
                "from a state. Pass the whole sequence to one stream."
            )
        if self.num_steps is None:
            return
        self.num_steps = None if num_steps is None else max(self.num_steps, self.clock + 1 + num_steps)
        if self.last is not None and self.lengths is None:
            self._first = 0 if self.num_steps is None else max(0, self.num_steps - self.last)

    def enter(self, step: int) -> None:
        """Moves the clock to the step that a neuron runs now; the first neuron of a step begins it."""
        if step != self.clock:
            self.clock = step
            self.steps_run += 1

    def needs_graph(self, step: int) -> bool:
        """Whether any sample is supervised at this step, as far as can be known while it runs."""
        if self.window is not None:
            return self.window
        if self.random is None:
            return step >= self._first
        if self._drawn is None:
            raise StateError(
                f"supervise_random={self.random} draws the supervised steps beforehand, so it needs the length of the "
                "sequence: pass num_steps to the learner, or to learner.reset() before each sequence."
            )
        return step in self._drawn

    def ends_at(self, step: int) -> bool | None:
        """Whether no step after this one is supervised; None if that is not known."""
        if self._drawn is not None:
            return step >= max(self._drawn)
        if self.num_steps is not None:
            return step >= self.num_steps - 1
        return None if self.lengths is None else step >= int(self.lengths.max()) - 1

    def is_supervised(self, step: int) -> bool:
        """Whether a step of the running sequence is supervised, for samples that have not ended.

        With ``last`` and a sequence of unknown length: whether it would be if the sequence ended now.
        """
        if self.random is not None or self.last is None:
            return self.needs_graph(step)
        total = self.num_steps if self.num_steps is not None else self.clock + 1
        return step >= total - self.last

    def mask(self, signal: Tensor, step: int) -> Tensor | None:
        """Drops the learning signal [B, ...] of samples that are not supervised at this step; None if none is.

        The signal of a sequence module, [1, B, ...], has its batch in the second dimension.
        """
        if self.window is not None:
            if not self.window or self.rows is None:
                return signal if self.window else None
            rows = self.rows.to(signal.device).view(-1, *[1] * (signal.dim() - 1))
            return torch.where(rows, signal, torch.zeros_like(signal))
        if self.random is not None and not self.needs_graph(step):
            return None
        if self.lengths is not None:
            lengths = self.lengths.to(signal.device)
            if signal.shape[0] == 1 and signal.dim() > 1 and lengths.shape[0] == signal.shape[1] != 1:
                masked = self.mask(signal[0], step)
                return None if masked is None else masked.unsqueeze(0)
            if lengths.shape[0] != signal.shape[0]:
                raise StateError(
                    f"reset(lengths) was given {lengths.shape[0]} lengths for a batch of {signal.shape[0]}."
                )
            rows = step < lengths
            if self.last is not None:
                rows = rows & (step >= lengths - self.last)
            return torch.where(rows.view(-1, *[1] * (signal.dim() - 1)), signal, torch.zeros_like(signal))
        if self.last is None:
            return signal
        total = self.num_steps if self.num_steps is not None else self.clock + 1
        return signal if step >= total - self.last else None
