"""The data of the run in :mod:`tests.data.version_0_1_0.write`, as YAML names it."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tests.data.version_0_1_0.write import make_loader


class TinyData(LightningDataModule):
    """Twelve sequences."""

    def train_dataloader(self) -> DataLoader[Any]:
        return make_loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return make_loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return make_loader()
