"""Events as numpy structured arrays: dtype, construction and checks.

A recording is a one-dimensional structured array with the fields ``x``, ``y``, ``t`` (microseconds) and ``p`` (True =
ON), sorted by ``t``. This is the layout that tonic uses, so every tonic transform takes such an array as it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EVENT_DTYPE = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.bool_)])
"""Fields of one event; ``t`` is in microseconds."""


class EventDataError(ValueError):
    """Event data (or a file with event data) that is inconsistent; the message names what was found and where."""


def make_events(x: npt.ArrayLike, y: npt.ArrayLike, t: npt.ArrayLike, p: npt.ArrayLike) -> npt.NDArray[np.void]:
    """Builds a structured event array from four columns of equal length.

    Args:
        x: Columns of the pixels.
        y: Rows of the pixels.
        t: Time stamps in microseconds.
        p: Polarities, 0 or 1.

    Returns:
        Array of ``EVENT_DTYPE``. Order and ranges are not checked; see `check_events`.

    Raises:
        EventDataError: The columns differ in length.
    """
    columns = {name: np.asarray(column) for name, column in zip("xytp", (x, y, t, p), strict=True)}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise EventDataError(f"the columns x, y, t, p must be one-dimensional and of equal length, got {found}")
    events = np.empty(columns["x"].shape, dtype=EVENT_DTYPE)
    for name, column in columns.items():
        events[name] = column
    return events


def check_events(events: npt.NDArray[np.void], sensor_size: tuple[int, int], name: str = "events") -> None:
    """Checks that one recording is sorted in time and lies on the sensor.

    A recording without events is valid: it becomes frames of zeros.

    Args:
        events: Structured array with the fields x, y, t, p.
        sensor_size: Height and width of the sensor in pixels.
        name: How the messages call the recording, such as a file name.

    Raises:
        EventDataError: A field is missing, a time stamp is negative or smaller than the one before it, a coordinate is
            outside the sensor, or a polarity is not 0 or 1.
    """
    missing = [field for field in "xytp" if field not in (events.dtype.names or ())]
    if missing:
        raise EventDataError(f"{name}: fields {missing} are missing; expected x, y, t, p, found dtype {events.dtype}")
    if events.ndim != 1:
        raise EventDataError(f"{name}: expected a one-dimensional array of events, got shape {events.shape}")
    if len(events) == 0:
        return
    t = events["t"]
    backwards = np.flatnonzero(t[1:] < t[:-1])
    if backwards.size:
        i = int(backwards[0])
        raise EventDataError(
            f"{name}: time stamps are not sorted: event {i + 1} at {t[i + 1]} us follows event {i} at {t[i]} us "
            f"({backwards.size} such places). Sort first: events[np.argsort(events['t'], kind='stable')]"
        )
    if t[0] < 0:
        raise EventDataError(f"{name}: the first time stamp is negative ({t[0]} us)")
    for field, limit in (("y", sensor_size[0]), ("x", sensor_size[1])):
        values = events[field]
        outside = np.flatnonzero((values < 0) | (values >= limit))
        if outside.size:
            i = int(outside[0])
            raise EventDataError(
                f"{name}: {outside.size} events lie outside the sensor of {sensor_size[0]} rows and {sensor_size[1]} "
                f"columns; the first is event {i} with {field} = {values[i]}"
            )
    p = events["p"]
    if p.dtype != np.bool_:
        wrong = np.flatnonzero((p != 0) & (p != 1))
        if wrong.size:
            raise EventDataError(f"{name}: polarities must be 0 or 1, event {int(wrong[0])} has {p[wrong[0]]}")
