"""What the public event-camera sets share: found or fetched, read by file into a cache of frames, split by file."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .datamodule import EventFrameDataModule, Split
from .digests import content_digest
from .download import RemoteFile, data_root, fetch, manual_steps, unpack, verify
from .events import EventDataError
from .frame_cache import CachedFrames, Sample, cached_frames
from .frames import Binning, FrameStore, count_events
from .parts import PARTS, NamedSplit
from .splits import stratified_split

FORMAT_VERSION = 1
"""Raised when the same files would give other frames, so that caches of older versions are not used."""

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_STRAY = 0.01


class IncompleteError(EventDataError):
    """A folder that looks like the set, but lacks a part of it; where the set can be fetched, it will be."""


@dataclass(frozen=True)
class Recording:
    """One file of a data set.

    Attributes:
        path: The file.
        label: Its class; -1 for a file with several.
        part: "train" or "test" where the data set itself says so, else "".
        group: Whose recording it is, where that matters for the split.
    """

    path: Path
    label: int
    part: str = ""
    group: str = ""


class RecordingsDataModule(EventFrameDataModule, NamedSplit):
    """A public data set of recordings in files.

    **Where it comes from.** `path` is a folder that holds the set, unpacked or as the archives that its makers offer.
    Without it the set is looked for in ``STLLR_DATA`` (else in the cache directory) and fetched there, if its source
    can be fetched; else the error says what to do by hand.

    **What is kept.** Frames, in a cache that depends on the files and on all settings that change frames; they are
    mapped into memory, so several processes share them. Building it can be interrupted.

    **Splits.** Validation samples are taken from the training recordings. With ``val_fraction=0`` all of these train
    and the test samples serve for validation too, as in much published work: the best epoch is then chosen on the
    test samples, and the split's name says so.

    Name and split of the data stand in the log of every run, in the loggers' hyperparameters and in checkpoints; a
    checkpoint from another split gives a warning.

    Args:
        path: Folder with the data set.
        val_fraction: Part of the training recordings for validation.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        **kwargs: See `EventFrameDataModule`.
    """

    set_name: ClassVar[str]
    folder_name: ClassVar[str]
    layout: ClassVar[str]
    """What a folder with this set looks like, for messages."""
    official_count: ClassVar[int]
    """Recordings of the complete set."""
    files: ClassVar[tuple[RemoteFile, ...]] = ()
    other_archives: ClassVar[tuple[str, ...]] = ()
    """Names of archives of other mirrors, which are unpacked where a user has put them."""

    def __init__(
        self,
        path: str | Path | None = None,
        val_fraction: float = 0.1,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, got {val_fraction}")
        self.path = path
        self.val_fraction = val_fraction
        self.cache_dir = cache_dir
        self.progress = True
        self._recordings: list[Recording] = []
        self._cached: CachedFrames | None = None
        self._validates = True

    # What a data set defines.

    @abstractmethod
    def find(self, folder: Path) -> list[Recording]:
        """The set's recordings in a folder, always in the same order; none if the folder does not look like the set.

        Raises:
            IncompleteError: It looks like the set, but something is missing.
        """

    @abstractmethod
    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """The samples of one file: events with times from 0, and the class."""

    def frame_settings(self) -> dict[str, Any]:
        """What frames depend on besides the files, the sensor and the binning, as plain JSON values."""
        return {}

    def binning_of(self, recording: Recording) -> Binning:
        """How this recording is cut into steps."""
        return self.binning

    @property
    @abstractmethod
    def split_rule(self) -> str:
        """What decides the split, for its name."""

    @abstractmethod
    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """Numbers of the recordings of "train", "val" and "test"; without any of "val" the test samples validate."""

    # The rest is common.

    @property
    def dataset_name(self) -> str:
        """Name of the set, and how much of it is there if it is not the whole."""
        count = len(self._located())
        return self.set_name if count == self.official_count else f"{self.set_name} ({count} recordings)"

    @property
    def split_name(self) -> str:
        """Sizes in samples, and what decided them."""
        train, val, test = (len(self.dataset(part)) for part in PARTS)
        if not self._validates:
            return f"{train}/{test} train/test samples, {self.split_rule}; validated on the test samples"
        return f"{train}/{val}/{test} train/val/test samples, {self.split_rule}"

    @property
    def folder(self) -> Path:
        """Where the set is looked for."""
        return data_root() / self.folder_name if self.path is None else Path(self.path).expanduser()

    def prepare_data(self) -> None:
        """Finds or fetches the set and fills the cache (one process does, for all)."""
        self._locate(fetch_it=True)
        self._frames()

    def load_frames(self) -> tuple[FrameStore, npt.NDArray[np.integer], dict[str, Any]]:
        """Frames from the cache."""
        cached = self._frames()
        facts = {
            "recordings": len(self._located()),
            "events_per_recording": round(float(cached.events.mean()), 1) if len(cached.events) else float("nan"),
        }
        return cached.store, cached.labels, facts

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits the frames, and says in log and loggers which data and split they are."""
        first = not self._datasets
        super().setup(stage)
        if first:
            self.tell_names()

    def split(self, labels: npt.NDArray[np.integer]) -> Split:
        """All samples of a recording belong to the same part."""
        assert self._cached is not None
        parts = self.split_recordings(self._located())
        self._validates = len(parts["val"]) > 0
        chosen = {part: np.flatnonzero(np.isin(self._cached.sources, parts[part])) for part in PARTS}
        if not self._validates:
            chosen["val"] = chosen["test"]
        for part in ("train", "test"):
            if len(chosen[part]) == 0:
                raise EventDataError(f"{self.folder}: no sample is left for {part}: {len(labels)} are too few to split")
        return chosen

    def _located(self) -> list[Recording]:
        return self._recordings or self._locate(fetch_it=False)

    def _locate(self, fetch_it: bool) -> list[Recording]:
        folder = self.folder
        if self.path is not None and not folder.is_dir():
            what = "a file, not a folder" if folder.exists() else "no such folder"
            raise EventDataError(f"{folder}: {what}; pass the folder with {self.set_name}: {self.layout}")
        found, problem = self._search()
        if not found and fetch_it:
            self._unpack_what_is_there(folder)
            found, problem = self._search()
            if not found and self.path is None:
                for file in self.files:
                    archive = fetch(file, folder, self.progress)
                    self._unpack_all(archive, folder / _stem(archive.name))
                found, problem = self._search()
        if not found:
            seen = problem or f"{folder}: {self.set_name} is not here. Found: {_listing(folder)}"
            steps = manual_steps(self.files, data_root() / self.folder_name)
            raise EventDataError(f"{seen}. Expected: {self.layout}.\n{steps}")
        self._recordings = found
        return found

    def _search(self) -> tuple[list[Recording], IncompleteError | None]:
        try:
            return (self.find(self.folder) if self.folder.is_dir() else []), None
        except IncompleteError as error:
            return [], error

    def _unpack_what_is_there(self, folder: Path) -> None:
        known = {file.name: file for file in self.files}
        for name in (*known, *self.other_archives):
            archive = folder / name
            if archive.is_file() and not (folder / _stem(name)).exists():
                if name in known:
                    verify(archive, known[name].checksum)
                self._unpack_all(archive, folder / _stem(name))

    def _unpack_all(self, archive: Path, destination: Path) -> None:
        """Unpacks an archive and the archives in it."""
        unpack(archive, destination, self.progress)
        for inner in sorted(path for path in destination.rglob("*") if path.name.endswith(_ARCHIVES)):
            if inner.is_file():
                self._unpack_all(inner, inner.parent / _stem(inner.name))

    def _frames(self) -> CachedFrames:
        if self._cached is None:
            recordings = self._located()
            settings = {
                "format": FORMAT_VERSION,
                "files": _fingerprint(recordings, self.folder, self.cache_dir),
                "sensor": self.sensor_size,
                "duration_us": self.duration_us,
                "binning": asdict(self.binning),
                **self.frame_settings(),
            }
            self._cached = cached_frames(
                self.folder_name, settings, len(recordings), self._samples, self.cache_dir, self.progress
            )
        return self._cached

    def _samples(self, number: int) -> list[Sample]:
        recording = self._recordings[number]
        binning, samples = self.binning_of(recording), []
        for events, label in self.read(recording):
            events = self._on_sensor(events, recording.path)
            frames = count_events(events, binning, self.sensor_size, self.duration_us)
            samples.append(Sample(frames, label, len(events)))
        return samples

    def _on_sensor(self, events: npt.NDArray[np.void], path: Path) -> npt.NDArray[np.void]:
        """Drops stray events that lie outside of the sensor; refuses a file with many, which must be another one."""
        height, width = self.sensor_size
        inside = (events["x"] >= 0) & (events["x"] < width) & (events["y"] >= 0) & (events["y"] < height)
        stray = len(events) - int(np.count_nonzero(inside))
        if stray > _STRAY * len(events):
            raise EventDataError(
                f"{path}: {stray} of {len(events)} events lie outside of the sensor of {height} rows and {width} "
                f"columns; is it a recording of {self.set_name}?"
            )
        return events[inside] if stray else events


