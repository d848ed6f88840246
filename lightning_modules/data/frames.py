"""Events to frames: counts per time step, polarity and pixel."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    num_steps: int | None = None
    bin_us: int | None = None
    downsample: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.num_steps is None and self.bin_us is None:
            raise ValueError("give num_steps (equal division) or bin_us (steps of this duration) or both")
        for name in ("num_steps", "bin_us", "downsample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def step_us(self, duration_us: int) -> float:
        """Duration of a step for recordings that nominally last ``duration_us``."""
        if self.bin_us is not None:
            return float(self.bin_us)
        assert self.num_steps is not None
        return duration_us / self.num_steps

    def frame_size(self, sensor_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a frame."""
        return -(-sensor_size[0] // self.downsample), -(-sensor_size[1] // self.downsample)


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
        row, column = packed.y[part].astype(np.int64), packed.x[part].astype(np.int64)
        cell = (step + offsets[owner] - offsets[low]) * 2 + packed.polarities(low, high)
        cell = (cell * height + row // binning.downsample) * width + column // binning.downsample
        target = frames[offsets[low] : offsets[high]]
        counts = np.bincount(cell[step < steps[owner]], minlength=target.size)
        target[...] = np.minimum(counts, 255).reshape(target.shape)
    return FrameStore(frames, offsets)


def _steps_per_recording(packed: PackedEvents, binning: Binning, step_us: float) -> npt.NDArray[np.int64]:
    if binning.bin_us is None:
        assert binning.num_steps is not None
        return np.full(len(packed), binning.num_steps, dtype=np.int64)
    last = np.zeros(len(packed), dtype=np.int64)
    filled = np.diff(packed.offsets) > 0
    last[filled] = packed.times()[packed.offsets[1:][filled] - 1]
    steps = (last / step_us).astype(np.int64) + 1
    return steps if binning.num_steps is None else np.minimum(steps, binning.num_steps)
