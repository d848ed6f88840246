"""The embedded data set: simulated event recordings of scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from .archive import Arrays
from .cache import cached_arrays
from .datamodule import EventFrameDataModule, Split
from .digits import GENERATOR_VERSION, DigitSettings, generate_digit_events, load_digit_images
from .packed import PackedEvents
from .splits import stratified_split


def load_digit_events(
    settings: DigitSettings | None = None, num_samples: int | None = None, cache_dir: str | Path | None = None
) -> PackedEvents:
    """Recordings of the digits from the cache, or generated (seconds) and put there.

    Args:
        settings: Sensor and motion; the defaults if None.
        num_samples: Take only the first so many of the 1797 digits.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
    """
    settings = settings or DigitSettings()
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1 or None, got {num_samples}")
    sensor = (settings.sensor_size, settings.sensor_size)

    def build() -> Arrays:
        images, labels = load_digit_images()
        return generate_digit_events(images[:num_samples], labels[:num_samples], settings).to_arrays()

    def check(arrays: Arrays, name: str) -> PackedEvents:
        return PackedEvents.from_arrays(arrays, sensor, name)

    key = {"generator": GENERATOR_VERSION, "settings": settings.to_dict(), "num_samples": num_samples}
    return check(cached_arrays("event-digits", key, build, cache_dir, check), "generated digits")


class EventDigits(Dataset[tuple[Any, int]]):
    """Event recordings of handwritten digits, made on this machine and cached on disk once.

    Samples are ``(events, label)`` with a structured array of x, y, t (microseconds) and p, as in tonic's data sets;
    tonic's transforms apply. See `lightning_modules.data.digits` for how the events come about.

    Args:
        settings: Sensor and motion; the defaults if None.
        num_samples: Take only the first so many of the 1797 digits.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        transform: Applied to the events of a sample, such as a transform of tonic.
    """

    classes = tuple(str(digit) for digit in range(10))

    def __init__(
        self,
        settings: DigitSettings | None = None,
        num_samples: int | None = None,
        cache_dir: str | Path | None = None,
        transform: Callable[[npt.NDArray[np.void]], Any] | None = None,
    ) -> None:
        self.settings = settings or DigitSettings()
        self.packed = load_digit_events(self.settings, num_samples, cache_dir)
        self.transform = transform

    @property
    def sensor_size(self) -> tuple[int, int, int]:
        """Width, height and polarities, the order in which tonic takes them."""
        height, width = self.packed.sensor_size
        return width, height, 2

    @property
    def targets(self) -> npt.NDArray[np.integer]:
        """Labels of all samples."""
        return self.packed.labels

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.packed)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Events (after the transform) and label of one recording."""
        events = self.packed.recording(index)
        return (self.transform(events) if self.transform else events), int(self.packed.labels[index])


class EventDigitsDataModule(EventFrameDataModule):
    """`EventDigits` as frames, in a seeded stratified split.

    Example:
        >>> data = EventDigitsDataModule(num_steps=10, downsample=2, batch_size=32)
        >>> data.prepare_data(); data.setup()
        >>> frames, lengths, labels = next(iter(data.train_dataloader()))
        >>> frames.shape
        torch.Size([32, 10, 2, 17, 17])

    Args:
        settings: Sensor and motion of the simulation; the defaults if None.
        num_samples: Take only the first so many of the 1797 digits.
        val_fraction: Part of the recordings for validation.
        test_fraction: Part of the recordings for the test.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        **kwargs: See `EventFrameDataModule`.
    """

    def __init__(
        self,
        settings: DigitSettings | None = None,
        num_samples: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction and test_fraction must not be negative and leave something to train on, "
                f"got {val_fraction} and {test_fraction}"
            )
        self.settings = settings or DigitSettings()
        self.num_samples = num_samples
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.cache_dir = cache_dir

    @property
    def dataset_name(self) -> str:
        """Name with the version of the generator; settings other than the defaults are named."""
        changed = "" if self.settings == DigitSettings() else f", {self.settings}"
        part = "" if self.num_samples is None else f", first {self.num_samples}"
        return f"EventDigits v{GENERATOR_VERSION} (simulated events of scikit-learn's digits{part}{changed})"

    @property
    def split_name(self) -> str:
        """Sizes and seed of the split."""
        train, val, test = (len(self.dataset(part)) for part in ("train", "val", "test"))
        return f"{train}/{val}/{test} train/val/test, stratified, split seed {self.split_seed}"

    @property
    def duration_us(self) -> int:
        """Three saccades."""
        return self.settings.duration_us

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width of the simulated sensor."""
        return self.settings.sensor_size, self.settings.sensor_size

    def prepare_data(self) -> None:
        """Fills the cache (one process does, for all)."""
        self.load_events()

    def load_events(self) -> PackedEvents:
        """Recordings from the cache."""
        return load_digit_events(self.settings, self.num_samples, self.cache_dir)

    def split(self, labels: npt.NDArray[np.integer]) -> Split:
        """Stratified by class."""
        val, test = (round(len(labels) * fraction) for fraction in (self.val_fraction, self.test_fraction))
        sizes = (len(labels) - val - test, val, test)
        return dict(zip(("train", "val", "test"), stratified_split(labels, sizes, self.split_seed), strict=True))