def stratified_parts(
    recordings: Sequence[Recording], test_fraction: float, val_fraction: float, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Splits by class: the test recordings are the set's own, or drawn where it has none; the rest trains or validates.

    The test recordings do not depend on ``val_fraction``.
    """
    labels = np.array([recording.label for recording in recordings])
    test = np.flatnonzero([recording.part == "test" for recording in recordings])
    if len(test) == 0:
        count = round(len(labels) * test_fraction)
        _, test = stratified_split(labels, (len(labels) - count, count), seed)
    return {**validation_from(np.setdiff1d(np.arange(len(labels)), test), labels, val_fraction, seed), "test": test}


def validation_from(
    training: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], val_fraction: float, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Takes validation recordings, by class, from the training recordings."""
    count = round(len(training) * val_fraction)
    train, val = stratified_split(labels[training], (len(training) - count, count), seed)
    return {"train": training[train], "val": training[val]}


def folders_within(folder: Path, depth: int = 4) -> Iterator[Path]:
    """The folder and those in it, nearest first, in the order of their names; hidden ones are left out."""
    level = [folder]
    for _ in range(depth + 1):
        yield from level
        below = []
        for parent in level:
            with os.scandir(parent) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
            below += [parent / name for name in names]
        level = below


def files_of(folder: Path, *endings: str) -> list[Path]:
    """The files with one of the endings, in the order of the numbers in their names."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(endings) and not entry.name.startswith(".")]
    return [folder / name for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> tuple[int, str]:
    digits = "".join(c if c.isdigit() else " " for c in name.partition(".")[0]).split()
    return (int(digits[-1]) if digits else 0, name)


def _fingerprint(recordings: Sequence[Recording], folder: Path, cache_dir: str | Path | None) -> str:
    """Hash of names and contents of all files: another version of the data makes another cache."""
    digest = hashlib.blake2b(digest_size=16)
    contents = content_digest([recording.path for recording in recordings], cache_dir)
    for recording, content in zip(recordings, contents, strict=True):
        name = recording.path.relative_to(folder).as_posix()
        digest.update(f"{name} {content} {recording.label} {recording.part}\n".encode())
    return digest.hexdigest()


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return (", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")) or "nothing"


def _stem(name: str) -> str:
    for ending in sorted(_ARCHIVES, key=len, reverse=True):
        if name.endswith(ending):
            return name[: -len(ending)]
    return name
