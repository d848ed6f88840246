"""Files of a DSEC sequence: events of the left camera, their rectification, true flow, pictures.

``events.h5`` holds ``events/x``, ``y``, ``t`` (microseconds) and ``p``, ``t_offset`` to be added to the times, and
``ms_to_idx``, the first event of every millisecond. ``rectify_map.h5`` holds ``rectify_map`` [480, 640, 2]: where a
pixel lies in the rectified picture, x before y. A map of true flow is a PNG of 16 bits: (value - 2^15) / 128 is the
displacement, x and y in the first two channels, and the third says where it is known;
``forward_timestamps.txt`` has a line "from, to" in microseconds for each. (Gehrig, Aarents, Gehrig & Scaramuzza,
"DSEC: A Stereo Event Camera Dataset for Driving Scenarios", IEEE RA-L 2021; Gehrig et al., "E-RAFT", 3DV 2021.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .hdf5 import HDF5File
from .png import read_png16
from .recording import FloatArray, check_pixels
from .stored import Events

SENSOR = (480, 640)
"""Rows and columns of the event camera."""

_WHAT = "events of DSEC"
_EVENTS = ("events/left/events.h5", "events_left/events.h5")
_MAPS = ("flow/forward", "flow_forward", "optical_flow/forward/event", "optical_flow_forward_event")
_TIMES = ("flow/forward_timestamps.txt", "forward_timestamps.txt", "optical_flow/forward_timestamps.txt")


class DSECEvents:
    """Events of one camera, rectified. It is an `EventStore`; times are those of pictures and flow, in microseconds.

    Args:
        path: ``events.h5``.
        rectify: ``rectify_map.h5``; None leaves the events where the sensor saw them.
        size: Rows and columns.
    """

    def __init__(self, path: Path, rectify: Path | None, size: tuple[int, int] = SENSOR) -> None:
        self.path = path
        self.size = size
        self._file = HDF5File(path, _WHAT)
        columns = [self._file.data(f"events/{column}") for column in "xytp"]
        lengths = {data.name: len(data) for data in columns}
        if len(set(lengths.values())) != 1:
            raise EventDataError(f"{path}: the columns of the events differ in length: {lengths}")
        self._length = len(columns[0])
        if not self._length:
            raise EventDataError(f"{path}: the recording has no events")
        with self._file.reading():
            self.offset = int(np.asarray(self._file["t_offset"]).item()) if "t_offset" in self._file else 0
        self._milliseconds = len(self._file.data("ms_to_idx")) if "ms_to_idx" in self._file else 0
        self.start, self.end = (float(self.times(i, i + 1)[0]) for i in (0, self._length - 1))
        if self.start > self.end:
            raise EventDataError(
                f"{path}: time stamps run backwards: the first event is at {self.start:.0f}, the last at {self.end:.0f}"
            )
        self._rectify = None if rectify is None else HDF5File(rectify, "DSEC's rectification")
        self._map: npt.NDArray[np.int32] | None = None
        if self._rectify is not None:
            shape = self._rectify.data("rectify_map").shape
            if shape != (*size, 2):
                raise EventDataError(f"{rectify}: rectify_map must be {(*size, 2)}, found {shape}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the map, which each process reads for itself."""
        return {**self.__dict__, "_map": None}

    def __len__(self) -> int:
        """Number of events."""
        return self._length

    def bracket(self, time: float) -> tuple[int, int]:
        """Rows of the millisecond in which ``time`` lies."""
        millisecond = int((time - self.offset) // 1000)
        if millisecond < 0:
            return 0, 0
        if millisecond >= self._milliseconds:
            return (0 if not self._milliseconds else self._indexed(self._milliseconds - 1)), self._length
        after = self._indexed(millisecond + 1) if millisecond + 1 < self._milliseconds else self._length
        low = self._indexed(millisecond)
        if not 0 <= low <= after <= self._length:
            raise EventDataError(
                f"{self.path}: ms_to_idx of {millisecond} ms and of the next are {low} and {after}; there are "
                f"{self._length} events"
            )
        return low, after

    def times(self, low: int, high: int) -> npt.NDArray[Any]:
        """Time stamps in microseconds."""
        with self._file.reading():
            return np.asarray(self._file.data("events/t")[low:high]).astype(np.int64) + self.offset

    def events(self, low: int, high: int) -> Events:
        """Rectified events; some lie outside of the picture then."""
        with self._file.reading():
            x, y, p = (np.asarray(self._file.data(f"events/{name}")[low:high]).astype(np.int64) for name in "xyp")
        check_pixels(x, y, self.size, str(self.path), first=low)
        if self._rectify is not None:
            x, y = self._rectified()[:, y, x]
        return Events(x, y, self.times(low, high), p)

    def _indexed(self, millisecond: int) -> int:
        with self._file.reading():
            return int(self._file.data("ms_to_idx")[millisecond])

    def _rectified(self) -> npt.NDArray[np.int32]:
        """Nearest pixel [2, H, W], x before y."""
        if self._map is None:
            assert self._rectify is not None
            with self._rectify.reading():
                exact = np.asarray(self._rectify["rectify_map"][:], np.float64)
            outside = -1.0  # where a map says nothing
            self._map = np.rint(np.where(np.isfinite(exact), exact, outside)).astype(np.int32).transpose(2, 0, 1)
        return self._map


class DSECFlow:
    """Maps of true flow between neighbouring times. It is a `TrueFlow`.

    Args:
        edges: Begin of each map and end of the last one, in microseconds.
        paths: The maps.
        size: Rows and columns.
    """

    def __init__(self, edges: npt.NDArray[np.float64], paths: Sequence[Path], size: tuple[int, int] = SENSOR) -> None:
        self.edges = edges
        self.paths = list(paths)
        self.size = size

    def __call__(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]] | None:
        """The map of exactly this interval; None if there is none."""
        found = np.flatnonzero((self.edges[:-1] == start) & (self.edges[1:] == end))
        return read_flow_png(self.paths[int(found[0])], self.size) if len(found) else None


