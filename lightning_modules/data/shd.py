"""Spoken words as spikes of an artificial cochlea: SHD, SSC, and files of one's own in the same layout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .download import RemoteFile, data_root, fetch, unpack
from .events import EventDataError
from .parts import PARTS
from .sequences import SequenceDataModule
from .spike_cache import BinnedSpikes
from .spike_files import CHANNELS, SpikeFile, import_h5py
from .splits import stratified_split

_SAMPLE_STREAM = 1
_PAGE = "https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/"
_MIRRORS = ("https://zenkelab.org/datasets/", "https://compneuro.net/datasets/")

# SHD and SSC are CC BY 4.0.
_FILES = {
    "shd_train": "md5:f3252aeb598ac776c1b526422d90eecb",
    "shd_test": "md5:1503a5064faa34311c398fb0a1ed0a6f",
    "ssc_train": "md5:d102be95e7144fcc0553d1f45ba94170",
    "ssc_valid": "md5:b4eee3516a4a90dd0c71a6ac23a8ae43",
    "ssc_test": "md5:a35ff1e9cffdd02a20eb850c17c37748",
}


class SpikeFrames(Dataset[tuple[Tensor, int]]):
    """Recordings as counts per time step and channel.

    Args:
        spikes: The recordings of a file.
        indices: Which of them belong to this part.
        clip: Largest count of a channel in a step; 1 makes frames binary, None leaves the counts.
        max_shift: All spikes of a recording are shifted at random by up to this many channels, as another voice would.
        event_drop: Probability with which every single spike is dropped.
        seed: Seed of both; an epoch and a recording always get the same.
    """

    def __init__(
        self,
        spikes: BinnedSpikes,
        indices: npt.NDArray[np.int64],
        clip: int | None = None,
        max_shift: int = 0,
        event_drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._spikes = spikes
        self.indices = indices
        self.labels = spikes.file.labels[indices]
        self._clip = clip
        self._max_shift = max_shift
        self._event_drop = event_drop
        self._seed = seed

    def __len__(self) -> int:
        """Number of recordings of this part."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Frames ``[steps, channels]`` float32 and label."""
        position, epoch = key if isinstance(key, tuple) else (key, 0)
        index = int(self.indices[position])
        step, units, num_steps = self._spikes.spikes(index)
        channels, unit = self._spikes.file.channels, units.astype(np.int64)
        if self._max_shift or self._event_drop:
            random = np.random.default_rng([self._seed, _SAMPLE_STREAM, epoch, index])
            unit = unit + int(random.integers(-self._max_shift, self._max_shift + 1))
            kept = (unit >= 0) & (unit < channels) & (random.random(len(unit)) >= self._event_drop)
            step, unit = step[kept], unit[kept]
        counts = np.bincount(step * channels + unit, minlength=num_steps * channels).reshape(num_steps, channels)
        frames = torch.from_numpy(counts).to(torch.float32)
        return (frames if self._clip is None else frames.clamp_(max=self._clip)), int(self.labels[position])


