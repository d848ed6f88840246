"""What the data modules for optical flow share: lanes, loaders, seeds, the report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.data.parts import PARTS, NamedSplit

from .lanes import FlowAugmentation, LaneDataset, LaneSampler
from .recording import FlowRecording


class FlowDataModule(NamedSplit):
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

    item = "windows"

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
        super().__init__(batch_size, num_workers, seed)  # nothing is pinned: a DataLoader does not pin a FlowBatch
        for name, value in (("bins", bins), ("windows_per_batch", windows_per_batch), ("section", section)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.bins = bins
        self.windows_per_batch = windows_per_batch
        self.events = events
        self.section = section
        self.augmentation = FlowAugmentation(crop, flip_x, flip_y)

    @abstractmethod
    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """The recordings of "train", "val" and "test"."""

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits the recordings, once for all stages, and tells the loggers what they are."""
        if self._datasets:
            return
        datasets = {}
        for part, recordings in self.load_recordings().items():
            training = part == "train"
            datasets[part] = LaneDataset(
                recordings,
                lanes=self.batch_size,
                windows_per_batch=self.windows_per_batch,
                bins=self.bins,
                events=self.events,
                section=self.section if training else None,
                augmentation=self.augmentation if training else None,
                seed=self.seed,
            )
        self._datasets = datasets
        self.tell_names()

    def loader_options(self, part: str) -> dict[str, Any]:
        """Lanes: whole batches, which the data set makes; training sections in another order in every epoch."""
        sampler = LaneSampler(self.dataset(part), shuffle=part == "train")
        return {"batch_size": None, "sampler": sampler, "collate_fn": _as_it_is}

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result: names of data and split, windows of each part, resolution."""
        windows = {part: sum(section.length for section in self.dataset(part).sections) for part in PARTS}
        size = self.dataset("train").size
        return {"dataset": self.dataset_name, "split": self.split_name, **windows, "resolution": size}


def _as_it_is(batch: Any) -> Any:
    return batch
