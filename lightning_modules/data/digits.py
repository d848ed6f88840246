"""Handwritten digits seen by a simulated event camera.

The 1797 digits of scikit-learn's `load_digits` (8x8 grey values, shipped inside scikit-learn) are shown to the sensor
of `lightning_modules.data.event_camera`, which makes three saccades along a triangle, as the camera of N-MNIST did.
Nothing is downloaded.

A digit is a smooth surface (cubic convolution of the 8x8 values, 2.6 pixels to a cell), steepened to strokes with soft
edges. The surface is evaluated at its exact position at every time step, so nothing is resampled. A saccade takes 100
ms, and its speed is half a sine wave.

The sensor follows from the seed alone; everything about recording ``i`` follows from ``(seed, i)``, whatever else is
generated, in whatever order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .event_camera import CameraSettings, EventCamera, FloatArray
from .events import EventDataError
from .packed import PackedEvents

GENERATOR_VERSION = 1
"""Part of every cache key: raise it with any change that alters the events."""

_CAMERA_STREAM, _RECORDING_STREAM = 0, 1
_SACCADES = (
    (0.5, 1.0),
    (0.5, -1.0),
    (-1.0, 0.0),
)  # (columns, rows) in units of the amplitude: down right, up right, back left
_PAPER, _INK = 0.15, 0.75  # grey values up to here are background, from here on stroke; between them lies the edge
_SIMULATED_AT_ONCE = 16


@dataclass(frozen=True)
class DigitSettings:
    """What the simulated recordings look like; the defaults resemble N-MNIST (about 3900 events in 300 ms).

    Attributes:
        seed: Seed of the sensor and of all recordings.
        sensor_size: Pixels along each side of the square sensor.
        saccade_us: Duration of each of the three saccades.
        amplitude: Length of the triangle's sides in pixels, roughly.
        cell_size: Pixels to one of the 8x8 cells of a digit.
        contrast: Log of the ratio of the brightest to the darkest intensity.
        variation: How much recordings differ: standard deviation of the start position in pixels; a tenth of it is that
            of the relative amplitude and of the relative contrast.
        step_us: Time step of the simulation; time stamps are finer.
        camera: The sensor's thresholds and noise.
    """

    seed: int = 0
    sensor_size: int = 34
    saccade_us: int = 100_000
    amplitude: float = 4.6
    cell_size: float = 2.6
    contrast: float = 2.0
    variation: float = 0.5
    step_us: int = 1000
    camera: CameraSettings = field(default_factory=CameraSettings)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("sensor_size", "saccade_us", "cell_size", "contrast", "step_us"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("seed", "amplitude", "variation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.variation > 4:
            raise ValueError(f"variation must be at most 4 (contrasts must stay positive), got {self.variation}")
        if self.saccade_us % self.step_us:
            raise ValueError(f"saccade_us ({self.saccade_us}) must be a multiple of step_us ({self.step_us})")

    @property
    def duration_us(self) -> int:
        """Duration of a recording."""
        return len(_SACCADES) * self.saccade_us

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for the cache key."""
        return dataclasses.asdict(self)


def load_digit_images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The digits of scikit-learn: images ``[1797, 8, 8]`` in 0 to 1, and labels.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the embedded digits come with scikit-learn, which is not installed: pip install 'stllr-plugin[data]'"
        ) from error
    digits = load_digits()
    return digits.images / 16.0, digits.target.astype(np.int64)


def generate_digit_events(
    images: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    settings: DigitSettings | None = None,
    indices: Sequence[int] | None = None,
) -> PackedEvents:
    """Simulates one recording per image.

    Args:
        images: Grey values ``[images, rows, columns]`` in 0 to 1 (8x8 for `load_digit_images`).
        labels: Class of each image.
        settings: Sensor and motion; the defaults if None.
        indices: Number of each image within the data set, which together with the seed decides its random numbers.
            Default: 0, 1, ...

    Returns:
        The recordings, in the order of the images. The same settings, image and index give the same events alone or
        among others.
    """
    settings = settings or DigitSettings()
    images, labels = np.asarray(images), np.asarray(labels)
    numbers = list(range(len(images)) if indices is None else indices)
    if images.ndim != 3 or len(labels) != len(images) or len(numbers) != len(images):
        raise EventDataError(
            "expected images [n, rows, columns] with n labels and n indices, "
            f"got {images.shape}, {labels.shape}, {len(numbers)}"
        )
    side = settings.sensor_size
    camera = EventCamera(settings.camera, side * side, [settings.seed, _CAMERA_STREAM])
    pixels, times, polarities, counts = [], [], [], [np.zeros(1, np.int64)]
    for low in range(0, len(images), _SIMULATED_AT_ONCE):
        some = slice(low, low + _SIMULATED_AT_ONCE)
        randoms = [np.random.default_rng([settings.seed, _RECORDING_STREAM, number]) for number in numbers[some]]
        seen = camera.observe(_log_intensity(images[some], randoms, settings), settings.step_us, randoms)
        pixels.append(seen.pixel)
        times.append(seen.t)
        polarities.append(seen.p)
        counts.append(seen.counts)
    pixel, t, p = (np.concatenate(parts or [np.zeros(0, np.int64)]) for parts in (pixels, times, polarities))
    offsets = np.cumsum(np.concatenate(counts))
    return PackedEvents.from_columns(pixel % side, pixel // side, t, p, offsets, labels, (side, side))


def _log_intensity(
    images: npt.NDArray[np.floating], randoms: Sequence[np.random.Generator], settings: DigitSettings
) -> FloatArray:
    """Log intensity of every pixel at every time step, ``[recordings, steps + 1, pixels]``."""
    count, rows, columns = images.shape
    side = settings.sensor_size
    draws = np.stack([random.standard_normal(4) for random in randoms]).clip(-2, 2) * settings.variation
    start, amplitude = draws[:, None, :2], settings.amplitude * (1 + draws[:, 2] / 10)
    contrast = settings.contrast * (1 + draws[:, 3] / 10)
    position = start + _trajectory(settings) * amplitude[:, None, None]

    def weights(cells: int, axis: int) -> FloatArray:
        """What each cell contributes to each line of pixels: ``[recordings, steps + 1, side, cells]``."""
        centres = (side - 1) / 2 + (np.arange(cells) - (cells - 1) / 2) * settings.cell_size
        distance = np.arange(side)[:, None] - centres - position[:, :, axis, None, None]
        return _cubic_kernel((distance / settings.cell_size).astype(np.float32))

    # Intensity is 1 on paper and exp(contrast) on ink. Scaling the small images instead of the large result saves
    # passes over it.
    gain = np.expm1(contrast)[:, None, None]
    small = (images * gain / (_INK - _PAPER)).astype(np.float32)
    lines = np.matmul(weights(rows, 1).reshape(count, -1, rows), small).reshape(count, -1, side, columns)
    intensity: FloatArray = np.matmul(lines, weights(columns, 0).swapaxes(2, 3))
    intensity += (1 - gain * _PAPER / (_INK - _PAPER)).astype(np.float32)[..., None]
    np.clip(intensity, 1.0, (1 + gain).astype(np.float32)[..., None], out=intensity)
    return np.log(intensity, out=intensity).reshape(count, -1, side * side)


def _trajectory(settings: DigitSettings) -> npt.NDArray[np.float64]:
    """Displacement (columns, rows) from the middle in units of the amplitude, ``[steps + 1, 2]``."""
    per_saccade = settings.saccade_us // settings.step_us
    progress = (1 - np.cos(np.pi * np.arange(1, per_saccade + 1) / per_saccade)) / 2
    position = np.array([-0.5, -0.5])
    parts = [position[None]]
    for saccade in _SACCADES:
        parts.append(position + progress[:, None] * np.array(saccade))
        position = position + np.array(saccade)
    return np.concatenate(parts)


def _cubic_kernel(distance: FloatArray) -> FloatArray:
    """Cubic convolution kernel (parameter -0.5): passes through the samples, smooth slope, zero from distance 2 on."""
    d = np.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, np.float32(0)))
