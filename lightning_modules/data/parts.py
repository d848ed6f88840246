"""What all data modules share: parts and their loaders, seeds, the names of data and split."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.tasks.resumable import ResumableLoader

from .loading import EpochSampler, pad_collate

PARTS = ("train", "val", "test")


class PartsDataModule(pl.LightningDataModule, ABC):
    """Training batches in a seeded order that a checkpoint can hold; validation, test and prediction in order.

    Args:
        batch_size: Samples of a batch.
        num_workers: Processes that load batches.
        seed: Seed of the order of the training samples and of the augmentation. Default: that of Lightning's
            ``seed_everything``, or 0 where it was not called.
        split_seed: Seed of the split.
        pin_memory: Use page-locked memory, which speeds up copies to a CUDA device.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        split_seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for name, value in (("num_workers", num_workers), ("seed", seed or 0), ("split_seed", split_seed)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.split_seed = split_seed
        self.pin_memory = pin_memory
        self._datasets: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """Name of the recordings, as results should call them. Known after `setup`."""

    @property
    @abstractmethod
    def split_name(self) -> str:
        """Name of the split, as results should call it. Known after `setup`."""

    def dataset(self, part: str) -> Any:
        """The samples of "train", "val" or "test".

        Raises:
            RuntimeError: `setup` has not been called.
        """
        if not self._datasets:
            raise RuntimeError(f"call {type(self).__name__}.setup() first (a Lightning Trainer does)")
        return self._datasets[part]

    @property
    def collate(self) -> Callable[[Sequence[Any]], tuple[Tensor, Tensor, Tensor]]:
        """Makes a batch of samples."""
        return pad_collate

    def loader_options(self, part: str) -> dict[str, Any]:
        """How a part's loader makes its batches: arguments of ``DataLoader``."""
        sampler = EpochSampler(len(self.dataset(part)), self.seed) if part == "train" else None
        pin_memory = self.pin_memory
        return {"batch_size": self.batch_size, "sampler": sampler, "collate_fn": self.collate, "pin_memory": pin_memory}

    def train_dataloader(self) -> DataLoader[Any]:
        """In another order in every epoch; augmented."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """In order, as recorded."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order, as recorded."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples."""
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader[Any]:
        kind = ResumableLoader if part == "train" else DataLoader
        options = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return kind(self.dataset(part), **self.loader_options(part) | options)


class NamedSplit(PartsDataModule):
    """Data whose name and split stand in logs and checkpoints, because other users of them split them otherwise."""

    item = "samples"
    """What is split, for messages."""

    def tell_names(self) -> None:
        """Say in log and loggers which data and split these are."""
        names = self.state_dict()
        rank_zero_info(f"Data: {names['dataset']}; split: {names['split']}")
        for logger in self.trainer.loggers if self.trainer is not None else ():
            logger.log_hyperparams(names)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: names of data and split."""
        return {"dataset": self.dataset_name, "split": self.split_name} if self._datasets else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the names; another split may test on what was trained on."""
        now = self.state_dict()
        if now and state_dict and now != state_dict:
            warnings.warn(
                f"the checkpoint comes from other data or another split ({state_dict}; now {now}): {self.item} that "
                "are tested now may have been trained on",
                stacklevel=2,
            )
