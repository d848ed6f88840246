"""A simulated event camera: log intensity over time in, events out.

Each pixel compares the log intensity with the level of its last reset and fires ON (OFF) when the difference reaches
its own threshold; the time of the crossing is interpolated within the step. After an event the pixel rests for the
refractory period and takes the level at its end as the new reference. The reference leaks towards ON events, and noise
events of either polarity come at random, at a high rate from a few hot pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CameraSettings:
    """Properties of a simulated sensor; the defaults resemble the recordings of N-MNIST.

    Attributes:
        threshold: Mean change of log intensity that makes an event.
        mismatch: Standard deviation of the thresholds between pixels, relative to the mean.
        refractory_us: Rest after an event.
        leak_hz: Mean rate of ON events that a pixel's leak makes without any change of intensity.
        noise_hz: Mean rate of noise events of a pixel.
        hot_pixels: Number of pixels with the rate ``hot_hz``.
        hot_hz: Rate of noise events of a hot pixel.
    """

    threshold: float = 0.25
    mismatch: float = 0.1
    refractory_us: int = 1000
    leak_hz: float = 0.1
    noise_hz: float = 0.3
    hot_pixels: int = 2
    hot_hz: float = 30.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        if not 0 <= self.mismatch <= 0.3:
            raise ValueError(f"mismatch must be 0 to 0.3 (thresholds must stay positive), got {self.mismatch}")
        for name in ("refractory_us", "leak_hz", "noise_hz", "hot_pixels", "hot_hz"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class PixelEvents(NamedTuple):
    """Events of several recordings, sorted by recording and time."""

    pixel: npt.NDArray[np.int64]
    t: npt.NDArray[np.int64]
    p: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]
    """Number of events of each recording."""


class _Found(NamedTuple):
    """Events in any order."""

    recording: npt.NDArray[np.int64]
    pixel: npt.NDArray[np.int64]
    t: npt.NDArray[np.int64]
    p: npt.NDArray[np.bool_]


class EventCamera:
    """One sensor, whose thresholds, leaks and hot pixels follow from the seed and never change.

    Args:
        settings: Properties of the sensor.
        pixels: Number of pixels.
        seed: Seed of what differs from pixel to pixel.
    """

    def __init__(self, settings: CameraSettings, pixels: int, seed: int | Sequence[int]) -> None:
        if settings.hot_pixels > pixels:
            raise ValueError(f"hot_pixels is {settings.hot_pixels}, the sensor has {pixels} pixels")
        random = np.random.default_rng(seed)
        spread = np.clip(random.standard_normal((2, pixels)), -3, 3) * settings.mismatch
        self.settings = settings
        self.pixels = pixels
        self.threshold_on, self.threshold_off = (settings.threshold * (1 + spread)).astype(np.float32)
        self.leak_hz = settings.leak_hz * random.exponential(size=pixels)
        self.noise_hz = settings.noise_hz * random.exponential(size=pixels)
        self.noise_hz[random.choice(pixels, settings.hot_pixels, replace=False)] = settings.hot_hz

    def observe(self, levels: FloatArray, step_us: int, randoms: Sequence[np.random.Generator]) -> PixelEvents:
        """Records scenes that are independent of each other.

        Args:
            levels: Log intensity ``[recordings, steps + 1, pixels]`` at the times 0, ``step_us``, 2 ``step_us``, ...
            step_us: Time between two levels in microseconds. A pixel fires once in a step at most.
            randoms: One random generator for each recording; the events of a recording depend on its own alone.
        """
        # A pixel's last reset lies anywhere between its two thresholds.
        phases = np.stack([random.random(self.pixels, dtype=np.float32) for random in randoms])
        reference = levels[:, 0] - self.threshold_on + phases * (self.threshold_on + self.threshold_off)
        found = self._threshold_crossings(levels, reference, step_us)
        duration_us = (levels.shape[1] - 1) * step_us
        found += [self._noise(row, random, duration_us) for row, random in enumerate(randoms)]
        recording, pixel, t, p = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((p, pixel, t, recording))
        return PixelEvents(pixel[order], t[order], p[order], np.bincount(recording, minlength=len(levels)))

    def _noise(self, recording: int, random: np.random.Generator, duration_us: int) -> _Found:
        total = self.noise_hz.sum()
        count = int(random.poisson(total * duration_us * 1e-6))
        pixel = random.choice(self.pixels, count, p=self.noise_hz / total) if count else np.zeros(0, np.int64)
        t = (random.random(count) * duration_us).astype(np.int64)
        return _Found(np.full(count, recording), pixel, t, random.random(count) < 0.5)

    def _threshold_crossings(self, levels: FloatArray, reference: FloatArray, step_us: int) -> list[_Found]:
        recordings, _, pixels = levels.shape
        on = np.tile(self.threshold_on, recordings)
        off = np.tile(-self.threshold_off, recordings)
        leak = np.tile((self.leak_hz * self.threshold_on * step_us * 1e-6).astype(np.float32), recordings)
        reference = reference.ravel()
        refractory = self.settings.refractory_us / step_us
        found = []
        # Resting pixels: their reference is NaN, so that no comparison holds; when they wake up is counted in steps.
        resting, wakes = np.zeros(0, np.int64), np.zeros(0)
        for step in range(levels.shape[1] - 1):
            before, after = levels[:, step].ravel(), levels[:, step + 1].ravel()
            awake = wakes < step + 1
            if awake.any():
                woken, part = resting[awake], np.maximum(wakes[awake] - step, 0)
                reference[woken] = before[woken] + part * (after[woken] - before[woken])
                resting, wakes = resting[~awake], wakes[~awake]
            reference -= leak
            difference = after - reference
            fired = np.flatnonzero((difference >= on) | (difference <= off))
            if fired.size == 0:
                continue
            reached, slope = difference[fired], after[fired] - before[fired]
            polarity = reached > 0
            excess = reached - np.where(polarity, on[fired], off[fired])
            # A crossing that the leak made has no slope to interpolate on: it is put at the end of the step.
            part = np.divide(excess, slope, out=np.zeros_like(excess), where=slope != 0)
            when = step + 1.0 - np.clip(part, 0, 1)
            found.append(_Found(fired // pixels, fired % pixels, (when * step_us).astype(np.int64), polarity))
            reference[fired] = np.nan
            resting, wakes = np.concatenate((resting, fired)), np.concatenate((wakes, when + refractory))
        return found
