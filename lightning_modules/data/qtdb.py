"""Electrocardiograms with a label at every time step: level-crossing spikes of the QT database.

The file holds ``train_x`` ``[recordings, 1301, 4]`` and ``test_x``, spikes of four channels, and ``train_y``
``[recordings, 1301]`` and ``test_y``: which of six segments of the heart's cycle each step belongs to, -1 where nobody
has labelled it. (QT database: Laguna et al. 1997, PhysioNet; spikes by Yin, Corradi & Bohte, "Accurate and efficient
time-domain classification with adaptive spiking recurrent neural networks", Nature Machine Intelligence 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .archive import ArchiveError, Arrays, read_archive, write_archive
from .events import EventDataError
from .sequences import SequenceDataModule, pad_collate_steps

CLASSES = 6
CHANNELS = 4
UNLABELLED = -1

_SAMPLE_STREAM = 1

_FIELDS = ("train_x", "train_y", "test_x", "test_y")


def read_qtdb(path: str | Path) -> Arrays:
    """Reads and checks the file.

    The -1 that stands in channel 0 of each sequence's last step is no spike; it becomes 0, like every other -1 there.

    Returns:
        ``train_x``, ``train_y``, ``test_x`` and ``test_y``, int8.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no ``.npz`` archive, is cut off or damaged, lacks arrays, or they contradict each other.
            The message names the file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (expected QTDB recordings, .npz)")
    if not path.is_file():
        raise EventDataError(f"{path}: not a file (expected QTDB recordings, .npz)")
    try:
        arrays = read_archive(path)
    except ArchiveError as error:
        raise EventDataError(f"{path}: {error}; expected QTDB recordings") from error
    missing = [name for name in _FIELDS if name not in arrays]
    if missing:
        raise EventDataError(f"{path}: no QTDB recordings: arrays {missing} are missing; found {sorted(arrays)}")
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype.kind not in "iu" or y.dtype.kind not in "iu" or x.ndim != 3 or y.shape != x.shape[:2]:
            raise EventDataError(
                f"{path}: {part}_x must be integers [recordings, steps, channels] and {part}_y integers "
                f"[recordings, steps]; found {x.dtype}{x.shape} and {y.dtype}{y.shape}"
            )
        if x.shape[2] != CHANNELS:
            raise EventDataError(f"{path}: {part}_x must have {CHANNELS} channels, found {x.shape[2]}")
        if y.size and not UNLABELLED <= y.min() <= y.max() < CLASSES:
            raise EventDataError(
                f"{path}: {part}_y must be 0 to {CLASSES - 1}, or -1 without a label; found {y.min()} to {y.max()}"
            )
    return {name: np.maximum(arrays[name], 0 if name[-1] == "x" else -1).astype(np.int8) for name in _FIELDS}


