"""A real recording with true flow from a gyroscope: a rolling camera before a spoked disk; and ideal moving bars.

The recordings come from DVSFLOW16 (Rueckauer and Delbruck 2016, "Evaluation of event-based algorithms for optical flow
with ground-truth from inertial measurement sensor"). They are read from one ``.npz`` archive, where each has the arrays
``NAME_x``, ``NAME_y``, ``NAME_p`` and ``NAME_t`` (microseconds); the gyroscope's are ``IMU_rotDisk_imu_t``,
``IMU_rotDisk_imu_code`` (6: about the optical axis) and ``IMU_rotDisk_imu_raw``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lightning_modules.data.archive import ArchiveError, Arrays, read_archive
from lightning_modules.data.events import EventDataError

from .datamodule import FlowDataModule
from .recording import (
    EventColumns,
    FloatArray,
    FlowRecording,
    TrueFlow,
    WindowedEvents,
    check_times,
    windows_by_count,
    windows_by_time,
)
from .views import Downsampled, Mirrored, PartOfPicture

RecordingName = Literal["IMU_rotDisk", "RotatingBar", "TranslatingBarX", "TranslatingBarY"]

SENSOR_SIZE = (180, 240)

_GYRO_Z = 6
_GYRO_BIAS = 15
_RADIANS = 1000 / 32768 * np.pi / 180
"""Radians per second of one step of the gyroscope."""
_DISK_CENTRE = (104.5, 92.0)
_BAR_CENTRE, _BAR_TURN_S = (120.0, 89.0), 30.0
_BAR_SPEED = 10.0  # pixels per second


@dataclass(frozen=True)
class RotationFlow:
    """True flow of a picture that turns about a fixed point. Angles go from x (to the right) to y (down).

    Attributes:
        times: Times in microseconds, ascending.
        angles: Angle in radians at these times; linear in between.
        centre: The fixed point (x, y).
        size: Height and width.
    """

    times: npt.NDArray[np.float64]
    angles: npt.NDArray[np.float64]
    centre: tuple[float, float]
    size: tuple[int, int] = SENSOR_SIZE

    def __call__(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Displacement [2, H, W] from start to end, known everywhere."""
        before, after = np.interp([start, end], self.times, self.angles)
        turn = after - before
        y, x = np.ogrid[: self.size[0], : self.size[1]]
        x, y = x - self.centre[0], y - self.centre[1]
        flow = (np.cos(turn) - 1) * x - np.sin(turn) * y, np.sin(turn) * x + (np.cos(turn) - 1) * y
        return np.stack(flow).astype(np.float32), np.ones(self.size, np.bool_)


@dataclass(frozen=True)
class TranslationFlow:
    """True flow of a picture that moves at one velocity.

    Attributes:
        velocity: Pixels (x, y) per second.
        size: Height and width.
    """

    velocity: tuple[float, float]
    size: tuple[int, int] = SENSOR_SIZE

    def __call__(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Displacement [2, H, W] from start to end (microseconds), known everywhere."""
        moved = np.array(self.velocity, np.float32) * np.float32((end - start) * 1e-6)
        flow = np.broadcast_to(moved[:, None, None], (2, *self.size)).copy()
        return flow, np.ones(self.size, np.bool_)


def read_rot_disk(path: str | Path, recording: RecordingName) -> tuple[EventColumns, TrueFlow]:
    """Reads one recording and what is known of its flow.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no ``.npz`` archive, is damaged, or lacks arrays.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected an .npz archive with the recording {recording})")
    try:
        arrays = read_archive(path)
    except ArchiveError as error:
        raise EventDataError(f"{path}: {error}; expected the recording {recording}") from error
    columns = EventColumns(*(_array(arrays, f"{recording}_{column}", path) for column in "xytp"))
    if len(columns.t) == 0:
        raise EventDataError(f"{path}: {recording} has no events")
    check_times(np.asarray(columns.t), f"{path}: {recording}")
    if recording == "IMU_rotDisk":
        times, codes, raw = (_array(arrays, f"{recording}_imu_{name}", path) for name in ("t", "code", "raw"))
        if not len(times) == len(codes) == len(raw):
            raise EventDataError(f"{path}: the arrays {recording}_imu_* differ in length")
        about_z = codes == _GYRO_Z
        if about_z.sum() < 2:
            raise EventDataError(f"{path}: no values of the gyroscope about the optical axis (code {_GYRO_Z})")
        return columns, _gyroscope_flow(times[about_z], raw[about_z], columns.t, str(path))
    if recording == "RotatingBar":
        ends = np.array([0.0, float(columns.t[-1])])
        return columns, RotationFlow(ends, -2 * np.pi * ends / (_BAR_TURN_S * 1e6), _BAR_CENTRE)
    velocity = (-_BAR_SPEED, 0.0) if recording == "TranslatingBarX" else (0.0, -_BAR_SPEED)
    return columns, TranslationFlow(velocity)


def _gyroscope_flow(times: npt.NDArray[Any], raw: npt.NDArray[Any], t: Any, name: str) -> RotationFlow:
    check_times(times, f"{name}, gyroscope")
    speed = (raw - float(_GYRO_BIAS)) * _RADIANS
    moments = times.astype(np.float64)
    # The camera records a little longer than the gyroscope at both ends.
    moments = np.concatenate(([min(float(t[0]), moments[0])], moments, [max(float(t[-1]), moments[-1])]))
    speed = np.concatenate((speed[:1], speed, speed[-1:]))
    turned = np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(moments) * 1e-6)
    return RotationFlow(moments, np.concatenate(([0.0], turned)), _DISK_CENTRE)


