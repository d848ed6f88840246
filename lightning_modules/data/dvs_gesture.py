"""DVS Gesture: eleven gestures of 29 people under three kinds of light (Amir et al. 2017)."""

from __future__ import annotations

import csv
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .download import RemoteFile
from .events import EventDataError, make_events
from .frames import Binning
from .readers import read_aedat3
from .recordings import IncompleteError, Recording, RecordingsDataModule, files_of, folders_within

_FIGSHARE = "https://figshare.com/articles/dataset/DVS_Gestures_dataset/20022224"
_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
_COLUMNS = ["class", "startTime_usec", "endTime_usec"]


def _remote(name: str, number: int, md5: str) -> RemoteFile:
    urls = (f"https://api.figshare.com/v2/file/download/{number}", f"https://figshare.com/ndownloader/files/{number}")
    return RemoteFile(
        name,
        f"md5:{md5}",
        urls,
        f"https://figshare.com/ndownloader/files/{number}",
        "in a browser; or DvsGesture.tar.gz, the original, from "
        "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
    )


class DVSGestureDataModule(RecordingsDataModule):
    """DVS Gesture, cut into slices of 1.5 s, of 20 steps each.

    Two forms of the set are read: the original (DvsGesture.tar.gz, AEDAT 3.1 with tables of labels), and that of tonic
    (ibmGestureTrain, ibmGestureTest: one array for each gesture, times in milliseconds), which can be fetched. The
    name of the set in results says which.

    Gestures are cut from their beginning; what does not fill a slice at the end is left out, but a gesture that is
    shorter than one slice makes one. Validation samples are those of people who do not train.

    Args:
        path: Folder with the set in one of the two forms (or with its archives).
        val_users: How many of the 23 people of the training part are kept for validation; 0 to validate on the test
            samples.
        uncut_test: Leave gestures of the test part whole, as in the published S-TLLR code: with steps of the same
            duration, as many as a gesture needs.
        slice_us: Duration of a slice in microseconds.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        num_steps: Time steps of a slice.
        downsample: Side of the square of pixels whose events are summed (4: 128x128 becomes 32x32).
        **kwargs: See `EventFrameDataModule`.
    """

    num_classes = 11
    set_name = "DVS Gesture"
    folder_name = "dvs_gesture"
    layout = (
        "trials_to_train.txt, trials_to_test.txt and userNN_LIGHT.aedat with userNN_LIGHT_labels.csv; or "
        "ibmGestureTrain and ibmGestureTest with folders userNN_LIGHT of .npy files"
    )
    official_count = 122
    files = (
        _remote("ibmGestureTrain.tar.gz", 38022171, "3a8f0d4120a166bac7591f77409cb105"),
        _remote("ibmGestureTest.tar.gz", 38020584, "56070e45dadaa85fff82e0fbfbc06de5"),
    )
    other_archives = ("DvsGesture.tar.gz",)

    def __init__(
        self,
        path: str | Path | None = None,
        val_users: int = 3,
        uncut_test: bool = False,
        slice_us: int = 1_500_000,
        cache_dir: str | Path | None = None,
        num_steps: int = 20,
        downsample: int = 4,
        **kwargs: Any,
    ) -> None:
        if slice_us < 1 or num_steps < 1:
            raise ValueError(f"slice_us and num_steps must be at least 1, got {slice_us} and {num_steps}")
        if kwargs.get("bin_us") is not None:
            raise ValueError("slice_us and num_steps decide how long a step lasts; leave bin_us out")
        super().__init__(path, 0.0, cache_dir, num_steps=num_steps, downsample=downsample, **kwargs)
        if val_users < 0:
            raise ValueError(f"val_users must not be negative, got {val_users}")
        self.val_users = val_users
        self.uncut_test = uncut_test
        self.slice_us = slice_us
        self.num_steps = num_steps

    @property
    def dataset_name(self) -> str:
        """Name with the form of the set and the way test recordings are cut."""
        recordings = self._located()
        original = recordings[0].path.suffix == ".aedat"
        form = "original" if original else "tonic's cuts, ms"
        complete = self.official_count if original else 1_341
        part = "" if len(recordings) == complete else f", {len(recordings)} recordings"
        return f"{self.set_name} ({form}{part}; test {'uncut' if self.uncut_test else 'in slices'})"

    @property
    def duration_us(self) -> int:
        """A slice."""
        return self.slice_us

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width."""
        return 128, 128

    def frame_settings(self) -> dict[str, Any]:
        """How recordings are cut."""
        tables = hashlib.blake2b(digest_size=16)
        for recording in self._located():
            if recording.path.suffix == ".aedat":
                tables.update(_labels_path(recording.path).read_bytes())
        return {"slice_us": self.slice_us, "uncut_test": self.uncut_test, "labels": tables.hexdigest()}

    def binning_of(self, recording: Recording) -> Binning:
        """Uncut test recordings have as many steps as they need."""
        if not self._uncut(recording):
            return self.binning
        return Binning(None, max(self.slice_us // self.num_steps, 1), self.binning.downsample, self.binning.size)

    def find(self, folder: Path) -> list[Recording]:
        """Recordings of both parts, in the order of the lists or of their names."""
        parts: dict[str, Path] = {}
        for candidate in folders_within(folder, 3):
            if (candidate / _LISTS["train"]).is_file() or (candidate / _LISTS["test"]).is_file():
                return _original(candidate)
            for part, name in _FOLDERS.items():
                if candidate.name == name and any(candidate.glob("user*")):
                    parts.setdefault(part, candidate)
        if not parts:
            return []
        for part, name in _FOLDERS.items():
            if part not in parts:
                raise IncompleteError(f"{folder}: {name} with the {part} part is missing")
        return [recording for part in _FOLDERS for recording in _arrays(parts[part], part)]

    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """The gestures of a recording, cut into slices."""
        for events, label, duration in _gestures(recording):
            if self._uncut(recording):
                yield events, label
                continue
            for number in range(max(int(duration // self.slice_us), 1)):
                start = number * self.slice_us
                inside = (events["t"] >= start) & (events["t"] < start + self.slice_us)
                piece = events[inside]
                piece["t"] -= start
                yield piece, label

    def _uncut(self, recording: Recording) -> bool:
        return self.uncut_test and recording.part == "test"

    @property
    def split_rule(self) -> str:
        """By people."""
        rule = "official test part (people who do not train)"
        return rule + (f", {self.val_users} people for validation, split seed {self.split_seed}" * (self.val_users > 0))

    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """Validation people are drawn from those of the training part."""
        part = np.array([recording.part for recording in recordings])
        group = np.array([recording.group for recording in recordings])
        people = np.unique(group[part == "train"])
        if self.val_users >= len(people):
            raise EventDataError(
                f"{self.folder}: val_users is {self.val_users}, but only {len(people)} people are in the training part"
            )
        chosen = np.random.default_rng(self.split_seed).permutation(people)[: self.val_users]
        validates = (part == "train") & np.isin(group, chosen)
        return {
            "train": np.flatnonzero((part == "train") & ~validates),
            "val": np.flatnonzero(validates),
            "test": np.flatnonzero(part == "test"),
        }


def _original(folder: Path) -> list[Recording]:
    recordings = []
    for part, name in _LISTS.items():
        if not (folder / name).is_file():
            raise IncompleteError(f"{folder / name}: missing; it lists the recordings of the {part} part")
        names = (folder / name).read_text().split()
        if not names:
            raise EventDataError(f"{folder / name}: it lists no recordings")
        for trial in names:
            path = folder / trial
            for needed in (path, _labels_path(path)):
                if not needed.is_file():
                    raise IncompleteError(f"{needed}: missing, but {name} lists {trial}")
            recordings.append(Recording(path, -1, part, _user(path.name, path)))
    return recordings


def _arrays(folder: Path, part: str) -> Iterator[Recording]:
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in files_of(inside, ".npy"):
            if not path.stem.isdigit() or not 0 <= int(path.stem) < DVSGestureDataModule.num_classes:
                raise EventDataError(f"{path}: its name must be the number of a gesture, 0 to 10")
            yield Recording(path, int(path.stem), part, _user(inside.name, path))


def _user(name: str, path: Path) -> str:
    match = re.match(r"user(\d+)", name)
    if match is None:
        raise EventDataError(f"{path}: its name or folder must begin with userNN, the person who was recorded")
    return match[0]


def _labels_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_labels.csv")


def _gestures(recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int, int]]:
    """Events of each gesture with times from its start, its class and its duration in microseconds."""
    if recording.path.suffix == ".npy":
        events = _read_array(recording.path)
        duration = int(events["t"].max()) + 1 if len(events) else 0
        yield events, recording.label, duration
        return
    events = read_aedat3(recording.path)
    for label, start, end in _read_labels(_labels_path(recording.path)):
        gesture = events[(events["t"] >= start) & (events["t"] < end)]
        gesture["t"] -= start
        yield gesture, label, end - start


def _read_array(path: Path) -> npt.NDArray[np.void]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EventDataError(f"{path}: cut off, damaged or no array of events ({error})") from error
    if array.ndim != 2 or array.shape[1] != 4:
        raise EventDataError(f"{path}: expected columns x, y, polarity, time in ms, found an array of {array.shape}")
    time = array[:, 3].astype(np.int64) * 1000
    return make_events(array[:, 0], array[:, 1], time - (time.min() if len(time) else 0), array[:, 2])


def _read_labels(path: Path) -> tuple[tuple[int, int, int], ...]:
    """Class from 0, start and end of each gesture."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    if not lines or [name.strip() for name in lines[0]] != _COLUMNS:
        raise EventDataError(f"{path}: expected the columns {','.join(_COLUMNS)}, found {lines[0] if lines else []}")
    gestures = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            label, start, end = (int(value) for value in line)
        except ValueError as error:
            raise EventDataError(f"{path}, line {number}: expected three whole numbers, found {line}") from error
        if not 1 <= label <= DVSGestureDataModule.num_classes:
            raise EventDataError(f"{path}, line {number}: class {label}, expected 1 to 11")
        if end <= start:
            warnings.warn(f"{path}, line {number}: the gesture ends before it begins; it is left out", stacklevel=3)
            continue
        gestures.append((label - 1, start, end))
    if not gestures:
        raise EventDataError(f"{path}: no gestures in it")
    return tuple(gestures)
