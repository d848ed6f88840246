"""Files of the MVSEC recordings, in the two HDF5 layouts that are in use.

The original one is a pair: ``NAME_data.hdf5`` with ``davis/left/events`` [N, 4] (x, y, seconds, polarity -1 or +1),
``davis/left/image_raw`` [M, 260, 346] and ``image_raw_ts``; and for the true flow ``NAME_gt.hdf5`` with
``davis/left/flow_dist`` [K, 2, 260, 346] and ``flow_dist_ts``, or ``NAME_gt_flow_dist.npz`` with ``x_flow_dist``,
``y_flow_dist`` and ``timestamps``. Map i is the displacement from its time stamp to the next. (Zhu et al., "The
Multi Vehicle Stereo Event Camera Dataset", IEEE RA-L 2018.)

The other one is a single file: ``events/xs``, ``ys``, ``ts``, ``ps``, attributes ``t0`` and ``duration``, ``images/*``,
``flow_dt1/*`` and ``flow_dt4/*``, each picture and map with a ``timestamp``. A map is the displacement from the time
stamp of the map before to its own: the true flow between pictures, made by the published propagation. (Hagenaars,
Paredes-Valles & de Croon, "Self-Supervised Learning of Event-Based Optical Flow with Spiking Neural Networks", NeurIPS
2021.)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .hdf5 import HDF5File
from .npz_maps import NpzArray
from .stored import Events, EventStore
from .true_flow import SAME_TIME, FlowMaps

SENSOR = (260, 346)
"""Rows and columns of the DAVIS346."""

HOOD_ROW = 192
"""First row of the sensor that may show the car's hood: row 190 of the middle 256 rows, as in published evaluations."""

_WHAT = "an MVSEC recording"


class MVSECFile(ABC):
    """One recording, whatever its layout.

    Attributes:
        name: Name of the sequence, such as "outdoor_day1".
        path: The file with its events.
        size: Height and width; less than the sensor's where the file holds only its middle.
        store: The events.
        start: Time of the first event in seconds.
        end: Time of the last event.
        picture_times: Time stamps of the grey pictures; none if it has none.
    """

    name: str
    path: Path
    size: tuple[int, int]
    store: EventStore
    start: float
    end: float
    picture_times: npt.NDArray[np.float64]

    @abstractmethod
    def picture(self, index: int) -> npt.NDArray[Any]:
        """Reads a grey picture [H, W]."""

    @abstractmethod
    def true_flow(self, every: int) -> FlowMaps | None:
        """The true flow, for windows that last ``every`` pictures; None if the files have none."""

    @abstractmethod
    def edges(self, every: int) -> npt.NDArray[np.float64]:
        """Times at which to cut windows that last ``every`` pictures each and whose true flow is known, if there is."""

    @property
    def rows(self) -> int | None:
        """Rows above the car's hood, in outdoor recordings."""
        return HOOD_ROW - (SENSOR[0] - self.size[0]) // 2 if self.name.startswith("outdoor") else None

    def _check_events(self, length: int) -> None:
        if length == 0:
            raise EventDataError(f"{self.path}: the recording has no events")
        self.start, self.end = (float(self.store.times(i, i + 1)[0]) for i in (0, length - 1))
        if not (np.isfinite([self.start, self.end]).all() and self.start <= self.end):
            raise EventDataError(
                f"{self.path}: time stamps run backwards: the first event is at {self.start}, the last at {self.end}"
            )

    def _check_pictures(self) -> None:
        times = self.picture_times
        wrong = np.flatnonzero(~(np.diff(times) > 0))
        if wrong.size:
            i = int(wrong[0])
            raise EventDataError(
                f"{self.path}: the time stamps of the grey pictures run backwards or repeat: {times[i + 1]} (number "
                f"{i + 1}) follows {times[i]}"
            )


