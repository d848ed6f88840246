"""What the data modules for optical flow share: lanes, loaders, seeds, the report."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lightning_modules.data.part_loaders import PartLoaders
from lightning_modules.tasks.resumable import ResumableLoader

from .lanes import FlowAugmentation, LaneDataset, LaneSampler
from .recording import FlowRecording

PARTS = ("train", "val", "test")


class FlowDataModule(PartLoaders):
    """Recordings as parallel lanes; batches are `FlowBatch`.

    A subclass says what recordings there are (`load_recordings`) and what data and split are called.

    Args:
        bins: Time steps of a window.
        batch_size: Lanes: recordings side by side. Where a part has fewer recordings its batches are smaller.
        windows_per_batch: Consecutive windows of each lane in a batch.
        events: Give the single events beside the counts, for losses that need their times.
        section: Training recordings are cut into sections of at most so many windows, whose order is shuffled and after
            whose end states are reset. None: played from begin to end, as those for evaluation always are.
        crop: Height and width of the part of the picture, at a random place, that a training section shows.
        flip_x: Left and right of a training section are exchanged with this probability.
        flip_y: Top and bottom are exchanged with this probability.
        num_workers: Processes that load batches; they change nothing in what is loaded.
        seed: Seed of the order of the training sections and of the augmentation. Default: that of Lightning's
            ``seed_everything``, or 0 where it was not called.
    """

    def __init__(
        self,
        bins: int = 5,
        batch_size: int = 8,
        windows_per_batch: int = 4,
        events: bool = False,
        section: int | None = None,
        crop: tuple[int, int] | None = None,
        flip_x: float = 0.0,
        flip_y: float = 0.0,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"bins": bins, "batch_size": batch_size, "windows_per_batch": windows_per_batch, "section": section}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, value in (("num_workers", num_workers), ("seed", seed or 0)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.bins = bins
        self.batch_size = batch_size
        self.windows_per_batch = windows_per_batch
        self.events = events
        self.section = section
        self.augmentation = FlowAugmentation(crop, flip_x, flip_y)
        self.num_workers = num_workers
        self.pin_memory = False  # a DataLoader pins tensors, not the ones in a FlowBatch
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._datasets: dict[str, LaneDataset] = {}

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """Name of the recordings, as results should call them."""

    @property
    @abstractmethod
    def split_name(self) -> str:
        """Name of the split, as results should call it. Known after `setup`."""

    @abstractmethod
    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """The recordings of "train", "val" and "test"."""

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits the recordings, once for all stages, and tells the loggers what they are."""
        if self._datasets:
            return
        for part, recordings in self.load_recordings().items():
            training = part == "train"
            self._datasets[part] = LaneDataset(
                recordings,
                lanes=self.batch_size,
                windows_per_batch=self.windows_per_batch,
                bins=self.bins,
                events=self.events,
                section=self.section if training else None,
                augmentation=self.augmentation if training else None,
                seed=self.seed,
            )
        names = self.state_dict()
        rank_zero_info(f"Data: {names['dataset']}; split: {names['split']}")
        for logger in self.trainer.loggers if self.trainer is not None else ():
            logger.log_hyperparams(names)

    def dataset(self, part: str) -> LaneDataset:
        """The batches of "train", "val" or "test".

        Raises:
            RuntimeError: `setup` has not been called.
        """
        if not self._datasets:
            raise RuntimeError(f"call {type(self).__name__}.setup() first (a Lightning Trainer does)")
        return self._datasets[part]

    def train_dataloader(self) -> DataLoader[Any]:
        """Sections in another order in every epoch; augmented."""
        return self._lane_loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole recordings, always in the same order."""
        return self._lane_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole recordings, always in the same order."""
        return self._lane_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test recordings."""
        return self._lane_loader("test")

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result: names of data and split, windows of each part, resolution."""
        windows = {part: sum(section.length for section in self.dataset(part).sections) for part in PARTS}
        size = self.dataset("train").size
        return {"dataset": self.dataset_name, "split": self.split_name, **windows, "resolution": size}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: names of data and split."""
        return {"dataset": self.dataset_name, "split": self.split_name} if self._datasets else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the names; another split may test on windows that were trained on."""
        now = self.state_dict()
        if now and state_dict and now != state_dict:
            warnings.warn(
                f"the checkpoint comes from other data or another split ({state_dict}; now {now}): windows that are "
                f"tested now may have been trained on",
                stacklevel=2,
            )

    def _lane_loader(self, part: str) -> DataLoader[Any]:
        training = part == "train"
        kind = ResumableLoader if training else DataLoader
        dataset = self.dataset(part)
        return kind(
            dataset,
            batch_size=None,  # the data set makes whole batches
            sampler=LaneSampler(dataset, shuffle=training),
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            persistent_workers=self.num_workers > 0,
        )


def _as_it_is(batch: Any) -> Any:
    return batch
