"""What the event data modules share: binning, splits, loaders and the report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from .augment import Augmentation
from .frames import Binning, FrameStore, bin_events
from .loading import FrameDataset
from .packed import PackedEvents
from .parts import PARTS, PartsDataModule

Split = Mapping[str, npt.NDArray[np.int64]]


class EventFrameDataModule(PartsDataModule):
    """Labelled event recordings as frames.

    Batches are ``(frames [B, T, C, H, W] float32, lengths [B] int64, labels [B] int64)``, batch first; channel 0 counts
    OFF events and channel 1 ON events. ``lengths`` is always there; where recordings differ in length the shorter ones
    end in frames of zeros. Events are binned once, at `setup`, and kept as bytes.

    A subclass says where the recordings come from (`load_events`), which of them train (`split`) and what both are
    called.

    Args:
        num_steps: Time steps of every recording; with ``bin_us`` the largest number of them.
        bin_us: Duration of a step in microseconds. Default: the recording's nominal duration divided by ``num_steps``.
        downsample: Side of the square of pixels whose events are summed (2: 34x34 becomes 17x17).
        clip: Largest count of a pixel in a step; 1 makes frames binary, None leaves the counts.
        batch_size: Samples of a batch.
        num_workers: Processes that load batches. The data are in memory, so 0 is usually fastest.
        seed: Seed of the order of the training samples and of the augmentation. Default: that of Lightning's
            ``seed_everything``, or 0 where it was not called.
        split_seed: Seed of the split. Leave it alone when the seed changes, so that runs are tested on the same
            samples.
        max_shift: Training samples are shifted at random by up to this many frame pixels.
        event_drop: Every event of a training sample is dropped with this probability.
        pin_memory: Use page-locked memory, which speeds up copies to a CUDA device.
        flip: Left and right of a training sample are exchanged with this probability.
        size: Height and width of a frame, onto which the sensor is scaled, instead of ``downsample``.
    """

    num_classes = 10

    def __init__(
        self,
        num_steps: int | None = 10,
        bin_us: int | None = None,
        downsample: int = 1,
        clip: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        split_seed: int = 0,
        max_shift: int = 0,
        event_drop: float = 0.0,
        pin_memory: bool = False,
        flip: float = 0.0,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, split_seed, pin_memory)
        if clip is not None and clip < 1:
            raise ValueError(f"clip must be at least 1 or None, got {clip}")
        frame_size = None if size is None else (int(size[0]), int(size[-1]))
        self.binning = Binning(num_steps, bin_us, downsample, frame_size)
        self.augmentation = Augmentation(max_shift, event_drop, flip)
        self.clip = clip
        self._facts: dict[str, Any] = {}

    @property
    @abstractmethod
    def duration_us(self) -> int:
        """Nominal duration of a recording."""

    @property
    @abstractmethod
    def sensor_size(self) -> tuple[int, int]:
        """Height and width of the sensor."""

    def load_events(self) -> PackedEvents:
        """All recordings. Called by every process; expensive work belongs into a cache that `prepare_data` fills."""
        raise NotImplementedError(f"{type(self).__name__} must define load_events or load_frames")

    def load_frames(self) -> tuple[FrameStore, npt.NDArray[np.integer], dict[str, Any]]:
        """Frames and labels of all samples, and facts for `report`. Sets that do not fit into memory override it."""
        packed = self.load_events()
        facts = {
            "events_per_recording": round(len(packed.x) / max(len(packed), 1), 1),
            "on_fraction": round(float(packed.polarities().mean()), 4) if len(packed.x) else float("nan"),
        }
        return bin_events(packed, self.binning, self.duration_us), packed.labels, facts

    @abstractmethod
    def split(self, labels: npt.NDArray[np.integer]) -> Split:
        """Indices of the recordings of "train", "val" and "test"."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return (2, *self.binning.frame_size(self.sensor_size))

    def setup(self, stage: str | None = None) -> None:
        """Loads, bins and splits the recordings, once for all stages."""
        if self._datasets:
            return
        store, labels, facts = self.load_frames()
        split = self.split(labels)
        self._datasets = {
            part: FrameDataset(
                store,
                labels,
                split[part],
                clip=self.clip,
                augmentation=self.augmentation if part == "train" else None,
                seed=self.seed,
            )
            for part in PARTS
        }
        lengths = np.diff(store.offsets)
        steps = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
        self._facts = {"steps": steps, **facts}

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result: names of data set and split, sizes, frames, events per recording."""
        sizes = {part: len(self.dataset(part)) for part in PARTS}
        return {
            "dataset": self.dataset_name,
            "split": self.split_name,
            **sizes,
            **self._facts,
            "step_us": self.binning.step_us(self.duration_us),
            "frame_shape": self.frame_shape,
            "clip": self.clip,
            "augmentation": asdict(self.augmentation),
        }
