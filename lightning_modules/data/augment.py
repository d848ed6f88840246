"""Augmentations of event data that act on frames of counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Augmentation:
    """Small random changes of one recording.

    Attributes:
        max_shift: The recording is shifted by a whole number of frame pixels, drawn for rows and columns from
            ``-max_shift`` to ``max_shift``; what leaves the frame is lost.
        event_drop: Probability with which every single event is dropped.
        flip: Probability with which left and right are exchanged. Not for classes that differ by just that.
    """

    max_shift: int = 0
    event_drop: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.max_shift < 0:
            raise ValueError(f"max_shift must not be negative, got {self.max_shift}")
        if not 0 <= self.event_drop < 1:
            raise ValueError(f"event_drop must be at least 0 and less than 1, got {self.event_drop}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability, got {self.flip}")

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.max_shift > 0 or self.event_drop > 0 or self.flip > 0

    def __call__(self, frames: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Returns a changed copy of ``frames`` ``[steps, channels, height, width]``."""
        if self.max_shift:
            down, right = random.integers(-self.max_shift, self.max_shift + 1, size=2)
            frames = shift(frames, int(down), int(right))
        if self.flip and random.random() < self.flip:
            frames = np.ascontiguousarray(frames[..., ::-1])
        if self.event_drop:
            frames = frames.copy()
            filled = frames != 0
            frames[filled] = random.binomial(frames[filled], 1 - self.event_drop)
        return frames


def shift(frames: npt.NDArray[np.uint8], down: int, right: int) -> npt.NDArray[np.uint8]:
    """Moves the last two axes by whole pixels and fills with zeros."""
    height, width = frames.shape[-2:]
    moved = np.zeros_like(frames)
    if abs(down) < height and abs(right) < width:
        source = frames[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        moved[..., max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] = source
    return moved
