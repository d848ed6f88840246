"""What the data modules of recordings that are no camera events share: loaders, seeds, the report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .loading import pad_collate
from .parts import PARTS, PartsDataModule


class SequenceDataModule(PartsDataModule):
    """Labelled sequences; batches are ``(frames [B, T, ...] float32, lengths [B] int64, labels)``, batch first.

    A subclass says what there is (`load_datasets`) and what it is called. Training samples come in an order that
    depends on the seed and the epoch alone; data sets are asked for ``(position, epoch)`` in training, so that
    an augmentation can be seeded by both, and for a plain position elsewhere.

    Args:
        batch_size: Samples of a batch.
        num_workers: Processes that load batches.
        seed: Seed of the order of the training samples and of the augmentation. Default: that of Lightning's
            ``seed_everything``, or 0 where it was not called.
        split_seed: Seed of the validation part. Leave it alone when the seed changes.
        pin_memory: Use page-locked memory, which speeds up copies to a CUDA device.
    """

    num_classes: int

    @abstractmethod
    def load_datasets(self) -> Mapping[str, Dataset[Any]]:
        """The samples of "train", "val" and "test"."""

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits the recordings, once for all stages."""
        if not self._datasets:
            self._datasets = self.load_datasets()

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result: names of data set and split, sizes of its parts, the frames' shape."""
        sizes = {part: len(self.dataset(part)) for part in PARTS}
        shape = tuple(self.dataset("train")[0][0].shape[1:]) if sizes["train"] else ()
        return {"dataset": self.dataset_name, "split": self.split_name, **sizes, "frame_shape": shape}


def pad_collate_steps(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Makes a batch of sequences with a label at every step; padding has frames of zeros and labels of -1.

    Returns:
        Frames ``[B, T, ...]`` with T the largest length of the batch, lengths ``[B]`` and labels ``[B, T]``.
    """
    frames, lengths, _ = pad_collate([(one, 0) for one, _ in samples])
    labels = torch.full(frames.shape[:2], -1, dtype=torch.int64)
    for row, (_, own) in zip(labels, samples, strict=True):
        row[: len(own)] = own
    return frames, lengths, labels