def write_qtdb(path: str | Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes ``train_x``, ``train_y``, ``test_x`` and ``test_y`` in the layout that `read_qtdb` reads."""
    write_archive(Path(path).expanduser(), {name: arrays[name] for name in _FIELDS})


class LabelledSteps(Dataset[tuple[Tensor, Tensor]]):
    """Sequences with a label at every step.

    Args:
        x: Values ``[recordings, steps, channels]``.
        y: Labels ``[recordings, steps]``; -1 is none.
        max_skip: A sample begins at a random step from 0 to this, which it draws anew in every epoch.
        seed: Seed of that; an epoch and a recording always get the same.
    """

    def __init__(self, x: npt.NDArray[Any], y: npt.NDArray[Any], max_skip: int = 0, seed: int = 0) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self._max_skip = max_skip
        self._seed = seed

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.x)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Frames ``[steps, channels]`` float32 and labels ``[steps]`` int64."""
        position, epoch = key if isinstance(key, tuple) else (key, 0)
        first = 0
        if self._max_skip:
            random = np.random.default_rng([self._seed, _SAMPLE_STREAM, epoch, position])
            first = int(random.integers(0, self._max_skip + 1))
        return self.x[position, first:].float(), self.y[position, first:].long()


class QTDBDataModule(SequenceDataModule):
    """QTDB electrocardiograms as level-crossing spikes: 1301 steps of 4 channels, a label at every step.

    Batches are ``(frames [B, 1301, 4], lengths [B], labels [B, 1301])``. The test recordings are the file's. Validation
    samples are taken from its training recordings and are not trained on. Neighbours in the file are often pieces of
    one patient's record, so whole runs of neighbours are taken.

    Example:
        >>> data = QTDBDataModule("qtdb_ecg.npz")
        >>> data.setup()
        >>> data.split_name
        "the file's own test part; 60 of its 618 training recordings (runs of 12, split seed 0) for validation"

    Args:
        path: The ``.npz`` file.
        val_fraction: Part of the training recordings for validation.
        val_run: How many neighbours go to the validation part together.
        max_skip: Training samples begin at a random step from 0 to this. All recordings start at the same point of the
            heart's cycle; with this, their cycles are apart from the first update within a sequence on.
        **kwargs: See `SequenceDataModule`.
    """

    num_classes = CLASSES
    channels = CHANNELS

    def __init__(
        self, path: str | Path, val_fraction: float = 0.1, val_run: int = 12, max_skip: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, got {val_fraction}")
        if val_run < 1:
            raise ValueError(f"val_run must be at least 1, got {val_run}")
        if max_skip < 0:
            raise ValueError(f"max_skip must not be negative, got {max_skip}")
        self.path = path
        self.max_skip = max_skip
        self.val_fraction = val_fraction
        self.val_run = val_run

    @property
    def dataset_name(self) -> str:
        """What the recordings are."""
        return "QTDB ECG, level-crossing spikes"

    @property
    def split_name(self) -> str:
        """Where validation and test recordings come from."""
        val, train = len(self.dataset("val")), len(self.dataset("train"))
        return (
            f"the file's own test part; {val} of its {train + val} training recordings "
            f"(runs of {self.val_run}, split seed {self.split_seed}) for validation"
        )

    @property
    def collate(self) -> Callable[[Sequence[Any]], tuple[Tensor, Tensor, Tensor]]:
        """Labels are sequences too."""
        return pad_collate_steps

    def prepare_data(self) -> None:
        """Reads the file once, so that an error in it shows before training begins."""
        read_qtdb(self.path)

    def load_datasets(self) -> Mapping[str, Dataset[Any]]:
        """Recordings of the file."""
        arrays = read_qtdb(self.path)
        x, y = arrays["train_x"], arrays["train_y"]
        if self.max_skip >= x.shape[1]:
            raise ValueError(f"max_skip {self.max_skip} leaves nothing of {x.shape[1]} steps")
        val = validation_runs(len(x), round(len(x) * self.val_fraction), self.val_run, self.split_seed)
        return {
            "train": LabelledSteps(x[~val], y[~val], self.max_skip, self.seed),
            "val": LabelledSteps(x[val], y[val]),
            "test": LabelledSteps(arrays["test_x"], arrays["test_y"]),
        }


def validation_runs(total: int, wanted: int, run: int, seed: int) -> npt.NDArray[np.bool_]:
    """Which of ``total`` recordings are for validation: whole runs of neighbours, about ``wanted`` recordings.

    Args:
        total: Number of recordings.
        wanted: Number of validation recordings; met to within half a run, but one run at least if it is not 0.
        run: Recordings of a run; the last run of all may be shorter.
        seed: Decides the draw.

    Returns:
        Mask of shape [total].
    """
    runs = -(-total // run)
    chosen = np.random.default_rng(seed).permutation(runs)[: max(round(wanted / run), int(wanted > 0))]
    mask: npt.NDArray[np.bool_] = np.isin(np.arange(total) // run, chosen)
    return mask
