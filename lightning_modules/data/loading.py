"""Torch data set of frames, the sampler that seeds its epochs, and the collate function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .augment import Augmentation
from .frames import FrameStore

Batch = tuple[Tensor, Tensor, Tensor]
"""Frames ``[B, T, C, H, W]`` float32, lengths ``[B]`` int64, labels ``[B]`` int64."""

_ORDER_STREAM, _SAMPLE_STREAM = 0, 1


class FrameDataset(Dataset[tuple[Tensor, int]]):
    """Part of a `FrameStore` as float frames with labels.

    Samples are asked for by position, or by ``(position, epoch)`` as `EpochSampler` does. Augmentation depends on the
    seed, the epoch and the sample alone: neither the number of workers nor the order of batches changes it. A plain
    position means epoch 0.

    Args:
        store: Frames of all recordings.
        labels: Labels of all recordings.
        indices: Which recordings belong to this part.
        clip: Largest count of a pixel in a step; 1 makes frames binary, None leaves the counts.
        augmentation: Changes each sample before clipping.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        store: FrameStore,
        labels: npt.NDArray[np.integer],
        indices: npt.NDArray[np.int64],
        clip: int | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if clip is not None and clip < 1:
            raise ValueError(f"clip must be at least 1, got {clip}")
        self._frames = torch.from_numpy(store.frames)  # tensors travel to workers through shared memory
        self._file = _mapped_file(store.frames)
        self._offsets = store.offsets
        self.indices = indices
        self.labels = np.asarray(labels)[indices]
        self._clip = clip
        self._augmentation = augmentation
        self._seed = seed

    def __getstate__(self) -> dict[str, Any]:
        """Frames that are mapped from a file go to another process as the file's name, not as gigabytes."""
        state = self.__dict__.copy()
        if self._file is not None:
            del state["_frames"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps them again."""
        self.__dict__.update(state)
        if self._file is not None:
            self._frames = torch.from_numpy(np.load(self._file, mmap_mode="c", allow_pickle=False))

    def __len__(self) -> int:
        """Number of samples of this part."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Frames ``[steps, 2, height, width]`` and label."""
        position, epoch = key if isinstance(key, tuple) else (key, 0)
        index = int(self.indices[position])
        frames = self._frames[self._offsets[index] : self._offsets[index + 1]]
        if self._augmentation:
            random = np.random.default_rng([self._seed, _SAMPLE_STREAM, epoch, index])
            frames = torch.from_numpy(self._augmentation(frames.numpy(), random))
        if self._clip is not None:
            frames = frames.clamp(max=self._clip)
        return frames.to(torch.float32), int(self.labels[position])


def _mapped_file(frames: npt.NDArray[np.uint8]) -> str | None:
    """The .npy file whose whole content these frames are, if they are mapped from one."""
    if not isinstance(frames, np.memmap) or isinstance(frames.base, np.ndarray):
        return None
    name = str(frames.filename)
    return name if name.endswith(".npy") else None


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffles differently in every epoch, by seed and epoch alone, and tells the data set which epoch it is.

    Lightning calls `set_epoch`, in distributed training and after resuming too; without it every pass counts as the
    next epoch.

    Args:
        size: Number of samples.
        seed: Seed of the orders.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of samples of an epoch."""
        return self._size

    def set_epoch(self, epoch: int) -> None:
        """Number of the next epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of position and epoch."""
        epoch = self._epoch
        self._epoch += 1
        order = np.random.default_rng([self._seed, _ORDER_STREAM, epoch]).permutation(self._size)
        return iter([(int(position), epoch) for position in order])


def pad_collate(samples: Sequence[tuple[Tensor, int]]) -> Batch:
    """Makes a batch; shorter samples get frames of zeros at the end.

    Padding is inert: the lengths say which steps exist, and a loss or a prediction that respects them does not see the
    rest.

    Returns:
        Frames ``[B, T, C, H, W]`` with T the largest length of the batch, lengths ``[B]`` and labels ``[B]``.
    """
    lengths = torch.tensor([len(frames) for frames, _ in samples], dtype=torch.int64)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    first = samples[0][0]
    batch = first.new_zeros(len(samples), int(lengths.max()), *first.shape[1:])
    for row, (frames, _) in zip(batch, samples, strict=True):
        row[: len(frames)] = frames
    return batch, lengths, labels