class SpikeAudioDataModule(SequenceDataModule):
    """Spoken words in SHD's layout as frames: ``(frames [B, T, 700] float32, lengths [B], labels [B])``.

    A subclass says which files there are (`files`) and which recordings train (`split`).

    Args:
        num_steps: Time steps of every recording: spikes after them are left out, steps after the last spike are silent.
            None: every recording has its own length.
        step_ms: Duration of a time step in milliseconds.
        clip: Largest count of a channel in a step; 1 makes frames binary, None leaves the counts.
        max_shift: The spikes of a training sample are shifted at random by up to this many channels.
        event_drop: Every spike of a training sample is dropped with this probability.
        val_fraction: Part of the training recordings for validation, where the data set has no such part.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        progress: Show progress bars.
        **kwargs: See `SequenceDataModule`.
    """

    channels = CHANNELS

    def __init__(
        self,
        num_steps: int | None = 100,
        step_ms: float = 10.0,
        clip: int | None = None,
        max_shift: int = 0,
        event_drop: float = 0.0,
        val_fraction: float = 0.1,
        cache_dir: str | Path | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (num_steps is not None and num_steps < 1) or step_ms <= 0:
            raise ValueError(f"num_steps and step_ms must be positive, got {num_steps} and {step_ms}")
        if clip is not None and clip < 1:
            raise ValueError(f"clip must be at least 1 or None, got {clip}")
        if max_shift < 0 or not 0 <= event_drop < 1:
            raise ValueError(
                f"max_shift must not be negative and event_drop at least 0 and less than 1, "
                f"got {max_shift} and {event_drop}"
            )
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, got {val_fraction}")
        self.num_steps = num_steps
        self.step_ms = step_ms
        self.clip = clip
        self.max_shift = max_shift
        self.event_drop = event_drop
        self.val_fraction = val_fraction
        self.cache_dir = cache_dir
        self.progress = progress

    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """The files, by a name that `split` uses. Called by every process."""

    @abstractmethod
    def split(self, files: Mapping[str, SpikeFile]) -> Mapping[str, tuple[str, npt.NDArray[np.int64]]]:
        """For "train", "val" and "test": which file, and which recordings of it."""

    def prepare_data(self) -> None:
        """Fetches the files and fills the cache (one process does, for all)."""
        self._open()

    def load_datasets(self) -> Mapping[str, Dataset[Any]]:
        """Recordings from the cache."""
        binned = self._open()
        split = self.split({name: one.file for name, one in binned.items()})
        datasets = {}
        for part in PARTS:
            name, indices = split[part]
            shift, drop = (self.max_shift, self.event_drop) if part == "train" else (0, 0.0)
            datasets[part] = SpikeFrames(binned[name], indices, self.clip, shift, drop, self.seed)
        return datasets

    def _open(self) -> dict[str, BinnedSpikes]:
        import_h5py()
        return {
            name: BinnedSpikes(
                SpikeFile(path, self.num_classes, self.channels),
                self.num_steps,
                self.step_ms,
                self.cache_dir,
                self.progress,
            )
            for name, path in self.files().items()
        }

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result."""
        steps = "each its own" if self.num_steps is None else self.num_steps
        augmentation = {"max_shift": self.max_shift, "event_drop": self.event_drop}
        return {
            **super().report(),
            "steps": steps,
            "step_ms": self.step_ms,
            "clip": self.clip,
            "augmentation": augmentation,
        }

    def _hold_out(self, labels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions for training and for validation, stratified by class."""
        val = round(len(labels) * self.val_fraction)
        train, held_out = stratified_split(labels, (len(labels) - val, val), self.split_seed)
        return train, held_out


class _HeidelbergDataModule(SpikeAudioDataModule):
    """SHD or SSC: their files, in a folder or downloaded."""

    prefix: str
    parts: Sequence[str]

    def __init__(self, path: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def files(self) -> Mapping[str, Path]:
        """The files in ``path``; without it, those that were downloaded, or are now."""
        names = {part: f"{self.prefix}_{part}" for part in self.parts}
        if self.path is None:
            return {part: _fetched(self.prefix, name, self.progress) for part, name in names.items()}
        folder = Path(self.path).expanduser()
        found = {part: folder / f"{name}.h5" for part, name in names.items()}
        missing = [path.name for path in found.values() if not path.exists()]
        if missing:
            there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else None
            raise FileNotFoundError(
                f"{folder}: "
                + ("no such folder" if there is None else f"{missing} are not in this folder; it has {there[:10]}")
                + f". Expected {self.prefix.upper()}'s files, unpacked (see {_PAGE}); leave path out to download them."
            )
        return found


class SHDDataModule(_HeidelbergDataModule):
    """Spiking Heidelberg Digits: twenty spoken digits, English and German, 700 channels; 100 steps of 10 ms.

    The test recordings are the data set's own. It has no validation part: a part of the training recordings, stratified
    by class, is kept from training. With ``val_fraction=0`` the test recordings take its place, as in published code;
    an epoch that they choose is no fair one, and `split_name` says so.

    Args:
        path: Folder with ``shd_train.h5`` and ``shd_test.h5``. Left out, they are downloaded once.
        **kwargs: See `SpikeAudioDataModule`.
    """

    num_classes = 20
    prefix = "shd"
    parts = ("train", "test")

    @property
    def dataset_name(self) -> str:
        """What the recordings are."""
        return "SHD"

    @property
    def split_name(self) -> str:
        """Where validation and test recordings come from."""
        val, train = len(self.dataset("val")), len(self.dataset("train"))
        if self.val_fraction == 0:
            return "the official parts; the test recordings are the validation recordings too"
        return (
            f"the official test part; {val} of the {train + val} training recordings "
            f"(stratified, split seed {self.split_seed}) for validation"
        )

    def split(self, files: Mapping[str, SpikeFile]) -> Mapping[str, tuple[str, npt.NDArray[np.int64]]]:
        """The official parts; validation from training."""
        train, val = self._hold_out(files["train"].labels)
        test = ("test", np.arange(len(files["test"])))
        return {"train": ("train", train), "val": ("train", val) if len(val) else test, "test": test}


class SSCDataModule(_HeidelbergDataModule):
    """Spiking Speech Commands: 35 spoken words, 700 channels, with parts for training, validation and test.

    Args:
        path: Folder with ``ssc_train.h5``, ``ssc_valid.h5`` and ``ssc_test.h5``. Left out, they are downloaded once.
        **kwargs: See `SpikeAudioDataModule`; ``val_fraction`` is not used.
    """

    num_classes = 35
    prefix = "ssc"
    parts = ("train", "valid", "test")

    @property
    def dataset_name(self) -> str:
        """What the recordings are."""
        return "SSC"

    @property
    def split_name(self) -> str:
        """The data set's own."""
        return "the official parts for training, validation and test"

    def split(self, files: Mapping[str, SpikeFile]) -> Mapping[str, tuple[str, npt.NDArray[np.int64]]]:
        """The official parts."""
        names = {"train": "train", "val": "valid", "test": "test"}
        return {part: (name, np.arange(len(files[name]))) for part, name in names.items()}


def _fetched(prefix: str, name: str, progress: bool) -> Path:
    """Path of a downloaded file, unpacked."""
    folder = data_root() / prefix
    plain = folder / f"{name}.h5"
    if plain.exists():
        return plain
    unpacked = folder / name
    if not unpacked.exists():
        archive = f"{name}.h5.zip"
        remote = RemoteFile(archive, _FILES[name], tuple(mirror + archive for mirror in _MIRRORS), page=_PAGE)
        unpack(fetch(remote, folder, progress), unpacked, progress)
    found = sorted(unpacked.rglob(f"{name}.h5"))
    if not found:
        raise EventDataError(f"{unpacked}: there is no {name}.h5 in it; delete the folder to have it fetched again")
    return found[0]
