"""Recordings that stay in their files: the events of a window are looked up and read when the window is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .recording import FlowRecording, TrueFlow, WindowData, check_pixels, check_times, grey

_BLOCK = 4096


class Events(NamedTuple):
    """Some events."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    t: npt.NDArray[Any]
    p: npt.NDArray[Any]


class EventStore(Protocol):
    """Events in a file, sorted by time."""

    def __len__(self) -> int:
        """Number of events."""

    def bracket(self, time: float) -> tuple[int, int]:
        """Rows between which the first event at ``time`` or later lies; all rows, where there is no index."""

    def times(self, low: int, high: int) -> npt.NDArray[Any]:
        """Time stamps of the events from row ``low`` to ``high``."""

    def events(self, low: int, high: int) -> Events:
        """Events from row ``low`` to ``high``; pixels as integers, ON polarities above 0."""


def first_row(store: EventStore, time: float, near: int | None = None) -> int:
    """Row of the first event at ``time`` or later; without an index some 30 single time stamps are read.

    Args:
        store: The events.
        time: The time.
        near: A row from which the search begins, in steps that double. None: it begins in the middle.
    """
    low, high = store.bracket(time)
    if near is not None and low <= near < high:
        step = _BLOCK
        if store.times(near, near + 1)[0] < time:
            low = near + 1
            while low + step < high and store.times(low + step, low + step + 1)[0] < time:
                low, step = low + step + 1, 2 * step
            high = min(high, low + step)
        else:
            high = near
            while high - step > low and store.times(high - step, high - step + 1)[0] >= time:
                high, step = high - step, 2 * step
            low = max(low, high - step)
    while high - low > _BLOCK:
        middle = (low + high) // 2
        if store.times(middle, middle + 1)[0] < time:
            low = middle + 1
        else:
            high = middle
    return low + int(np.searchsorted(store.times(low, high), time, side="left"))


class Bounds(NamedTuple):
    """Where a window begins and ends."""

    start: float
    end: float
    low: int
    high: int


class Cut(ABC):
    """How a recording is cut into consecutive windows."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of windows."""

    @abstractmethod
    def bounds(self, index: int) -> Bounds:
        """Times and rows of one window."""


class CutAtTimes(Cut):
    """Windows between given times, such as those of the grey pictures.

    Args:
        store: The events.
        edges: Window i lasts from ``edges[i]``, included, to ``edges[i + 1]``.
        name: How messages call the recording.
    """

    def __init__(self, store: EventStore, edges: npt.NDArray[np.float64], name: str) -> None:
        wrong = np.flatnonzero(~(np.diff(edges) > 0))
        if wrong.size:
            i = int(wrong[0])
            raise EventDataError(
                f"{name}: the times at which windows are cut run backwards or repeat: {edges[i + 1]} follows {edges[i]}"
            )
        if len(edges) < 2:
            raise EventDataError(f"{name}: no window: {len(edges)} of the times to cut at lie in the part to be used")
        self.store = store
        self.edges = edges
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.edges) - 1

    def bounds(self, index: int) -> Bounds:
        """Times and rows of one window."""
        start, end = (float(edge) for edge in self.edges[index : index + 2])
        return Bounds(start, end, self._row(index), self._row(index + 1))

    def _row(self, edge: int) -> int:
        if edge not in self._rows:  # the end of one window is the start of the next
            near = self._rows.get(edge - 1)
            self._rows[edge] = first_row(self.store, float(self.edges[edge]), near)
        return self._rows[edge]


