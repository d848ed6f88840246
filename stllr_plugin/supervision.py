"""Which time steps of a sequence, and which samples at each of them, receive a learning signal.

A :class:`Sequence` is a value. Each step that runs keeps the one that it belongs to, so that a backward pass that comes
later, after a reset or another sequence, still knows what held when the step ran.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stllr_plugin.errors import StateError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(eq=False)
class Sequence:
    """One sequence: how long it is, and which of its steps teach. Only ``steps`` moves on while it runs.

    Attributes:
        number: Which of the learner's sequences it is.
        last: Number of supervised steps at its end; None supervises every step.
        random: Number of supervised steps drawn at random; excludes ``last``.
        num_steps: Its length, if known.
        lengths: Length of each sample, int64 [B], if they differ.
        drawn: The steps that were drawn; None where nothing is drawn, or the length is not known.
        first: The first step that may be supervised for any sample, as far as can be known while the steps run.
        steps: Number of steps begun so far.
    """

    number: int = 0
    last: int | None = None
    random: int | None = None
    num_steps: int | None = None
    lengths: Tensor | None = None
    drawn: frozenset[int] | None = None
    first: int = 0
    steps: int = 0

    @property
    def clock(self) -> int:
        """Index of the step that runs or ran last; -1 before the first."""
        return self.steps - 1

    @property
    def all_supervised(self) -> bool:
        """Whether every step of every sample is."""
        return self.last is None and self.random is None and self.lengths is None

    def needs_graph(self, step: int) -> bool:
        """Whether any sample is supervised at this step, as far as can be known while it runs."""
        if self.random is None:
            return step >= self.first
        if self.drawn is None:
            raise StateError(
                f"supervise_random={self.random} draws the supervised steps beforehand, so it needs the length of the "
                "sequence: pass num_steps to the learner, or to learner.reset() before each sequence."
            )
        return step in self.drawn

    def ends_at(self, step: int) -> bool | None:
        """Whether no step after this one is supervised; None if that is not known."""
        if self.drawn is not None:
            return step >= max(self.drawn)
        if self.num_steps is not None:
            return step >= self.num_steps - 1
        return None if self.lengths is None else step >= int(self.lengths.max()) - 1

    def is_supervised(self, step: int) -> bool:
        """Whether a step is supervised, for samples that have not ended.

        With ``last`` and a sequence of unknown length: whether it would be if the sequence ended now.
        """
        if self.random is not None or self.last is None:
            return self.needs_graph(step)
        total = self.num_steps if self.num_steps is not None else self.steps
        return step >= total - self.last

    def rows(self, start: int, stop: int) -> Tensor | None:
        """Which samples learn at the steps from ``start`` to ``stop`` (exclusive), bool [steps * B]; None if all do."""
        if self.lengths is None:
            return None
        steps, lengths = torch.arange(start, stop).unsqueeze(1), self.lengths.cpu()
        found = steps < lengths
        if self.last is not None:
            found &= steps >= lengths - self.last
        return found.flatten()

    def mask(self, signal: Tensor, step: int) -> Tensor | None:
        """Drops the learning signal [B, ...] of samples that are not supervised at this step; None if none is.

        The signal of a sequence module, [1, B, ...], has its batch in the second dimension.
        """
        if self.random is not None and not self.needs_graph(step):
            return None
        if self.lengths is not None:
            batch = self.lengths.shape[0]
            if signal.shape[0] == 1 and signal.dim() > 1 and batch == signal.shape[1] != 1:
                masked = self.mask(signal[0], step)
                return None if masked is None else masked.unsqueeze(0)
            if batch != signal.shape[0]:
                raise StateError(f"reset(lengths) was given {batch} lengths for a batch of {signal.shape[0]}.")
            lengths = self.lengths.to(signal.device)
            rows = step < lengths
            if self.last is not None:
                rows = rows & (step >= lengths - self.last)
            return keep_rows(signal, rows)
        if self.last is None:
            return signal
        total = self.num_steps if self.num_steps is not None else self.steps
        return signal if step >= total - self.last else None


def keep_rows(signal: Tensor, rows: Tensor) -> Tensor:
    """A signal [N, ...] with zeros where ``rows``, bool [N], is false; not a product, since NaN times 0 is NaN."""
    return torch.where(rows.view(-1, *[1] * (signal.dim() - 1)), signal, torch.zeros_like(signal))


@dataclass(frozen=True, eq=False)
class Span:
    """One step, or several that run at once: what decides about them. It travels with their record.

    Attributes:
        sequence: The sequence to which they belong.
        step: The last of them.
        window: How they run at once; None for a single step.
    """

    sequence: Sequence
    step: int
    window: OpenWindow | None = None

    def mask(self, signal: Tensor) -> Tensor | None:
        """Drops the learning signal of steps and samples that are not supervised; None if none is."""
        if self.window is None:
            return self.sequence.mask(signal, self.step)
        if not self.window.supervised:
            return None
        rows = self.window.rows
        return signal if rows is None else keep_rows(signal, rows.to(signal.device))


@dataclass(frozen=True, eq=False)
class OpenWindow:
    """Time steps that run at once.

    Attributes:
        start: The first of them.
        stop: The one after the last.
        supervised: Whether a loss is given to them, all of them; else nothing keeps a graph.
        rows: Which steps and samples learn, bool [K * B], step 0 first; None for all.
    """

    start: int
    stop: int
    supervised: bool
    rows: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """K."""
        return self.stop - self.start


def checked_lengths(given: Any) -> Tensor:
    """The length of each sample, integer [B].

    Raises:
        StateError: If it is not that.
    """
    try:
        lengths = torch.as_tensor(given)
        kind = lengths.dtype
        if lengths.dim() == 1 and lengths.numel() and kind in _INTEGERS and not bool((lengths < 1).any()):
            return lengths
    except (TypeError, ValueError, RuntimeError):
        pass  # of another kind altogether
    raise StateError(f"lengths must be a 1-D integer tensor of values >= 1, one per sample; found {given!r}.")


class Supervision:
    """What the learner was told about supervised steps, and the sequence that runs.

    Attributes:
        last: Number of supervised steps at the end of each sequence; None supervises every step.
        random: Number of supervised steps drawn at random for each sequence; excludes ``last``.
        sequence: The running sequence.
        steps_run: Number of steps begun since the learner was attached.
    """

    def __init__(self, last: int | None, random: int | None) -> None:
        """See the class."""
        self.last = last
        self.random = random
        self.sequence = Sequence(last=last, random=random)
        self.steps_run = 0

    def begin(self, num_steps: int | None, lengths: Tensor | None, last: int | None = None) -> None:
        """Starts a sequence of known (or unknown) length.

        Args:
            num_steps: Its length.
            lengths: The length of each sample, integer [B].
            last: Number of supervised steps at its end, where that is not the learner's.

        Raises:
            StateError: If a length is not valid; the running sequence then goes on.
        """
        if lengths is not None:
            lengths = checked_lengths(lengths)
            longest = int(lengths.max())
            if num_steps is not None and num_steps < longest:
                raise StateError(f"num_steps={num_steps}, but the longest of the given lengths is {longest}.")
            lengths = lengths.clone()  # the caller may use the memory again before backward
        if num_steps is not None and (isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1):
            raise StateError(f"num_steps={num_steps!r}: expected a positive number of time steps.")
        last = self.last if last is None else last
        shortest = num_steps if lengths is None else int(lengths.min())
        drawn = None
        if self.random is not None:
            total = num_steps if num_steps is not None or lengths is None else int(lengths.max())
            if total is not None:
                drawn = frozenset(torch.randperm(total)[: self.random].tolist())
        first = 0 if last is None or shortest is None else max(0, shortest - last)
        self.sequence = Sequence(self.sequence.number + 1, last, self.random, num_steps, lengths, drawn, first)

    def begin_alike(self) -> None:
        """Starts a sequence with what was announced for the one before: a new one was evident."""
        before = self.sequence
        self.begin(before.num_steps, before.lengths, before.last)

    def extend(self, num_steps: int | None) -> None:
        """Announces further steps of the running sequence; None if their number is not known."""
        if num_steps is not None and (isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0):
            raise StateError(f"num_steps={num_steps!r}: expected a number of time steps, or None.")
        if self.random is not None:
            raise StateError(
                f"supervise_random={self.random} draws its steps for a whole sequence beforehand, so a stream cannot "
                "go on from a state. Pass the whole sequence to one stream."
            )
        running = self.sequence
        if running.num_steps is None:
            return
        total = None if num_steps is None else max(running.num_steps, running.steps + num_steps)
        first = running.first
        if running.last is not None and running.lengths is None:
            first = 0 if total is None else max(0, total - running.last)
        self.sequence = replace(running, num_steps=total, first=first)  # steps that ran keep what held for them

    def next_step(self) -> int:
        """Begins the next step of the running sequence; returns its index."""
        self.sequence.steps += 1
        self.steps_run += 1
        return self.sequence.clock

    @property
    def clock(self) -> int:
        """Index of the step that runs or ran last; -1 before the first."""
        return self.sequence.clock

    @property
    def num_steps(self) -> int | None:
        """Length of the running sequence, if known."""
        return self.sequence.num_steps

    @property
    def lengths(self) -> Tensor | None:
        """Length of each sample, int64 [B], if they differ."""
        return self.sequence.lengths

    @property
    def length_known(self) -> bool:
        """Whether it is known which steps are the last."""
        return self.num_steps is not None or self.lengths is not None

    def is_supervised(self, step: int) -> bool:
        """Whether a step of the running sequence is supervised, for samples that have not ended.

        With ``last`` and a sequence of unknown length: whether it would be if the sequence ended now.
        """
        return self.sequence.is_supervised(step)
