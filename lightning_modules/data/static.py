"""Static images, shown for some time steps: CIFAR-10 and CIFAR-100 through torchvision's own data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .download import data_root
from .events import EventDataError
from .sequences import SequenceDataModule
from .splits import stratified_split

_SAMPLE_STREAM = 1

# Means and standard deviations of the training images' channels, in units of the largest value.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class StaticImages(Dataset[tuple[Tensor, int]]):
    """Images with labels.

    Args:
        images: ``[images, height, width, 3]``, bytes.
        labels: Their classes.
        normalise: Mean and standard deviation of each channel.
        pad: With a number of pixels: images are padded by it and cut at a random place, and mirrored every other time.
        seed: Seed of that; an epoch and an image always get the same.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer],
        normalise: tuple[Sequence[float], Sequence[float]],
        pad: int | None = None,
        seed: int = 0,
    ) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = labels
        self._mean, self._deviation = (torch.tensor(values).view(-1, 1, 1) for values in normalise)
        self._pad = pad
        self._seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Image ``[3, height, width]`` float32 and label."""
        position, epoch = key if isinstance(key, tuple) else (key, 0)
        image = self._images[position].permute(2, 0, 1)
        if self._pad is not None:
            random = np.random.default_rng([self._seed, _SAMPLE_STREAM, epoch, position])
            down, right, mirror = (int(n) for n in random.integers(0, (2 * self._pad + 1, 2 * self._pad + 1, 2)))
            height, width = image.shape[1:]
            image = torch.nn.functional.pad(image, (self._pad,) * 4)[:, down : down + height, right : right + width]
            image = image.flip(2) if mirror else image
        return (image.float() / 255 - self._mean) / self._deviation, int(self.labels[position])


class RepeatedImages:
    """Makes batches in which the same image stands at every time step ("direct encoding").

    The first layer of the network turns it into spikes.

    Args:
        num_steps: Number of time steps.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Frames ``[B, T, 3, height, width]`` (one copy, seen T times), lengths ``[B]`` and labels ``[B]``."""
        images = torch.stack([image for image, _ in samples])
        labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
        frames = images.unsqueeze(1).expand(-1, self.num_steps, *images.shape[1:])
        return frames, torch.full_like(labels, self.num_steps), labels


class _CIFARDataModule(SequenceDataModule):
    """CIFAR-10 or CIFAR-100."""

    torchvision_name: str
    folder: str
    normalise: tuple[Sequence[float], Sequence[float]]

    def __init__(
        self,
        path: str | Path | None = None,
        num_steps: int = 6,
        augment: bool = True,
        val_size: int = 5000,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_steps < 1 or val_size < 0:
            raise ValueError(f"num_steps must be at least 1 and val_size not negative, got {num_steps} and {val_size}")
        self.path = Path(path).expanduser() if path is not None else None
        self.num_steps = num_steps
        self.augment = augment
        self.val_size = val_size
        self.download = download

    @property
    def dataset_name(self) -> str:
        """The images, and how they are shown."""
        return f"{self.torchvision_name}, {self.num_steps} steps, direct encoding"

    @property
    def split_name(self) -> str:
        """Where validation and test images come from."""
        val, train = len(self.dataset("val")), len(self.dataset("train"))
        return (
            f"the official test part; {val} of the {train + val} training images "
            f"(stratified, split seed {self.split_seed}) for validation"
        )

    @property
    def collate(self) -> Callable[[Sequence[Any]], tuple[Tensor, Tensor, Tensor]]:
        """Shows images for some steps."""
        return RepeatedImages(self.num_steps)

    def prepare_data(self) -> None:
        """Downloads the images where they are not there yet (and ``path`` is left out)."""
        if self.path is None and self.download:
            self._images(train=True, download=True)
            self._images(train=False, download=True)

    def load_datasets(self) -> Mapping[str, Dataset[Any]]:
        """Images of torchvision's data set."""
        images, labels = self._images(train=True)
        if self.val_size >= len(labels):
            raise ValueError(f"val_size {self.val_size} leaves nothing of {len(labels)} images to train on")
        train, val = stratified_split(labels, (len(labels) - self.val_size, self.val_size), self.split_seed)
        pad = images.shape[1] // 8 if self.augment else None
        return {
            "train": StaticImages(images[train], labels[train], self.normalise, pad, self.seed),
            "val": StaticImages(images[val], labels[val], self.normalise),
            "test": StaticImages(*self._images(train=False), self.normalise),
        }

    def _images(self, train: bool, download: bool = False) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        try:
            from torchvision import datasets
        except ImportError as error:
            raise ImportError('CIFAR needs torchvision: pip install "stllr-plugin[vision]"') from error
        root = data_root() if self.path is None else self.path
        if root.name == self.folder:  # the folder itself, where torchvision wants the one it lies in
            root = root.parent
        try:
            found = getattr(datasets, self.torchvision_name)(str(root), train=train, download=download)
        except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
            raise EventDataError(
                f"{root}: {self.torchvision_name} is not there, or is cut off or damaged ({error}). Expected the "
                f"folder {self.folder} in it, unpacked from an archive of https://www.cs.toronto.edu/~kriz/cifar.html; "
                "leave path out to download it."
            ) from error
        return np.asarray(found.data), np.asarray(found.targets, dtype=np.int64)


class CIFAR10DataModule(_CIFARDataModule):
    """CIFAR-10, shown for some time steps: ``(frames [B, T, 3, 32, 32], lengths [B], labels [B])``.

    Training images are shifted by up to four pixels and mirrored at random. The test images are the official ones;
    validation images, stratified by class, are kept from training.

    Args:
        path: Folder that holds torchvision's ``cifar-10-batches-py``. Left out, it is downloaded once.
        num_steps: Time steps for which an image is shown.
        augment: Shift and mirror training images.
        val_size: Number of training images for validation.
        download: Whether to download what is not there.
        **kwargs: See `SequenceDataModule`.
    """

    num_classes = 10
    torchvision_name = "CIFAR10"
    folder = "cifar-10-batches-py"
    normalise = _CIFAR10


class CIFAR100DataModule(_CIFARDataModule):
    """CIFAR-100, shown for some time steps; otherwise as `CIFAR10DataModule`.

    Args:
        path: Folder that holds torchvision's ``cifar-100-python``. Left out, it is downloaded once.
        num_steps: Time steps for which an image is shown.
        augment: Shift and mirror training images.
        val_size: Number of training images for validation.
        download: Whether to download what is not there.
        **kwargs: See `SequenceDataModule`.
    """

    num_classes = 100
    torchvision_name = "CIFAR100"
    folder = "cifar-100-python"
    normalise = _CIFAR100
