"""Recordings for optical flow: events, grey pictures and true flow, in consecutive windows that are read lazily."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

FloatArray = npt.NDArray[np.float32]
Window = tuple[float, float]
"""First moment of a window and the first moment behind it, in the unit of the recording's time stamps."""
TrueFlow = Callable[[float, float], "tuple[FloatArray, npt.NDArray[np.bool_]] | None"]
"""``flow(start, end)``: displacement [2, H, W] in pixels (x, y) from start to end, and where it is known [H, W]; None
where nothing is known about this interval."""

_BLOCK = 1 << 22


class Column(Protocol):
    """One value per event, or one picture per row: a numpy array, a memory map, an HDF5 data set, ..."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, key: Any, /) -> Any:
        """Rows of a slice, as a numpy array."""


@dataclass
class WindowData:
    """What was recorded in one window.

    Attributes:
        x: Columns of the events, integers [N].
        y: Rows of the events.
        t: Times of the events, float32 in [0, 1] from the window's start to its end, ascending.
        p: True for ON events.
        flow: True displacement over the window, float32 [2, H, W] in pixels: x (to the right), y (down).
        valid: Where ``flow`` is known and counted, bool [H, W].
        before: Grey picture at the window's start, float32 [H, W] in [0, 1].
        after: Grey picture at the window's end.
    """

    x: npt.NDArray[np.integer]
    y: npt.NDArray[np.integer]
    t: FloatArray
    p: npt.NDArray[np.bool_]
    flow: FloatArray | None = None
    valid: npt.NDArray[np.bool_] | None = None
    before: FloatArray | None = None
    after: FloatArray | None = None


class FlowRecording(ABC):
    """One recording as consecutive windows: window ``i + 1`` begins where window ``i`` ends.

    Reading has no state: any window can be read at any time, in any process.

    Attributes:
        name: What results and messages call the recording.
        size: Height and width in pixels.
    """

    name: str
    size: tuple[int, int]

    @property
    @abstractmethod
    def num_windows(self) -> int:
        """Number of windows, at least 1."""

    @abstractmethod
    def read(self, index: int) -> WindowData:
        """Reads one window."""


@dataclass
class EventColumns:
    """Events of a recording, sorted by time. Rows are read when a window needs them.

    Attributes:
        x: Columns of the pixels.
        y: Rows of the pixels.
        t: Time stamps in any unit.
        p: Polarities; values above 0 are ON (0 and 1 or -1 and 1).
    """

    x: Column
    y: Column
    t: Column
    p: Column


@dataclass
class Windows:
    """Consecutive windows of a recording's events.

    Attributes:
        edges: Times [n + 1]: window i lasts from ``edges[i]``, included, to ``edges[i + 1]``.
        rows: First event of each window and of what follows, [n + 1].
    """

    edges: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.edges) - 1


def windows_between(t: Column, edges: npt.ArrayLike, name: str = "events") -> Windows:
    """Cuts at given times, such as those of the grey pictures.

    The time stamps are read once, block by block, and checked.

    Args:
        t: Time stamps of the events.
        edges: At least two ascending times. Windows without events are allowed.
        name: How messages call the recording.

    Raises:
        EventDataError: There are no events, or the time stamps or the edges run backwards.
    """
    edges = np.asarray(edges)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise EventDataError(f"{name}: windows need at least two ascending times to cut at, got {edges}")
    _some_events(t, name)
    rows = np.zeros(len(edges), dtype=np.int64)
    last: Any = None
    for low in range(0, len(t), _BLOCK):
        block = np.asarray(t[low : low + _BLOCK])
        check_times(block, name, first=low, previous=last)
        # Unsigned time stamps and signed edges would be compared as floats, or wrap.
        rows += np.searchsorted(block.astype(np.float64), edges.astype(np.float64), side="left")
        last = block[-1]
    return Windows(edges, rows)


def windows_by_time(
    t: Column, duration: float, start: float | None = None, end: float | None = None, name: str = "events"
) -> Windows:
    """Cuts windows of equal duration; what is left behind the last whole window is left out.

    Args:
        t: Time stamps of the events.
        duration: Length of a window, in their unit.
        start: Begin of the first window; the first event if left out.
        end: No window goes on behind it; the last event if left out.
        name: How messages call the recording.
    """
    if not duration > 0:
        raise ValueError(f"the duration of a window must be positive, got {duration}")
    _some_events(t, name)
    first = _scalar(t[0:1]) if start is None else start
    last = _scalar(t[len(t) - 1 : len(t)]) if end is None else end
    count = int((last - first) / duration + 1e-9)
    if count < 1:
        raise EventDataError(
            f"{name}: lasts {last - first:g}, less than one window of {duration:g}; take a shorter one"
        )
    return windows_between(t, first + duration * np.arange(count + 1), name)


def windows_by_count(
    t: Column, count: int, start: float | None = None, end: float | None = None, name: str = "events"
) -> Windows:
    """Cuts windows of (nearly) equally many events; what is left behind the last whole window is left out.

    An edge lies at the time of the first event of the next window. Events with equal time stamps stay together.

    Args:
        t: Time stamps of the events.
        count: Events of a window.
        start: Events before it are left out.
        end: Events from then on are left out.
        name: How messages call the recording.
    """
    if count < 1:
        raise ValueError(f"a window needs at least 1 event, got {count}")
    _some_events(t, name)
    times = np.concatenate([np.asarray(t[low : low + _BLOCK]) for low in range(0, len(t), _BLOCK)])
    check_times(times, name)
    low = 0 if start is None else int(np.searchsorted(times, start))
    high = len(times) if end is None else int(np.searchsorted(times, end))
    edges = np.unique(times[low:high:count])  # equal stamps across an edge leave one window the less
    if len(edges) < 2:
        raise EventDataError(f"{name}: {high - low} events are less than a window of {count}; take fewer")
    return Windows(edges, np.searchsorted(times, edges).astype(np.int64))


def check_times(t: npt.NDArray[Any], name: str, first: int = 0, previous: Any = None) -> None:
    """Raises an `EventDataError` if time stamps run backwards or are no numbers.

    Args:
        t: Some of the recording's time stamps.
        name: How messages call the recording.
        first: Number of their first event in the recording.
        previous: The time stamp before them, if there is one.
    """
    if t.dtype.kind not in "iuf":
        raise EventDataError(f"{name}: time stamps must be numbers, found {t.dtype}")
    if t.dtype.kind == "f" and not np.isfinite(t).all():
        raise EventDataError(f"{name}: time stamps must be finite")
    if previous is not None and len(t) and t[0] < previous:
        wrong = [0]
        before = previous
    else:
        wrong = (np.flatnonzero(t[1:] < t[:-1])[:1] + 1).tolist()
        before = t[wrong[0] - 1] if wrong else None
    if wrong:
        i = wrong[0]
        raise EventDataError(
            f"{name}: time stamps run backwards: event {first + i} at {t[i]} follows event {first + i - 1} at "
            f"{before}; sort the events by time first"
        )


class WindowedEvents(FlowRecording):
    """A recording made of columns of events, grey pictures and a function that knows the true flow.

    Args:
        name: What results and messages call the recording.
        size: Height and width in pixels.
        events: The events.
        windows: Where to cut them.
        frames: Grey pictures at the windows' edges, ``frames[frame_rows[i]]`` at edge i: [.., H, W], uint8 or float in
            [0, 1]. None: recorded without pictures.
        frame_rows: Row of the picture at each edge; 0, 1, 2, ... if left out.
        flow: Gives the true flow of an interval. None: it is not known.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        events: EventColumns,
        windows: Windows,
        frames: Column | None = None,
        frame_rows: Sequence[int] | npt.NDArray[np.integer] | None = None,
        flow: TrueFlow | None = None,
    ) -> None:
        lengths = {column: len(getattr(events, column)) for column in "xytp"}
        if len(set(lengths.values())) != 1:
            raise EventDataError(f"{name}: the columns of the events differ in length: {lengths}")
        if len(windows) < 1:
            raise EventDataError(f"{name}: no windows")
        self.name = name
        self.size = size
        self.events = events
        self.windows = windows
        self.frames = frames
        self.frame_rows = np.arange(len(windows) + 1) if frame_rows is None else np.asarray(frame_rows)
        if frames is not None and (len(self.frame_rows) != len(windows) + 1 or self.frame_rows.max() >= len(frames)):
            raise EventDataError(
                f"{name}: {len(windows)} windows need a grey picture at each of their {len(windows) + 1} edges, found "
                f"{len(self.frame_rows)} (of {len(frames)} pictures)"
            )
        self.flow = flow

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def read(self, index: int) -> WindowData:
        """Reads one window and checks it.

        Raises:
            EventDataError: Time stamps run backwards, or an event lies outside of the resolution.
        """
        if not 0 <= index < len(self.windows):
            raise IndexError(f"{self.name}: window {index} of {len(self.windows)}")
        start, end = self.windows.edges[index : index + 2]
        low, high = (int(row) for row in self.windows.rows[index : index + 2])
        x, y, t, p = (np.asarray(getattr(self.events, column)[low:high]) for column in "xytp")
        check_times(t, self.name, first=low)
        check_pixels(x, y, self.size, self.name, first=low)
        inside = (t.astype(np.float64) - float(start)) / float(end - start)
        data = WindowData(x, y, np.clip(inside, 0, 1).astype(np.float32), p > 0)
        if self.frames is not None:
            data.before, data.after = (
                grey(np.asarray(self.frames[int(self.frame_rows[edge])]), self.size, self.name)
                for edge in (index, index + 1)
            )
        if self.flow is not None:
            known = self.flow(float(start), float(end))
            if known is None:
                known = np.zeros((2, *self.size), np.float32), np.zeros(self.size, np.bool_)
            data.flow, data.valid = known
        return data