class CutByCount(Cut):
    """Windows of equally many events; what is left behind the last whole window is left out.

    Args:
        store: The events.
        count: Events of a window.
        start: Events before it are left out; None: none.
        end: Events from then on are left out; None: none.
        name: How messages call the recording.
    """

    def __init__(self, store: EventStore, count: int, start: float | None, end: float | None, name: str) -> None:
        if count < 1:
            raise ValueError(f"a window needs at least 1 event, got {count}")
        low = 0 if start is None else first_row(store, start)
        high = len(store) if end is None else first_row(store, end)
        if (high - 1 - low) // count < 1:  # one event more, which says when the last window ends
            raise EventDataError(f"{name}: {high - low} events are no window of {count}; take fewer events")
        self.store = store
        self.count = count
        self._low = low
        self._windows = (high - 1 - low) // count

    def __len__(self) -> int:
        """Number of windows."""
        return self._windows

    def bounds(self, index: int) -> Bounds:
        """Times and rows of one window."""
        low = self._low + index * self.count
        high = low + self.count
        start, end = (float(self.store.times(row, row + 1)[0]) for row in (low, high))
        return Bounds(start, end, low, high)


class StoredRecording(FlowRecording):
    """One recording in a file.

    Args:
        name: What results and messages call the recording; messages should find the file by it.
        size: Height and width of the sensor in pixels.
        store: Its events.
        cut: Where to cut them.
        picture: Reads the grey picture at edge i of the windows. None: recorded without.
        flow: Gives the true flow of an interval. None: it is not known.
        drop_outside: Events outside of the sensor are left out (rectification moves some there) and are no error.
        path: The file, for messages.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        store: EventStore,
        cut: Cut,
        picture: Callable[[int], npt.NDArray[Any]] | None = None,
        flow: TrueFlow | None = None,
        drop_outside: bool = False,
        path: str = "",
    ) -> None:
        self.name = name
        self.size = size
        self.store = store
        self.cut = cut
        self.picture = picture
        self.flow = flow
        self.drop_outside = drop_outside
        self.path = path or name

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self.cut)

    def read(self, index: int) -> WindowData:
        """Reads one window and checks it.

        Raises:
            EventDataError: The file is damaged, time stamps run backwards, or an event lies outside of the resolution.
        """
        if not 0 <= index < len(self.cut):
            raise IndexError(f"{self.name}: window {index} of {len(self.cut)}")
        start, end, low, high = self.cut.bounds(index)
        if high < low or end < start:
            raise EventDataError(f"{self.path}: time stamps run backwards between event {high} and event {low}")
        x, y, t, p = self.store.events(low, high)
        check_times(t, self.path, first=low)
        if len(t) and (t[0] < start or t[-1] > end):
            raise EventDataError(
                f"{self.path}: time stamps run backwards: events {low} to {high - 1} should lie between {start} and "
                f"{end}, but lie between {t[0]} and {t[-1]}"
            )
        if self.drop_outside:
            kept = (x >= 0) & (x < self.size[1]) & (y >= 0) & (y < self.size[0])
            x, y, t, p = x[kept], y[kept], t[kept], p[kept]
        check_pixels(x, y, self.size, self.path, first=low)
        # Equal time stamps throughout leave a window of events no duration.
        inside = (t.astype(np.float64) - start) / (end - start) if end > start else np.zeros(len(t))
        data = WindowData(x, y, inside.astype(np.float32), p > 0)
        if self.picture is not None:
            data.before, data.after = (
                grey(np.asarray(self.picture(edge)), self.size, self.path) for edge in (index, index + 1)
            )
        known = None if self.flow is None else self.flow(start, end)
        if known is not None:
            data.flow, data.valid = known
        return data


class PartOfRecording(FlowRecording):
    """Some consecutive windows of a recording.

    Args:
        recording: The recording.
        first: Its first window in this part.
        length: Number of windows.
        name: What results call the part; the recording's name if left out.
    """

    def __init__(self, recording: FlowRecording, first: int, length: int, name: str | None = None) -> None:
        if first < 0 or length < 1 or first + length > recording.num_windows:
            raise ValueError(
                f"{recording.name}: no {length} windows from window {first} on, it has {recording.num_windows}"
            )
        self.name = recording.name if name is None else name
        self.size = recording.size
        self._recording = recording
        self._first = first
        self._length = length

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return self._length

    def read(self, index: int) -> WindowData:
        """Reads one window."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name}: window {index} of {self._length}")
        return self._recording.read(self._first + index)
