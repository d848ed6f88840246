"""Real recordings: a small subset of N-MNIST in one ``.npz`` file.

The file holds the arrays of `PackedEvents` and ``n_train``: so many of the first samples come from N-MNIST's training
set, the rest from its test set. N-MNIST: Orchard et al. 2015, digits of MNIST recorded with an event camera on a moving
platform.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import ArchiveError, read_archive, write_archive
from .datamodule import EventFrameDataModule, Split
from .events import EventDataError
from .packed import PackedEvents
from .splits import stratified_split

SENSOR_SIZE = (34, 34)
DURATION_US = 310_000
"""The three saccades are over by then; a recording goes on up to 26 ms longer with hardly an event."""

_CLASSES = 10


def read_nmnist_subset(path: str | Path) -> tuple[PackedEvents, int]:
    """Reads and checks a subset file.

    Returns:
        The recordings, and how many of the first of them come from N-MNIST's training set.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no ``.npz`` archive, is cut off or damaged, lacks arrays, or its arrays contradict each
            other. The message names the file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (expected an N-MNIST subset, .npz)")
    if not path.is_file():
        raise EventDataError(f"{path}: not a file (expected an N-MNIST subset, .npz)")
    try:
        arrays = read_archive(path)
    except ArchiveError as error:
        raise EventDataError(f"{path}: {error}; expected an N-MNIST subset") from error
    missing = [name for name in (*PackedEvents.FIELDS, "n_train") if name not in arrays]
    if missing:
        raise EventDataError(f"{path}: not an N-MNIST subset: arrays {missing} are missing; found {sorted(arrays)}")
    packed = PackedEvents.from_arrays(arrays, SENSOR_SIZE, str(path))
    outside = np.flatnonzero((packed.labels < 0) | (packed.labels >= _CLASSES))
    if outside.size:
        i = int(outside[0])
        raise EventDataError(f"{path}: labels must be 0 to {_CLASSES - 1}, recording {i} has {packed.labels[i]}")
    n_train = arrays["n_train"]
    if n_train.ndim != 0 or n_train.dtype.kind not in "iu" or not 0 <= n_train <= len(packed):
        raise EventDataError(f"{path}: n_train must be one integer from 0 to {len(packed)}, found {n_train}")
    return packed, int(n_train)


def write_nmnist_subset(path: str | Path, packed: PackedEvents, n_train: int) -> None:
    """Writes recordings of a 34x34 sensor in the layout that `read_nmnist_subset` reads."""
    write_archive(Path(path).expanduser(), {**packed.to_arrays(), "n_train": np.array(n_train, dtype=np.int64)})


class NMNISTSubsetDataModule(EventFrameDataModule):
    """A subset of N-MNIST, split anew: N-MNIST's own test part of it is too small to compare networks.

    All samples of the file are mixed and split into training and test samples, stratified; the validation samples are
    taken from the training samples and are not trained on. ``split_name`` tells which split it is.

    Example:
        >>> data = NMNISTSubsetDataModule("nmnist_small.npz", num_steps=15)
        >>> data.setup()
        >>> data.report()["split"]
        're-split 800/300 (stratified, split seed 0), 100 of the 800 for validation'

    Args:
        path: The ``.npz`` file.
        train_size: Samples for training and validation together.
        val_size: How many of them are for validation.
        test_size: Samples for the test.
        **kwargs: See `EventFrameDataModule`.
    """

    def __init__(
        self, path: str | Path, train_size: int = 800, val_size: int = 100, test_size: int = 300, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= val_size < train_size or test_size < 0:
            raise ValueError(
                "val_size must be less than train_size and no size negative, "
                f"got train_size {train_size}, val_size {val_size}, test_size {test_size}"
            )
        self.path = path
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        self._origin: tuple[int, int] | None = None

    @property
    def dataset_name(self) -> str:
        """Name that tells how many samples of N-MNIST's training and test set the file has."""
        if self._origin is None:
            raise RuntimeError("call setup() first: the file tells what it contains")
        return f"N-MNIST, {self._origin[0]}+{self._origin[1]} subset"

    @property
    def split_name(self) -> str:
        """Sizes and seed of the split."""
        return (
            f"re-split {self.train_size}/{self.test_size} (stratified, split seed {self.split_seed}), "
            f"{self.val_size} of the {self.train_size} for validation"
        )

    @property
    def duration_us(self) -> int:
        """Time in which the three saccades take place."""
        return DURATION_US

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width."""
        return SENSOR_SIZE

    def prepare_data(self) -> None:
        """Reads the file once, so that an error in it shows before training begins."""
        self.load_events()

    def load_events(self) -> PackedEvents:
        """Recordings of the file."""
        packed, n_train = read_nmnist_subset(self.path)
        if self.train_size + self.test_size > len(packed):
            raise EventDataError(
                f"{self.path}: {len(packed)} samples are too few for "
                f"train_size {self.train_size} + test_size {self.test_size}"
            )
        self._origin = (n_train, len(packed) - n_train)
        return packed

    def split(self, labels: npt.NDArray[np.integer]) -> Split:
        """Stratified by class; the test samples do not depend on ``val_size``."""
        train, test = stratified_split(labels, (self.train_size, self.test_size), self.split_seed)
        kept, val = stratified_split(labels[train], (self.train_size - self.val_size, self.val_size), self.split_seed)
        return {"train": train[kept], "val": train[val], "test": test}