def read_flow_png(path: Path, size: tuple[int, int]) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Displacement [2, H, W] in pixels and where it is known [H, W]."""
    levels = read_png16(path)
    if levels.shape[:2] != size:
        raise EventDataError(f"{path}: {levels.shape[:2]} rows and columns, expected {size}")
    if levels[..., 2].max(initial=0) > 1:
        raise EventDataError(
            f"{path}: the third channel must be 0 or 1 (where flow is known), found {levels[..., 2].max()}; "
            "channels may be in the order BGR"
        )
    valid = levels[..., 2] == 1
    flow = (levels[..., :2].astype(np.float32) - 2**15) / 128
    return np.where(valid, flow.transpose(2, 0, 1), 0).astype(np.float32), valid


class FlowRun(NamedTuple):
    """Maps of true flow that follow each other without a gap."""

    edges: npt.NDArray[np.float64]
    """Begin of each map and end of the last one, in microseconds."""
    paths: list[Path]
    """The maps."""


class DSECFiles:
    """The files of a sequence.

    Args:
        name: Name of the sequence, such as "thun_00_a".
        folders: Folders of that name; events and flow may lie in different ones, as in the archives.
    """

    def __init__(self, name: str, folders: Sequence[Path]) -> None:
        self.name = name
        self.folders = list(folders)

    @property
    def events(self) -> Path | None:
        """``events.h5`` of the left camera."""
        return self.first(_EVENTS)

    @property
    def rectify_map(self) -> Path | None:
        """``rectify_map.h5``, which lies beside the events."""
        beside = self.events.with_name("rectify_map.h5") if self.events is not None else None
        return beside if beside is not None and beside.exists() else None

    def flow_runs(self) -> list[FlowRun]:
        """The maps of true flow in runs without a gap; none if the sequence has none.

        Raises:
            EventDataError: Time stamps are missing, run backwards, or are not as many as maps.
        """
        times, maps = self.first(_TIMES), self.first(_MAPS)
        times = times or self.first([f"{self.name}_optical_flow_forward_timestamps.txt"])
        if times is None and maps is None:
            return []
        if times is None or maps is None:
            missing = "forward_timestamps.txt" if times is None else "flow/forward"
            raise EventDataError(f"{maps or times}: {missing} is missing beside it")
        paths = sorted(maps.glob("*.png"))
        intervals = _read_intervals(times)
        if len(paths) != len(intervals):
            raise EventDataError(f"{times}: {len(intervals)} intervals, but {len(paths)} maps (*.png) in {maps}")
        runs, begin = [], 0
        for i in range(1, len(intervals) + 1):
            if i == len(intervals) or intervals[i, 0] != intervals[i - 1, 1]:
                edges = np.append(intervals[begin:i, 0], intervals[i - 1, 1]).astype(np.float64)
                runs.append(FlowRun(edges, paths[begin:i]))
                begin = i
        return runs

    def first(self, names: Sequence[str]) -> Path | None:
        """The first of these files or folders that there is."""
        for folder in self.folders:
            for name in names:
                if (folder / name).exists():
                    return folder / name
        return None


def find_dsec(folder: Path, name: str) -> DSECFiles | None:
    """A sequence within a folder; None if its events are not there."""
    folders = sorted(path for path in folder.rglob(name) if path.is_dir())
    events = [path / name for path in folders for name in _EVENTS if (path / name).exists()]
    if len(events) > 1:
        raise EventDataError(
            f"{folder}: several files of {name}: {[str(path) for path in events]}; pass the folder of one"
        )
    return DSECFiles(name, folders) if events else None


def _read_intervals(path: Path) -> npt.NDArray[np.int64]:
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        rows = [[int(word) for word in line.split(",")[:2]] for line in lines]
        intervals = np.array(rows, np.int64).reshape(len(rows), 2)
    except (ValueError, UnicodeDecodeError) as error:
        raise EventDataError(f'{path}: expected lines "from, to" in microseconds ({error})') from error
    begins, ends = intervals.T
    wrong = np.flatnonzero((ends <= begins) | np.append(False, begins[1:] < ends[:-1]))
    if wrong.size:
        i = int(wrong[0])
        raise EventDataError(
            f"{path}: time stamps run backwards: interval {i} lasts from {begins[i]} to {ends[i]}"
            + (f" and follows one that ends at {ends[i - 1]}" if i else "")
        )
    return intervals