class OriginalMVSEC(MVSECFile):
    """The original layout: events and pictures in one file, true flow in another.

    Args:
        name: Name of the sequence.
        path: ``NAME_data.hdf5``.
        truth: ``NAME_gt.hdf5`` or ``NAME_gt_flow_dist.npz``; None if there is none.
        cache_dir: Where compressed arrays are unpacked to.
    """

    def __init__(self, name: str, path: Path, truth: Path | None, cache_dir: str | Path | None = None) -> None:
        self.name = name
        self.path = path
        self.truth = truth
        self.cache_dir = cache_dir
        self._file = HDF5File(path, _WHAT)
        events = self._file.data("davis/left/events")
        if events.ndim != 2 or events.shape[1] != 4:
            raise EventDataError(f"{path}: davis/left/events must be [N, 4] (x, y, t, p), found {events.shape}")
        self.store = _OriginalEvents(self._file, len(events))
        self._check_events(len(events))
        self.size = SENSOR
        self.picture_times = np.zeros(0)
        if "davis/left/image_raw" in self._file:
            pictures, times = self._file.data("davis/left/image_raw"), self._file.data("davis/left/image_raw_ts")
            if pictures.ndim != 3 or len(pictures) != len(times):
                raise EventDataError(
                    f"{path}: davis/left/image_raw must be one picture [H, W] for each of the {len(times)} time stamps "
                    f"in image_raw_ts, found {pictures.shape}"
                )
            self.size = (int(pictures.shape[1]), int(pictures.shape[2]))
            with self._file.reading():
                self.picture_times = np.asarray(times[:], np.float64)
        self._check_pictures()
        self._maps: FlowMaps | None = None

    def picture(self, index: int) -> npt.NDArray[Any]:
        """Reads a grey picture [H, W]."""
        with self._file.reading():
            return np.asarray(self._file.data("davis/left/image_raw")[index])

    def true_flow(self, every: int) -> FlowMaps | None:
        """The true flow of any interval; the maps of the file are composed."""
        if self._maps is None and self.truth is not None:
            if self.truth.suffix == ".npz":
                read: _Maps = _NpzMaps(self.truth, self.cache_dir)
            else:
                read = _HDF5Maps(self.truth)
            self._maps = FlowMaps(read.times, read, self.size, str(self.truth), self.rows)
        return self._maps

    def edges(self, every: int) -> npt.NDArray[np.float64]:
        """The time of every n-th picture, from the first on whose true flow is known."""
        times, maps = self.picture_times, self.true_flow(every)
        if not len(times):
            raise EventDataError(
                f"{self.path}: no grey pictures (davis/left/image_raw): cut windows by time or count (window_us, "
                "window_events)"
            )
        if maps is not None:
            times = times[(times >= maps.times[0]) & (times <= maps.times[-1])]
            if len(times) <= every:
                raise EventDataError(
                    f"{self.path}: {len(times)} grey pictures lie within the time of the true flow in {maps.name}, "
                    f"{maps.times[0]} to {maps.times[-1]}; do these files belong together?"
                )
        return times[::every]