def _array(arrays: Arrays, name: str, path: Path) -> npt.NDArray[Any]:
    if name not in arrays:
        raise EventDataError(f"{path}: array {name} is missing; found {sorted(arrays)}")
    if arrays[name].ndim != 1:
        raise EventDataError(f"{path}: array {name} must have one dimension, found shape {arrays[name].shape}")
    return arrays[name]


class RotDiskDataModule(FlowDataModule):
    """The first part of a recording trains, the last part of it validates, and the rest is the test.

    The disk turns in one direction at hardly varying speed: on the test part, the mean flow of the training part alone,
    whatever the events, has 22 % of the endpoint error of zero flow. Whether a network looks at the events shows with
    ``flip_x=0.5`` in training and ``mirrored_test``.

    Args:
        path: The ``.npz`` archive.
        recording: "IMU_rotDisk" (real), "RotatingBar", "TranslatingBarX" or "TranslatingBarY" (ideal, ON events only).
        window_us: Duration of a window in microseconds.
        window_events: Cut windows of so many events instead.
        train_fraction: Part of the recording's time for training and validation; what follows is the test.
        val_fraction: Part of the recording's time, at the end of the training part, for validation.
        shifts: Training windows are cut so many times, each time a fraction of a window later.
        downsample: Side of the square of pixels whose events are summed (2: 180x240 becomes 90x120). Flow is given in
            the larger pixels.
        size: Height and width of the part in the middle of the (downsampled) picture that is used; None: all of it.
        mirrored_test: The test has the mirror image of its recording too, in which everything turns the other way.
        **kwargs: See `FlowDataModule`.
    """

    def __init__(
        self,
        path: str | Path,
        recording: RecordingName = "IMU_rotDisk",
        window_us: int = 150_000,
        window_events: int | None = None,
        train_fraction: float = 0.6,
        val_fraction: float = 0.15,
        shifts: int = 8,
        downsample: int = 2,
        size: tuple[int, int] | None = None,
        mirrored_test: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if recording not in get_args(RecordingName):
            raise ValueError(f"recording must be one of {', '.join(get_args(RecordingName))}, got {recording!r}")
        if not 0 < val_fraction < train_fraction < 1:
            raise ValueError(f"expected 0 < val_fraction < train_fraction < 1, got {val_fraction} and {train_fraction}")
        for name, value in (("shifts", shifts), ("downsample", downsample)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.path = path
        self.recording = recording
        self.window_us = window_us
        self.window_events = window_events
        self.train_fraction = train_fraction
        self.val_fraction = val_fraction
        self.shifts = shifts
        self.downsample = downsample
        self.size = size
        self.mirrored_test = mirrored_test

    @property
    def dataset_name(self) -> str:
        """Name of the recording and how it is cut."""
        window = f"{self.window_us / 1000:g} ms" if self.window_events is None else f"{self.window_events} events"
        height, width = (side // self.downsample for side in SENSOR_SIZE)
        height, width = self.size or (height, width)
        return f"DVSFLOW16 {self.recording} ({height}x{width}, windows of {window})"

    @property
    def split_name(self) -> str:
        """What part of the recording trains, validates and tests."""
        train = self.train_fraction - self.val_fraction
        return (
            f"by time: first {train:.0%} train, next {self.val_fraction:.0%} validation, "
            f"last {1 - self.train_fraction:.0%} test{' and its mirror image' if self.mirrored_test else ''}"
        )

    def prepare_data(self) -> None:
        """Reads the file once, so that an error in it shows before training begins."""
        self.load_recordings()

    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """One recording for each shift, one for validation and one for the test."""
        events, flow = read_rot_disk(self.path, self.recording)
        first, last = (float(events.t[row]) for row in (0, -1))
        at = [
            first + (last - first) * part for part in (0, self.train_fraction - self.val_fraction, self.train_fraction)
        ]
        train = [
            self._cut(events, flow, at[0], at[1], shift / self.shifts, f"{self.recording} train")
            for shift in range(self.shifts)
        ]
        val = self._cut(events, flow, at[1], at[2], 0, f"{self.recording} val")
        test = self._cut(events, flow, at[2], last, 0, f"{self.recording} test")
        return {"train": train, "val": [val], "test": [test, Mirrored(test)] if self.mirrored_test else [test]}

    def _cut(
        self, events: EventColumns, flow: TrueFlow, start: float, end: float, shift: float, name: str
    ) -> FlowRecording:
        """Windows from ``start`` to ``end``; the first begins a part ``shift`` of a window later."""
        if self.window_events is None:
            windows = windows_by_time(events.t, self.window_us, start + shift * self.window_us, end, name)
        else:
            row = int(np.searchsorted(events.t[:], start)) + round(shift * self.window_events)
            later = float(events.t[min(row, len(events.t) - 1)])
            windows = windows_by_count(events.t, self.window_events, later, end, name)
        recording: FlowRecording = WindowedEvents(name, SENSOR_SIZE, events, windows, flow=flow)
        if self.downsample > 1:
            recording = Downsampled(recording, self.downsample)
        return recording if self.size is None else PartOfPicture(recording, self.size)