def check_pixels(x: npt.NDArray[Any], y: npt.NDArray[Any], size: tuple[int, int], name: str, first: int = 0) -> None:
    """Raises an `EventDataError` if an event lies outside of the resolution.

    Args:
        x: Columns of the events.
        y: Rows of the events.
        size: Height and width.
        name: How messages call the recording.
        first: Number of their first event in the recording.
    """
    for values, limit, axis in ((y, size[0], "y"), (x, size[1], "x")):
        outside = np.flatnonzero((values < 0) | (values >= limit))
        if outside.size:
            i = int(outside[0])
            raise EventDataError(
                f"{name}: event {first + i} has {axis} = {values[i]}, outside of {size[0]} rows and {size[1]} columns "
                f"({outside.size} such events in this window); give the sensor's resolution"
            )


def grey(picture: npt.NDArray[Any], size: tuple[int, int], name: str) -> FloatArray:
    """A grey picture as float32 in [0, 1]."""
    if picture.shape != size:
        raise EventDataError(f"{name}: a grey picture has shape {picture.shape}, the events {size}")
    if picture.dtype.kind == "f":
        return picture.astype(np.float32, copy=False)
    return picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)


def count_window(data: WindowData, bins: int, size: tuple[int, int]) -> FloatArray:
    """Counts a window's events in time steps of equal duration: [bins, 2, H, W], channel 0 OFF, channel 1 ON."""
    height, width = size
    step = np.minimum((data.t * bins).astype(np.int64), bins - 1)
    cell = ((step * 2 + data.p) * height + data.y) * width + data.x
    counts = np.bincount(cell, minlength=bins * 2 * height * width)
    return counts.astype(np.float32).reshape(bins, 2, height, width)


def _some_events(t: Column, name: str) -> None:
    if len(t) == 0:
        raise EventDataError(f"{name}: the recording has no events")


def _scalar(values: Any) -> Any:
    return np.asarray(values)[0].item()