class SingleFileMVSEC(MVSECFile):
    """The layout with everything in one file.

    Args:
        name: Name of the sequence.
        path: The file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._file = HDF5File(path, _WHAT)
        columns = [self._file.data(f"events/{column}") for column in ("xs", "ys", "ts", "ps")]
        lengths = {data.name: len(data) for data in columns}
        if len(set(lengths.values())) != 1:
            raise EventDataError(f"{path}: the columns of the events differ in length: {lengths}")
        self.store = _ColumnEvents(self._file, len(columns[0]))
        self._check_events(len(columns[0]))
        self._pictures, self.picture_times = self._stamped("images")
        self._check_pictures()
        self._flow = {every: self._stamped(f"flow_dt{every}") for every in (1, 4)}
        self.size = SENSOR
        for group, names in (("images", self._pictures), *((f"flow_dt{n}", self._flow[n][0]) for n in (1, 4))):
            if names:
                with self._file.reading():
                    shape = self._file.data(f"{group}/{names[0]}").shape
                shape = _without_components(shape)
                self.size = (int(shape[0]), int(shape[1]))
                break

    def picture(self, index: int) -> npt.NDArray[Any]:
        """Reads a grey picture [H, W]."""
        with self._file.reading():
            return np.asarray(self._file[f"images/{self._pictures[index]}"][:])

    def true_flow(self, every: int) -> FlowMaps | None:
        """The maps of windows that last so many pictures; without those the maps between pictures, composed."""
        group, names, times = self._maps(every)
        begin = self._first_begin(times, group)
        if begin is None:
            names = names[1:]
        else:
            times = np.concatenate(([begin], times))
        if not names:
            return None
        read = _NamedMaps(self._file, f"flow_dt{group}", names)
        return FlowMaps(times, read, self.size, f"{self.path}: flow_dt{group}", self.rows)

    def edges(self, every: int) -> npt.NDArray[np.float64]:
        """The times of the maps; without maps those of every n-th picture."""
        maps, (group, _, _) = self.true_flow(every), self._maps(every)
        if maps is not None:
            return maps.times[:: every // group]
        if not len(self.picture_times):
            raise EventDataError(
                f"{self.path}: neither true flow (flow_dt1) nor pictures (images): cut windows by time or count "
                "(window_us, window_events)"
            )
        return self.picture_times[::every]

    def _maps(self, every: int) -> tuple[int, list[str], npt.NDArray[np.float64]]:
        """Which group has the maps, their names and the ends of their displacements."""
        group = every if every in self._flow and self._flow[every][0] else 1
        return group, *self._flow[group]

    def _first_begin(self, times: npt.NDArray[np.float64], pictures_of_a_map: int) -> float | None:
        """When the first map's displacement begins: so many pictures before its end; unknown without pictures."""
        pictures = self.picture_times
        if not len(times) or not len(pictures):
            return None
        own = int(np.abs(pictures - times[0]).argmin())
        if abs(pictures[own] - times[0]) > SAME_TIME or own < pictures_of_a_map:
            return None
        return float(pictures[own - pictures_of_a_map])

    def _stamped(self, group: str) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Names of the arrays in a group and their time stamps, in the order of time stamps in the file."""
        if group not in self._file:
            return [], np.zeros(0)
        entries = self._file[group]
        names, times = [], []
        with self._file.reading():
            for name in sorted(entries, key=_natural):
                if "timestamp" not in entries[name].attrs:
                    raise EventDataError(f"{self.path}: {group}/{name} has no attribute timestamp")
                names.append(name)
                times.append(float(entries[name].attrs["timestamp"]))
        return names, np.array(times, np.float64)


class _FileEvents:
    """Events of a file, without an index of their times."""

    def __init__(self, file: HDF5File, length: int) -> None:
        self._file, self._length = file, length

    def __len__(self) -> int:
        return self._length

    def bracket(self, time: float) -> tuple[int, int]:
        return 0, self._length


class _OriginalEvents(_FileEvents):
    """Events [N, 4] of the original layout."""

    def times(self, low: int, high: int) -> npt.NDArray[Any]:
        with self._file.reading():
            return np.asarray(self._file.data("davis/left/events")[low:high, 2], np.float64)

    def events(self, low: int, high: int) -> Events:
        with self._file.reading():
            rows = np.asarray(self._file.data("davis/left/events")[low:high], np.float64)
        return Events(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2], rows[:, 3])


class _ColumnEvents(_FileEvents):
    """Events in columns."""

    def times(self, low: int, high: int) -> npt.NDArray[Any]:
        with self._file.reading():
            return np.asarray(self._file.data("events/ts")[low:high], np.float64)

    def events(self, low: int, high: int) -> Events:
        with self._file.reading():
            x, y, p = (
                np.asarray(self._file.data(f"events/{name}")[low:high]).astype(np.int64) for name in ("xs", "ys", "ps")
            )
        return Events(x, y, self.times(low, high), p)


class _Maps(ABC):
    """Reads maps of true flow by their number."""

    times: npt.NDArray[np.float64]

    @abstractmethod
    def __call__(self, index: int) -> npt.NDArray[np.floating]:
        """Map [2, H, W]."""


class _HDF5Maps(_Maps):
    """``davis/left/flow_dist``."""

    def __init__(self, path: Path) -> None:
        self._file = HDF5File(path, "MVSEC's true flow")
        maps, times = self._file.data("davis/left/flow_dist"), self._file.data("davis/left/flow_dist_ts")
        if len(maps) != len(times):
            raise EventDataError(f"{path}: {len(maps)} maps in flow_dist, but {len(times)} time stamps in flow_dist_ts")
        with self._file.reading():
            self.times = np.asarray(times[:], np.float64)

    def __call__(self, index: int) -> npt.NDArray[np.floating]:
        with self._file.reading():
            return np.asarray(self._file.data("davis/left/flow_dist")[index], np.float64)


class _NpzMaps(_Maps):
    """``x_flow_dist`` and ``y_flow_dist``."""

    def __init__(self, path: Path, cache_dir: str | Path | None) -> None:
        self._x, self._y = (NpzArray(path, f"{axis}_flow_dist", cache_dir) for axis in "xy")
        self.times = np.asarray(NpzArray(path, "timestamps", cache_dir)[:], np.float64)
        lengths = (len(self._x), len(self._y), len(self.times))
        if len(set(lengths)) != 1:
            raise EventDataError(f"{path}: x_flow_dist, y_flow_dist and timestamps differ in length: {lengths}")

    def __call__(self, index: int) -> npt.NDArray[np.floating]:
        return np.stack((self._x[index], self._y[index])).astype(np.float64)


class _NamedMaps(_Maps):
    """``flow_dt1/*`` or ``flow_dt4/*``; [2, H, W] or [H, W, 2]."""

    def __init__(self, file: HDF5File, group: str, names: list[str]) -> None:
        self._file, self._group, self._names = file, group, names

    def __call__(self, index: int) -> npt.NDArray[np.floating]:
        with self._file.reading():
            flow = np.asarray(self._file[f"{self._group}/{self._names[index]}"][:], np.float64)
        return np.moveaxis(flow, -1, 0) if flow.ndim == 3 and flow.shape[0] != 2 and flow.shape[-1] == 2 else flow


def find_mvsec(folder: Path, name: str, cache_dir: str | Path | None = None) -> MVSECFile | None:
    """Opens a sequence in a folder, in whichever layout it is there; None if it is not.

    Args:
        folder: Folder with the files, or with folders that hold them.
        name: Name of the sequence, such as "outdoor_day1".
        cache_dir: Where compressed arrays are unpacked to.

    Raises:
        EventDataError: The file is damaged, or in neither layout. The message names it.
    """
    pattern = re.compile(rf"{re.escape(name)}(?!\d)(?!.*_gt)[^/\\]*\.(h5|hdf5)$")
    files = sorted(path for path in folder.rglob(f"{name}*") if pattern.match(path.name))
    if not files:
        return None
    if len(files) > 1:
        raise EventDataError(
            f"{folder}: several files of {name}: {[str(path) for path in files]}; pass the folder of one"
        )
    (path,) = files
    file = HDF5File(path, _WHAT)
    if "davis/left/events" in file:
        truths = [*folder.rglob(f"{name}_gt.hdf5"), *folder.rglob(f"{name}_gt.h5")]
        truth = next((one for one in sorted(truths) if "davis/left/flow_dist" in HDF5File(one, _WHAT)), None)
        if truth is None:
            truth = next(iter(sorted(folder.rglob(f"{name}_gt_flow_dist.npz"))), None)
        return OriginalMVSEC(name, path, truth, cache_dir)
    if "events/xs" in file:
        return SingleFileMVSEC(name, path)
    with file.reading():
        found = sorted(file["/"])[:10]
    raise EventDataError(f"{path}: {_WHAT} has davis/left/events or events/xs; found {found}")


def _natural(name: str) -> list[Any]:
    """Sorts "image9" before "image10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _without_components(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[H, W] of a picture's or a map's shape."""
    if len(shape) == 2:
        return shape
    return shape[1:] if shape[0] == 2 else shape[:2]
