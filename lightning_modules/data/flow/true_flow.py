"""True flow of an interval from maps that cover other intervals, as evaluations on MVSEC have it.

Maps hold the displacement between two neighbouring times. An interval that goes over several of them is composed:
positions are carried forward from map to map, each looked up at the nearest pixel. (Zhu, Yuan, Chaney & Daniilidis,
"EV-FlowNet: Self-Supervised Optical Flow Estimation for Event-based Cameras", RSS 2018, describe it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .recording import FloatArray

Mask = npt.NDArray[np.bool_]

SAME_TIME = 1e-6
"""Times closer than this (seconds) are the same; time stamps since 1970 in float64 are exact to some 2e-7."""


class FlowMaps:
    """The true flow of any interval within the time that maps cover. It is a `TrueFlow`.

    A pixel is valid where every map that it passes has a finite displacement other than zero (the data sets write
    zero where they know nothing), where it stays within the picture, and above the rows to leave out.

    Args:
        times: Map i holds the displacement from ``times[i]`` to ``times[i + 1]``, [maps + 1], ascending.
        read: Reads map i: [2, H, W], x (to the right) before y (down).
        size: Height and width.
        name: How messages call the maps.
        rows: Only rows above this one are valid; None: all. A car's hood, for instance, lies below.
        same_time: Times closer than this are the same.
    """

    def __init__(
        self,
        times: npt.ArrayLike,
        read: Callable[[int], npt.NDArray[np.floating]],
        size: tuple[int, int],
        name: str,
        rows: int | None = None,
        same_time: float = SAME_TIME,
    ) -> None:
        self.times = np.asarray(times, np.float64)
        if self.times.ndim != 1 or len(self.times) < 2:
            raise EventDataError(f"{name}: true flow needs at least two times, found {self.times.size}")
        wrong = np.flatnonzero(~(np.diff(self.times) > 0))
        if wrong.size:
            i = int(wrong[0])
            raise EventDataError(
                f"{name}: the time stamps of the true flow run backwards or repeat: {self.times[i + 1]} (number "
                f"{i + 1}) follows {self.times[i]}"
            )
        self._read = read
        self.size = size
        self.name = name
        self.rows = rows
        self.same_time = same_time

    def covers(self, start: float, end: float) -> bool:
        """Whether the maps say something about the whole interval."""
        return bool(self.times[0] - self.same_time <= start and end <= self.times[-1] + self.same_time)

    def __call__(self, start: float, end: float) -> tuple[FloatArray, Mask]:
        """Displacement [2, H, W] from start to end and where it is known [H, W]; nowhere outside of the maps' time."""
        pieces = self.pieces(start, end)
        if not pieces:
            return np.zeros((2, *self.size), np.float32), np.zeros(self.size, np.bool_)
        flow, valid = carry_forward((self._map(i), fraction) for i, fraction in pieces)
        if self.rows is not None:
            valid[self.rows :] = False
        return flow, valid

    def pieces(self, start: float, end: float) -> list[tuple[int, float]]:
        """Maps that an interval goes over, and which part of each; none if it is not covered.

        An interval shorter than the map in which it begins takes its part of that map alone, even if it ends in the
        next one: published evaluations do so, and with 20 maps and 45 pictures a second they nearly always do.
        """
        if not self.covers(start, end):
            return []
        start, end = self._snap(start), self._snap(end)
        first = int(np.searchsorted(self.times, start, side="right")) - 1
        first = min(first, len(self.times) - 2)
        duration = self.times[first + 1] - self.times[first]
        if end - start < duration:
            return [(first, float((end - start) / duration))]
        last = int(np.searchsorted(self.times, end, side="left")) - 1
        pieces = []
        for i in range(first, last + 1):
            low, high = self.times[i : i + 2]
            pieces.append((i, float((min(high, end) - max(low, start)) / (high - low))))
        return pieces

    def _snap(self, time: float) -> float:
        nearest = float(self.times[np.abs(self.times - time).argmin()])
        return nearest if abs(nearest - time) <= self.same_time else time

    def _map(self, index: int) -> npt.NDArray[np.floating]:
        flow = self._read(index)
        if flow.shape != (2, *self.size):
            raise EventDataError(
                f"{self.name}: map {index} has shape {flow.shape}, expected {(2, *self.size)} as the events"
            )
        return flow


def carry_forward(pieces: Iterable[tuple[npt.NDArray[np.floating], float]]) -> tuple[FloatArray, Mask]:
    """Composes displacements: positions move with one map after the other.

    Args:
        pieces: Maps [2, H, W] in the order of time, and which part of each counts.

    Returns:
        Displacement [2, H, W] from the first to the last, zero where it is not known, and where it is known [H, W].
    """
    x = y = x0 = y0 = np.zeros((0, 0))
    known: Mask | None = None
    for flow, fraction in pieces:
        height, width = flow.shape[1:]
        if known is None:
            y0, x0 = (np.broadcast_to(axis, (height, width)) for axis in np.ogrid[0.0:height, 0.0:width])
            x, y, known = x0, y0, np.ones((height, width), np.bool_)
            step = flow.astype(np.float64)  # every pixel is still where it began
        else:
            column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
            known &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
            step = flow[:, np.where(known, row, 0), np.where(known, column, 0)].astype(np.float64)
        known &= np.isfinite(step).all(0) & (step != 0).any(0)
        step[:, ~known] = 0
        x, y = x + fraction * step[0], y + fraction * step[1]
    if known is None:
        raise ValueError("no maps to compose")
    moved = np.where(known, np.stack((x - x0, y - y0)), 0)
    return moved.astype(np.float32), known
