"""Several recordings side by side: every batch holds the next windows of each of its lanes.

A lane plays one recording after another. Batch ``k + 1`` of a lane goes on where batch ``k`` ended, so that a network's
states can stay; where a lane takes the next recording the batch says so. A recording whose number of windows is no
multiple of those of a batch ends in windows that are not ``present``, and so does a lane that has nothing left.

Which window stands where follows from the sampler alone and reading has no state: any number of loader processes gives
the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lightning_modules.data.events import EventDataError
from lightning_modules.flow.batch import FlowBatch
from lightning_modules.processes import process_count, process_rank

from .recording import FlowRecording, WindowData, count_window

_ORDER_STREAM, _SAMPLE_STREAM = 0, 1


class Section(NamedTuple):
    """Consecutive windows of a recording that are played in one go."""

    recording: int
    first: int
    length: int


class LaneWindows(NamedTuple):
    """What one lane shows in one batch."""

    section: int
    """Which section, -1 for none."""
    first: int
    """First window, counted from the section's beginning."""


class BatchKey(NamedTuple):
    """What one batch holds; the sampler makes it, the data set reads it."""

    epoch: int
    lanes: tuple[LaneWindows, ...]


@dataclass(frozen=True)
class FlowAugmentation:
    """Changes training recordings; flow, pictures and events alike. Drawn once for each section and epoch.

    Attributes:
        crop: Height and width of a part at a random place; None: everything.
        flip_x: Probability that left and right are exchanged.
        flip_y: Probability that top and bottom are exchanged.
    """

    crop: tuple[int, int] | None = None
    flip_x: float = 0.0
    flip_y: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop must be a height and a width of at least 1, got {self.crop}")
        for name in ("flip_x", "flip_y"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")


def cut_sections(lengths: Sequence[int], longest: int | None = None) -> list[Section]:
    """Cuts recordings of so many windows into sections of at most ``longest`` windows, as equal as can be."""
    if longest is not None and longest < 1:
        raise ValueError(f"a section has at least 1 window, got {longest}")
    sections = []
    for recording, length in enumerate(lengths):
        pieces = 1 if longest is None else -(-length // longest)
        edges = np.linspace(0, length, pieces + 1).round().astype(int).tolist()
        sections += [Section(recording, low, high - low) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return sections


class LaneDataset(Dataset[FlowBatch]):
    """Batches of consecutive windows. Use it with a `LaneSampler` and ``DataLoader(..., batch_size=None)``.

    Args:
        recordings: The recordings.
        lanes: Recordings side by side (the batch size); fewer where there are fewer sections.
        windows_per_batch: Consecutive windows of a batch.
        bins: Time steps of a window.
        events: Give the single events beside the counts.
        section: Cut recordings into sections of at most so many windows; each counts as a recording of its own, after
            whose end states are reset. None: recordings are played from begin to end.
        augmentation: Changes what is read.
        seed: Seed of the orders of the epochs and of the augmentation.
    """

    def __init__(
        self,
        recordings: Sequence[FlowRecording],
        lanes: int,
        windows_per_batch: int,
        bins: int,
        events: bool = False,
        section: int | None = None,
        augmentation: FlowAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("lanes", lanes), ("windows_per_batch", windows_per_batch), ("bins", bins)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not recordings:
            raise EventDataError("no recordings")
        self.recordings = recordings
        self.sections = cut_sections([recording.num_windows for recording in recordings], section)
        self.lanes = lanes
        self.windows_per_batch = windows_per_batch
        self.bins = bins
        self.events = events
        self.augmentation = augmentation or FlowAugmentation()
        self.seed = seed
        self.size = self._common_size()

    def __len__(self) -> int:
        """Batches of one pass, for one process alone."""
        return len(self.plan(epoch=0, shuffle=False))

    def __getitem__(self, key: int | BatchKey) -> FlowBatch:
        """A batch by its key; by number the batch of the unshuffled pass."""
        if not isinstance(key, BatchKey):
            return self[self.plan(epoch=0, shuffle=False)[key]]
        batch = _EmptyBatch(self, len(key.lanes))
        for row, lane in enumerate(key.lanes):
            if lane.section < 0:
                continue
            section = self.sections[lane.section]
            recording = self.recordings[section.recording]
            view = self._view(key.epoch, lane.section, recording.size)
            batch.begin(row, recording.name, new=lane.first == 0)
            for place in range(min(self.windows_per_batch, section.length - lane.first)):
                data = recording.read(section.first + lane.first + place)
                batch.put(row, place, view.of(data))
        if not batch.present.any():  # another process is still busy; the batch has the parts that its batches have
            batch.put_nothing(self.recordings[0].read(0))
        return batch.finished()

    def plan(self, epoch: int, shuffle: bool, world_size: int = 1, rank: int = 0) -> list[BatchKey]:
        """The batches of an epoch.

        Their number depends neither on the epoch nor on the rank. Sections are spread over the lanes of all processes,
        the longest first, so that lanes end at about the same time. An epoch shuffles sections of equal length among
        each other, their order within a lane, and the lanes.

        Args:
            epoch: Number of the epoch.
            shuffle: Whether the order follows from seed and epoch, or is always the same.
            world_size: Number of processes that share the sections.
            rank: Which of them this is.
        """
        per_process = min(self.lanes, -(-len(self.sections) // world_size))
        batches = [-(-section.length // self.windows_per_batch) for section in self.sections]
        lanes: list[list[int]] = [[] for _ in range(per_process * world_size)]
        loads = np.zeros(len(lanes), dtype=int)
        for section in sorted(range(len(batches)), key=lambda i: -batches[i]):
            lane = int(loads.argmin())
            lanes[lane].append(section)
            loads[lane] += batches[section]
        if shuffle:
            lanes = self._shuffled(lanes, batches, epoch)
        shown = [
            [LaneWindows(section, k * self.windows_per_batch) for section in lane for k in range(batches[section])]
            for lane in lanes[rank::world_size]  # no process gets empty lanes only, if there are as many sections
        ]
        nothing = LaneWindows(-1, 0)
        return [
            BatchKey(epoch, tuple(lane[step] if step < len(lane) else nothing for lane in shown))
            for step in range(int(loads.max()))
        ]

    def _shuffled(self, lanes: list[list[int]], batches: Sequence[int], epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self.seed, _ORDER_STREAM, epoch])
        exchange: dict[int, int] = {}
        for size in sorted(set(batches)):
            equal = [section for section in range(len(batches)) if batches[section] == size]
            exchange.update(zip(equal, random.permutation(equal).tolist(), strict=True))
        shuffled = [[exchange[section] for section in random.permutation(lane).astype(int)] for lane in lanes]
        return [shuffled[lane] for lane in random.permutation(len(lanes))]

    def _view(self, epoch: int, section: int, size: tuple[int, int]) -> _View:
        """Place and flips of a section in an epoch."""
        random = np.random.default_rng([self.seed, _SAMPLE_STREAM, epoch, section])
        top, left = (int(random.integers(0, full - part + 1)) for full, part in zip(size, self.size, strict=True))
        flip_x, flip_y = (random.random(2) < (self.augmentation.flip_x, self.augmentation.flip_y)).tolist()
        return _View(top, left, *self.size, flip_x, flip_y)

    def _common_size(self) -> tuple[int, int]:
        sizes = {recording.size for recording in self.recordings}
        crop = self.augmentation.crop
        if crop is None:
            if len(sizes) > 1:
                raise EventDataError(f"recordings of one batch must have one resolution, found {sorted(sizes)}: crop")
            return sizes.pop()
        for height, width in sizes:
            if height < crop[0] or width < crop[1]:
                raise EventDataError(f"a crop of {crop} does not fit into {height} rows and {width} columns")
        return crop


class LaneSampler(DistributedSampler[BatchKey]):
    """The batches of a `LaneDataset`, epoch by epoch.

    With several processes each plays lanes of its own, and all make the same number of batches. Being a
    ``DistributedSampler`` it is left alone by Lightning, which would deal out single batches and tear lanes apart.
    Lightning calls ``set_epoch``; without it every pass counts as the next epoch.

    Args:
        dataset: The data set.
        shuffle: Another order in every epoch.
        world_size: Number of processes; default: those of ``torch.distributed``, or one.
        rank: Number of this process.
    """

    def __init__(
        self, dataset: LaneDataset, shuffle: bool, world_size: int | None = None, rank: int | None = None
    ) -> None:
        world_size = process_count() if world_size is None else world_size
        rank = process_rank() if rank is None else rank
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=shuffle)
        self._lanes = dataset
        self._length = len(dataset.plan(0, False, world_size, rank))

    def __len__(self) -> int:
        """Batches of an epoch of this process."""
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Keys of the batches.

        A generator, because a ``DataLoader`` with workers makes one iterator that it never reads from: that one shall
        not count as an epoch.
        """
        epoch = self.epoch
        self.epoch += 1
        yield from self._lanes.plan(epoch, self.shuffle, self.num_replicas, self.rank)


@dataclass(frozen=True)
class _View:
    """A part of the picture, perhaps mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip_x: bool
    flip_y: bool

    def of(self, data: WindowData) -> WindowData:
        """What of a window lies in the part."""
        x, y = data.x.astype(np.int64) - self.left, data.y.astype(np.int64) - self.top
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        x, y = x[inside], y[inside]
        flow = self._picture(data.flow)
        if flow is not None and (self.flip_x or self.flip_y):
            flow = flow * np.array([-1 if self.flip_x else 1, -1 if self.flip_y else 1], np.float32)[:, None, None]
        return replace(
            data,
            x=self.width - 1 - x if self.flip_x else x,
            y=self.height - 1 - y if self.flip_y else y,
            t=data.t[inside],
            p=data.p[inside],
            flow=flow,
            valid=self._picture(data.valid),
            before=self._picture(data.before),
            after=self._picture(data.after),
        )

    def _picture(self, values: Any) -> Any:
        if values is None:
            return None
        values = values[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return values[..., :: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


class _EmptyBatch:
    """A batch that is filled window by window."""

    def __init__(self, dataset: LaneDataset, lanes: int) -> None:
        windows, size = dataset.windows_per_batch, dataset.size
        self.bins = dataset.bins
        self.size = size
        self.counts = np.zeros((lanes, windows, dataset.bins, 2, *size), np.float32)
        self.present = np.zeros((lanes, windows), np.bool_)
        self.new = np.zeros(lanes, np.bool_)
        self.names = [""] * lanes
        self.flow = np.zeros((lanes, windows, 2, *size), np.float32)
        self.valid = np.zeros((lanes, windows, *size), np.bool_)
        self.frames = np.zeros((lanes, windows + 1, 1, *size), np.float32)
        self.events: dict[tuple[int, int], npt.NDArray[np.float32]] | None = {} if dataset.events else None
        self.any_flow = False
        self.all_frames = True

    def begin(self, row: int, name: str, new: bool) -> None:
        """Names a lane's recording."""
        self.names[row] = name
        self.new[row] = new

    def put(self, row: int, place: int, data: WindowData) -> None:
        """Adds one window of one lane."""
        self.present[row, place] = True
        self.counts[row, place] = count_window(data, self.bins, self.size)
        if data.flow is not None:
            self.any_flow = True
            valid = np.isfinite(data.flow).all(0) if data.valid is None else data.valid
            self.valid[row, place] = valid
            self.flow[row, place] = np.where(valid, data.flow, 0)  # unknown flow is often written as NaN or 1e9
        if data.before is None or data.after is None:
            self.all_frames = False
        else:
            self.frames[row, place, 0], self.frames[row, place + 1, 0] = data.before, data.after
        if self.events is not None:
            polarity = np.where(data.p, 1, -1)
            self.events[row, place] = np.stack((data.t, data.x, data.y, polarity), axis=1).astype(np.float32)

    def put_nothing(self, data: WindowData) -> None:
        """Adds no window, but says that there is all that this one has."""
        self.any_flow = data.flow is not None
        self.all_frames = data.before is not None and data.after is not None

    def finished(self) -> FlowBatch:
        """The batch as tensors."""
        events, mask = self._padded_events()
        return FlowBatch(
            counts=torch.from_numpy(self.counts),
            present=torch.from_numpy(self.present),
            new_recording=torch.from_numpy(self.new),
            events=events,
            event_mask=mask,
            frames=torch.from_numpy(self.frames) if self.all_frames else None,
            flow=torch.from_numpy(self.flow) if self.any_flow else None,
            valid=torch.from_numpy(self.valid) if self.any_flow else None,
            names=self.names,
        )

    def _padded_events(self) -> tuple[Tensor | None, Tensor | None]:
        if self.events is None:
            return None, None
        longest = max((len(rows) for rows in self.events.values()), default=0)
        events = np.zeros((*self.present.shape, max(longest, 1), 4), np.float32)
        mask = np.zeros(events.shape[:3], np.bool_)
        for place, rows in self.events.items():
            events[place][: len(rows)] = rows
            mask[place][: len(rows)] = True
        return torch.from_numpy(events), torch.from_numpy(mask)
