"""Events to frames: counts per time step, polarity and pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .packed import PackedEvents

_BINNED_AT_ONCE = 64


@dataclass(frozen=True)
class Binning:
    """How recordings are cut into time steps.

    With ``num_steps`` alone every recording has that many steps, which divide ``duration_us`` equally. With ``bin_us``
    steps last that long and a recording has as many as it needs up to its last event, ``num_steps`` at most where that
    is given too. Step ``k`` holds the events with ``k * bin_us <= t < (k + 1) * bin_us``, counted from time 0 of the
    recording; what comes later is left out.

    Attributes:
        num_steps: Number of time steps, or their largest number.
        bin_us: Duration of a step in microseconds.
        downsample: Side of the square of pixels whose events are summed.
        size: Height and width of a frame, onto which the sensor's pixels are scaled (instead of ``downsample``).
        own_duration: ``num_steps`` divide each recording's own duration, from its first to its last event.
    """

    num_steps: int | None = None
    bin_us: int | None = None
    downsample: int = 1
    size: tuple[int, int] | None = None
    own_duration: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.num_steps is None and self.bin_us is None:
            raise ValueError("give num_steps (equal division) or bin_us (steps of this duration) or both")
        for name in ("num_steps", "bin_us", "downsample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size is not None:
            if len(self.size) != 2 or min(self.size) < 1:
                raise ValueError(f"size must be height and width of a frame, got {self.size}")
            if self.downsample != 1:
                raise ValueError(f"give size or downsample, not both: got {self.size} and {self.downsample}")
            object.__setattr__(self, "size", tuple(self.size))
        if self.own_duration and (self.num_steps is None or self.bin_us is not None):
            raise ValueError("own_duration divides by num_steps alone; leave bin_us out")

    def step_us(self, duration_us: int) -> float:
        """Duration of a step for recordings that nominally last ``duration_us``."""
        if self.bin_us is not None:
            return float(self.bin_us)
        assert self.num_steps is not None
        return duration_us / self.num_steps

    def frame_size(self, sensor_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a frame."""
        if self.size is not None:
            return self.size
        return -(-sensor_size[0] // self.downsample), -(-sensor_size[1] // self.downsample)

    def cells(
        self, y: npt.NDArray[Any], x: npt.NDArray[Any], sensor_size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows and columns of the frame into which pixels of the sensor fall."""
        row, column = y.astype(np.int64), x.astype(np.int64)
        if self.size is None:
            return row // self.downsample, column // self.downsample
        return row * self.size[0] // sensor_size[0], column * self.size[1] // sensor_size[1]


@dataclass(frozen=True, eq=False)
class FrameStore:
    """Frames of many recordings, one after another, as bytes.

    Attributes:
        frames: Event counts ``[all steps, 2, height, width]``, channel 0 OFF and 1 ON; counts above 255 are stored as
            255.
        offsets: First step of each recording, and the total at the end.
    """

    frames: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Counts of one recording, ``[steps, 2, height, width]`` (a view)."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]


def bin_events(packed: PackedEvents, binning: Binning, duration_us: int) -> FrameStore:
    """Counts the events of every recording per time step, polarity and pixel.

    A recording without events has ``num_steps`` frames of zeros, or a single one where the length follows the events.

    Args:
        packed: The recordings.
        binning: Time steps and spatial resolution.
        duration_us: Nominal duration of a recording, which ``num_steps`` alone divides.
    """
    if binning.own_duration:
        each = [count_events(packed.recording(i), binning, packed.sensor_size, duration_us) for i in range(len(packed))]
        lengths = np.array([len(one) for one in each], dtype=np.int64)
        empty = np.zeros((0, 2, *binning.frame_size(packed.sensor_size)), np.uint8)
        return FrameStore(np.concatenate([*each, empty]), np.concatenate(([0], np.cumsum(lengths))))
    height, width = binning.frame_size(packed.sensor_size)
    step_us = binning.step_us(duration_us)
    steps = _steps_per_recording(packed, binning, step_us)
    offsets = np.concatenate(([0], np.cumsum(steps)))
    frames = np.empty((int(offsets[-1]), 2, height, width), dtype=np.uint8)
    for low in range(0, len(packed), _BINNED_AT_ONCE):
        high = min(low + _BINNED_AT_ONCE, len(packed))
        part = slice(int(packed.offsets[low]), int(packed.offsets[high]))
        step = (packed.times(low, high) / step_us).astype(np.int64)
        owner = np.repeat(np.arange(low, high), np.diff(packed.offsets[low : high + 1]))
        row, column = binning.cells(packed.y[part], packed.x[part], packed.sensor_size)
        cell = (step + offsets[owner] - offsets[low]) * 2 + packed.polarities(low, high)
        cell = (cell * height + row) * width + column
        target = frames[offsets[low] : offsets[high]]
        counts = np.bincount(cell[step < steps[owner]], minlength=target.size)
        target[...] = np.minimum(counts, 255).reshape(target.shape)
    return FrameStore(frames, offsets)


def count_events(
    events: npt.NDArray[np.void], binning: Binning, sensor_size: tuple[int, int], duration_us: int
) -> npt.NDArray[np.uint8]:
    """Counts the events of one recording per time step, polarity and pixel.

    Args:
        events: Fields x, y, t, p; all on the sensor, times from 0, in any order.
        binning: Time steps and spatial resolution.
        sensor_size: Height and width in pixels.
        duration_us: Nominal duration of a recording.

    Returns:
        Frames ``[steps, 2, height, width]``; counts above 255 are 255.
    """
    height, width = binning.frame_size(sensor_size)
    t = events["t"]
    last = int(t.max()) if len(t) else 0
    if binning.own_duration:
        assert binning.num_steps is not None
        first = int(t.min()) if len(t) else 0
        steps, step = binning.num_steps, (t - first) * binning.num_steps // (last - first + 1)
    else:
        step_us = binning.step_us(duration_us)
        step = (t / step_us).astype(np.int64)
        needed = int(last / step_us) + 1
        if binning.num_steps is None:
            steps = needed
        else:
            steps = binning.num_steps if binning.bin_us is None else min(needed, binning.num_steps)
    row, column = binning.cells(events["y"], events["x"], sensor_size)
    cell = ((step * 2 + events["p"]) * height + row) * width + column
    counts = np.bincount(cell[step < steps], minlength=steps * 2 * height * width)
    return np.minimum(counts, 255).astype(np.uint8).reshape(steps, 2, height, width)


def _steps_per_recording(packed: PackedEvents, binning: Binning, step_us: float) -> npt.NDArray[np.int64]:
    if binning.bin_us is None:
        assert binning.num_steps is not None
        return np.full(len(packed), binning.num_steps, dtype=np.int64)
    last = np.zeros(len(packed), dtype=np.int64)
    filled = np.diff(packed.offsets) > 0
    last[filled] = packed.times()[packed.offsets[1:][filled] - 1]
    steps = (last / step_us).astype(np.int64) + 1
    return steps if binning.num_steps is None else np.minimum(steps, binning.num_steps)
