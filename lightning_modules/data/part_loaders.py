"""The loaders of a data module's parts, the same for frames and for other sequences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.tasks.resumable import ResumableLoader

from .loading import EpochSampler, pad_collate


class PartLoaders(pl.LightningDataModule, ABC):
    """Training batches in a seeded order that a checkpoint can hold; validation, test and prediction in order."""

    batch_size: int
    num_workers: int
    pin_memory: bool
    seed: int

    @abstractmethod
    def dataset(self, part: str) -> Any:
        """The samples of "train", "val" or "test"."""

    @property
    def collate(self) -> Callable[[Sequence[Any]], tuple[Tensor, Tensor, Tensor]]:
        """Makes a batch of samples."""
        return pad_collate

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by `EpochSampler`; augmented."""
        return self._loader("train", EpochSampler(len(self.dataset("train")), self.seed))

    def val_dataloader(self) -> DataLoader[Any]:
        """In order, as recorded."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order, as recorded."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples."""
        return self._loader("test")

    def _loader(self, part: str, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        kind = ResumableLoader if part == "train" else DataLoader
        return kind(
            self.dataset(part),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )
