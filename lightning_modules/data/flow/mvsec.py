"""MVSEC: driving and flying with a DAVIS346, true flow from lidar and motion (Zhu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .mvsec_files import MVSECFile, find_mvsec
from .recording import FlowRecording
from .sequences import SequencesDataModule
from .stored import Cut, CutAtTimes, CutByCount, PartOfRecording, StoredRecording
from .true_flow import SAME_TIME
from .views import PartOfPicture

Range = tuple[float | None, float | None]
"""Begin and end in seconds after the first event; None: the recording's own."""

MVSEC_RANGES: Mapping[str, Range] = {
    "outdoor_day1": (222.4, 240.4),  # the part that EV-FlowNet and all who follow it evaluate
    "outdoor_day2": (45.0, None),  # the car stands before; EV-FlowNet trains from there on
}
"""Which part of a sequence is used; all of it where nothing stands here. See docs/optical_flow.md."""

TEST_SEQUENCES = ("outdoor_day1", "indoor_flying1", "indoor_flying2", "indoor_flying3")

_PAGE = "https://daniilidis-group.github.io/mvsec/download/"
_LAYOUT = """\
FOLDER holds, in any subfolders, for every sequence either the original pair
    NAME_data.hdf5
    NAME_gt.hdf5 (with davis/left/flow_dist) or NAME_gt_flow_dist.npz
or one file in the layout of tudelft/event_flow
    NAME.h5 (events/xs, ys, ts, ps; images; flow_dt1; flow_dt4)
where NAME is outdoor_day1, outdoor_day2, indoor_flying1, ..."""
_STEPS = f"""\
By hand (the files lie on Google Drive and OneDrive, which want a person):
  - {_PAGE} lists NAME_data.hdf5 and NAME_gt.hdf5 under "HDF5 files";
    the page of EV-FlowNet, https://github.com/daniilidis-group/EV-FlowNet, links NAME_gt_flow_dist.npz
  - or https://github.com/tudelft/event_flow links the other layout (19.4 GB packed, 94 GB unpacked)
  - pass the folder: --data.path FOLDER
{_LAYOUT}"""


class MVSECDataModule(SequencesDataModule):
    """MVSEC in the protocol of docs/optical_flow.md; both HDF5 layouts are read where they lie, window by window.

    Windows last from one grey picture to the next (``every=1``, "dt1") or to the fourth one (``every=4``, "dt4");
    flow is in pixels per window. A part at the end of each training sequence is kept from training for validation.

    Args:
        path: Folder with the files. Left out: ``mvsec`` in ``STLLR_DATA``, else in the cache directory. They cannot be
            fetched by a program; the error says how to get them.
        train: Training sequences. None: only the test part is there, and only `test` and `predict` run.
        test: Test sequences.
        val_fraction: Part of the windows of each training sequence, at its end, for validation; at least one.
        every: How many pictures a window lasts: 1 or 4.
        window_us: Windows of this duration in microseconds in place of those between pictures; without pictures.
        window_events: Windows of so many events in place of those between pictures; without pictures.
        middle: Height and width of the part from the middle that is validated and tested on; None: everything.
        ranges: Begin and end in seconds after the first event, by sequence, in place of `MVSEC_RANGES`.
        pictures: Read the grey pictures. Training sequences must then have some; test sequences may be without.
        cache_dir: Where compressed ``.npz`` files are unpacked to; default: ``STLLR_CACHE``, else ``~/.cache/stllr``.
        bins: Time steps of a window.
        crop: Height and width of the part, at a random place, that training shows; None: everything.
        **kwargs: See `FlowDataModule`.
    """

    set_name = "MVSEC"
    folder_name = "mvsec"
    layout = _LAYOUT
    steps = _STEPS

    def __init__(
        self,
        path: str | Path | None = None,
        train: Sequence[str] | None = ("outdoor_day2",),
        test: Sequence[str] = TEST_SEQUENCES,
        val_fraction: float = 0.1,
        every: int = 1,
        window_us: int | None = None,
        window_events: int | None = None,
        middle: tuple[int, int] | None = (256, 256),
        ranges: Mapping[str, Range] | None = None,
        pictures: bool = True,
        cache_dir: str | Path | None = None,
        bins: int = 10,
        crop: tuple[int, int] | None = (256, 256),
        **kwargs: Any,
    ) -> None:
        training = {} if train is None else {"train": train, "val": train}
        super().__init__(path, {**training, "test": test}, bins=bins, crop=crop, **kwargs)
        if every not in (1, 4):
            raise ValueError(f"every must be 1 or 4 pictures (dt1 or dt4), got {every}")
        for name, value in (("window_us", window_us), ("window_events", window_events)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if window_us is not None and window_events is not None:
            raise ValueError("a window has a duration or a number of events: give window_us or window_events")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, got {val_fraction}")
        for name, (start, end) in (ranges or {}).items():
            if (start or 0) < 0 or (end is not None and end <= (start or 0)):
                raise ValueError(f"ranges: {name} must begin at 0 seconds or later and end after that: {start}, {end}")
        self.val_fraction = val_fraction
        self.every = every
        self._found: dict[str, MVSECFile] = {}
        self.window_us = window_us
        self.window_events = window_events
        self.middle = middle
        self.ranges = {**MVSEC_RANGES, **(ranges or {})}
        self.pictures = pictures
        self.cache_dir = cache_dir

    @property
    def dataset_name(self) -> str:
        """What the recordings are and how they are cut."""
        if self.window_us is not None:
            windows = f"windows of {self.window_us / 1000:g} ms"
        elif self.window_events is not None:
            windows = f"windows of {self.window_events} events"
        else:
            windows = f"dt{self.every}"
        return f"MVSEC, {windows}"

    @property
    def split_name(self) -> str:
        """Which sequences train, validate and test, and which parts of them."""
        test = f"test {self._named('test')}"
        if "train" not in self.sequences:
            return test
        val = sum(section.length for section in self.dataset("val").sections)
        train = sum(section.length for section in self.dataset("train").sections)
        return f"train {self._named('train')}, the last {val} of {train + val} windows validate; {test}"

    def prepare_data(self) -> None:
        """Looks for the files, so that what is missing shows before training begins."""
        self._files()

    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """The sequences; nothing but time stamps of pictures and maps is read here."""
        files = self._files()
        parts: dict[str, list[FlowRecording]] = {"train": [], "val": [], "test": []}
        for name in self.sequences.get("train", ()):
            recording = self._recording(files[name], needs_pictures=self.pictures)
            val = max(1, round(recording.num_windows * self.val_fraction))
            if val >= recording.num_windows:
                raise EventDataError(
                    f"{files[name].path}: {recording.num_windows} windows cannot be split into training and validation"
                )
            train = recording.num_windows - val
            parts["train"].append(PartOfRecording(recording, 0, train))
            parts["val"].append(self._middle(PartOfRecording(recording, train, val, f"{name} (end)")))
        for name in self.sequences["test"]:
            parts["test"].append(self._middle(self._recording(files[name], needs_pictures=False)))
        return {part: recordings for part, recordings in parts.items() if recordings}

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result, with the files that were read."""
        return {**super().report(), "files": {name: str(file.path) for name, file in self._files().items()}}

    def _files(self) -> dict[str, MVSECFile]:
        if self._found:  # opening them again would read thousands of time stamps again
            return self._found
        folder = self.folder()
        names = dict.fromkeys(name for part in self.sequences.values() for name in part)
        files = {name: find_mvsec(folder, name, self.cache_dir) for name in names}
        missing = [name for name, file in files.items() if file is None]
        if missing:
            there = sorted(path.name for path in folder.rglob("*") if path.suffix in (".h5", ".hdf5", ".npz"))
            raise self.incomplete(missing, there)
        self._found = {name: file for name, file in files.items() if file is not None}
        return self._found

    def _recording(self, file: MVSECFile, needs_pictures: bool) -> FlowRecording:
        start, end = self._range(file)
        cut: Cut
        picture = None
        if self.window_events is not None:
            cut = CutByCount(file.store, self.window_events, start, end, str(file.path))
        elif self.window_us is not None:
            duration = self.window_us / 1e6
            whole = int((end - start) / duration + 1e-9)
            cut = CutAtTimes(file.store, np.asarray(start + duration * np.arange(whole + 1)), str(file.path))
        else:
            edges = file.edges(self.every)
            edges = edges[(edges >= start - SAME_TIME) & (edges <= end + SAME_TIME)]
            cut = CutAtTimes(file.store, edges, f"{file.path}, {start - file.start:g} to {end - file.start:g} s")
            picture = self._pictures(file, edges, needs_pictures) if self.pictures else None
        return StoredRecording(
            file.name, file.size, file.store, cut, picture, file.true_flow(self.every), path=str(file.path)
        )

    def _pictures(
        self, file: MVSECFile, edges: npt.NDArray[np.float64], needed: bool
    ) -> Callable[[int], npt.NDArray[Any]] | None:
        times = file.picture_times
        if len(times):
            rows = _nearest(times, edges)
            if np.allclose(times[rows], edges, rtol=0, atol=SAME_TIME):
                return _PictureAt(file, rows)
        if needed:
            found = "has none" if not len(times) else "its pictures lie at other times than its true flow"
            raise EventDataError(
                f"{file.path}: no grey pictures at the ends of the windows ({found}), and a photometric loss needs "
                "them: train on events alone (a contrast loss) with --data.pictures false, or on another file"
            )
        return None

    def _range(self, file: MVSECFile) -> tuple[float, float]:
        start, end = self.ranges.get(file.name, (None, None))
        first = file.start + (start or 0)
        last = file.end if end is None else min(file.start + end, file.end)
        if first >= last:
            raise EventDataError(
                f"{file.path}: lasts {file.end - file.start:g} s, but the part from {start} to {end} s is to be used. "
                "Is it cut off, or a part? --data.ranges sets other times."
            )
        return first, last

    def _middle(self, recording: FlowRecording) -> FlowRecording:
        if self.middle is None or recording.size == tuple(self.middle):
            return recording
        return PartOfPicture(recording, (self.middle[0], self.middle[1]))

    def _named(self, part: str) -> str:
        def one(name: str) -> str:
            start, end = self.ranges.get(name, (None, None))
            if start is None and end is None:
                return name
            return f"{name} ({start or 0:g} s to {'the end' if end is None else f'{end:g} s'})"

        return ", ".join(one(name) for name in self.sequences[part])


class _PictureAt:
    """The picture at an edge of the windows."""

    def __init__(self, file: MVSECFile, rows: npt.NDArray[np.integer]) -> None:
        self._file = file
        self._rows = rows

    def __call__(self, edge: int) -> npt.NDArray[Any]:
        return self._file.picture(int(self._rows[edge]))


def _nearest(times: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.integer]:
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1) if len(times) > 1 else np.zeros(len(wanted), int)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(times[left] - wanted) <= np.abs(times[right] - wanted), left, right)
