"""Many recordings in six flat arrays: the form in which events are stored on disk and kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .events import EventDataError, make_events


@dataclass(frozen=True, eq=False)
class PackedEvents:
    """Labelled recordings of one sensor, about 4.1 bytes an event.

    Attributes:
        x: Columns of all events, recording after recording.
        y: Rows of all events.
        dt_us: Microseconds since the previous event; the first event of a recording holds its absolute time.
        p_bits: Polarities, eight to a byte, most significant bit first.
        offsets: Where each recording starts, and the total at the end: ``[recordings + 1]``.
        labels: Class of each recording.
        sensor_size: Height and width in pixels.
    """

    x: npt.NDArray[np.unsignedinteger]
    y: npt.NDArray[np.unsignedinteger]
    dt_us: npt.NDArray[np.unsignedinteger]
    p_bits: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.integer]
    sensor_size: tuple[int, int]

    FIELDS = ("x", "y", "dt_us", "p_bits", "offsets", "labels")

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.labels)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], sensor_size: tuple[int, int], name: str
    ) -> PackedEvents:
        """Takes arrays that came from a file, and checks that they belong together.

        Args:
            arrays: The six arrays by their names (`FIELDS`); others are ignored.
            sensor_size: Height and width in pixels.
            name: How the messages call the source, such as the path of the file.

        Raises:
            EventDataError: An array is missing or has the wrong type, or they contradict each other.
        """
        missing = [field for field in cls.FIELDS if field not in arrays]
        if missing:
            raise EventDataError(f"{name}: arrays {missing} are missing; found {sorted(arrays)}")
        for field in cls.FIELDS:
            unsigned = field in ("x", "y", "dt_us", "p_bits")
            array = arrays[field]
            if array.ndim != 1 or array.dtype.kind not in ("u" if unsigned else "iu"):
                kind = "unsigned integers" if unsigned else "integers"
                raise EventDataError(f"{name}: {field} must be one-dimensional {kind}, got {array.dtype}{array.shape}")
        packed = cls(**{field: arrays[field] for field in cls.FIELDS}, sensor_size=sensor_size)
        packed._check(name)
        return packed

    def _check(self, name: str) -> None:
        offsets, total = self.offsets, len(self.x)
        if len(offsets) != len(self.labels) + 1:
            raise EventDataError(
                f"{name}: {len(self.labels)} labels need {len(self.labels) + 1} offsets, found {len(offsets)}"
            )
        lengths = {field: len(getattr(self, field)) for field in ("x", "y", "dt_us")}
        if len(set(lengths.values())) != 1:
            raise EventDataError(f"{name}: x, y and dt_us must be of equal length, found {lengths}")
        if offsets[0] != 0 or offsets[-1] != total:
            raise EventDataError(
                f"{name}: offsets must run from 0 to the number of events ({total}), "
                f"found {int(offsets[0])} to {int(offsets[-1])}"
            )
        falling = np.flatnonzero(offsets[1:] < offsets[:-1])
        if falling.size:
            raise EventDataError(f"{name}: offsets fall after recording {int(falling[0])}")
        if self.p_bits.dtype != np.uint8 or len(self.p_bits) != -(-total // 8):
            raise EventDataError(
                f"{name}: {total} polarities need {-(-total // 8)} bytes of uint8, "
                f"found {len(self.p_bits)} of {self.p_bits.dtype}"
            )
        for field, limit in (("y", self.sensor_size[0]), ("x", self.sensor_size[1])):
            largest = int(getattr(self, field).max(initial=0))
            if largest >= limit:
                raise EventDataError(f"{name}: {field} reaches {largest} on a sensor of {limit} pixels")

    @classmethod
    def from_columns(
        cls,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        t: npt.NDArray[Any],
        p: npt.NDArray[Any],
        offsets: npt.NDArray[np.int64],
        labels: npt.ArrayLike,
        sensor_size: tuple[int, int],
    ) -> PackedEvents:
        """Packs columns in which the recordings follow each other, each sorted by its absolute time ``t``."""
        delta = np.diff(t.astype(np.int64), prepend=0)
        first = offsets[:-1][np.diff(offsets) > 0]
        delta[first] = t[first]
        coordinate = np.uint8 if max(sensor_size) <= 256 else np.uint16
        return cls(
            x=x.astype(coordinate),
            y=y.astype(coordinate),
            dt_us=delta.astype(np.uint16 if delta.max(initial=0) < 2**16 else np.uint32),
            p_bits=np.packbits(p.astype(np.bool_)),
            offsets=offsets.astype(np.int64),
            labels=np.asarray(labels, dtype=np.int64),
            sensor_size=sensor_size,
        )

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The six arrays by name, for `numpy.savez`."""
        return {field: getattr(self, field) for field in self.FIELDS}

    def times(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Absolute times in microseconds of the events of recordings ``start`` to ``stop``."""
        stop = len(self) if stop is None else stop
        low = int(self.offsets[start])
        offsets = self.offsets[start : stop + 1] - low
        clock: npt.NDArray[np.int64] = np.cumsum(self.dt_us[low : low + int(offsets[-1])], dtype=np.int64)
        # The running sum goes on from recording to recording: take off what had gathered before each one.
        before = np.concatenate(([0], clock))[offsets[:-1]]
        clock -= np.repeat(before, np.diff(offsets))
        return clock

    def polarities(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.bool_]:
        """Polarities (True = ON) of the events of recordings ``start`` to ``stop``."""
        stop = len(self) if stop is None else stop
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        bits = np.unpackbits(self.p_bits[low // 8 : -(-high // 8)])
        return bits[low % 8 : low % 8 + high - low].astype(np.bool_)

    def recording(self, index: int) -> npt.NDArray[np.void]:
        """One recording as a structured array (see `lightning_modules.data.events`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return make_events(self.x[part], self.y[part], self.times(index, index + 1), self.polarities(index, index + 1))
