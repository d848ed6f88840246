"""Recordings at a lower resolution, a part of their picture, or their mirror image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .recording import FloatArray, FlowRecording, WindowData


class PartOfPicture(FlowRecording):
    """The same rectangle of every window.

    Args:
        recording: The recording.
        size: Height and width of the part.
        corner: Its first row and column; in the middle if left out.
    """

    def __init__(self, recording: FlowRecording, size: tuple[int, int], corner: tuple[int, int] | None = None) -> None:
        if corner is None:
            corner = ((recording.size[0] - size[0]) // 2, (recording.size[1] - size[1]) // 2)
        for start, length, full in zip(corner, size, recording.size, strict=True):
            if length < 1 or start < 0 or start + length > full:
                raise ValueError(f"{recording.name}: a part of {size} at {corner} does not fit into {recording.size}")
        self.name = recording.name
        self.size = size
        self.corner = corner
        self._recording = recording

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return self._recording.num_windows

    def read(self, index: int) -> WindowData:
        """Reads one window."""
        data = self._recording.read(index)
        (top, left), (height, width) = self.corner, self.size
        x, y = data.x.astype(np.int64) - left, data.y.astype(np.int64) - top
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)

        def part(picture: Any) -> Any:
            return None if picture is None else picture[..., top : top + height, left : left + width]

        return replace(
            data,
            x=x[inside],
            y=y[inside],
            t=data.t[inside],
            p=data.p[inside],
            flow=part(data.flow),
            valid=part(data.valid),
            before=part(data.before),
            after=part(data.after),
        )


class Downsampled(FlowRecording):
    """Squares of pixels become one: events are summed, pictures averaged; flow is averaged and counts larger pixels.

    Flow is known where it is known in every pixel of a square. Rows and columns that fill no whole square are left out.

    Args:
        recording: The recording.
        factor: Side of a square.
    """

    def __init__(self, recording: FlowRecording, factor: int) -> None:
        if factor < 1 or factor > min(recording.size):
            raise ValueError(f"{recording.name}: squares of {factor} pixels do not fit into {recording.size}")
        height, width = (side // factor for side in recording.size)
        self.name = recording.name
        self.size = (height, width)
        self.factor = factor
        self._recording = PartOfPicture(recording, (height * factor, width * factor), (0, 0))

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return self._recording.num_windows

    def read(self, index: int) -> WindowData:
        """Reads one window."""
        data = self._recording.read(index)
        if data.flow is None or data.valid is None:
            flow, valid = None, None
        else:
            valid = np.asarray(self._squares(data.valid).all(axis=(-3, -1)))
            flow = np.where(valid, self._mean(np.where(data.valid, data.flow, 0)) / np.float32(self.factor), 0)
            flow = flow.astype(np.float32)
        return replace(
            data,
            x=data.x // self.factor,
            y=data.y // self.factor,
            flow=flow,
            valid=valid,
            before=None if data.before is None else self._mean(data.before),
            after=None if data.after is None else self._mean(data.after),
        )

    def _squares(self, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        height, width = self.size
        return picture.reshape(*picture.shape[:-2], height, self.factor, width, self.factor)

    def _mean(self, picture: npt.NDArray[Any]) -> FloatArray:
        mean: FloatArray = self._squares(picture).mean(axis=(-3, -1), dtype=np.float32)
        return mean


class Mirrored(FlowRecording):
    """Left and right exchanged.

    Args:
        recording: The recording.
    """

    def __init__(self, recording: FlowRecording) -> None:
        self.name = f"{recording.name} mirrored"
        self.size = recording.size
        self._recording = recording

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return self._recording.num_windows

    def read(self, index: int) -> WindowData:
        """Reads one window."""
        data = self._recording.read(index)

        def mirrored(picture: Any) -> Any:
            return None if picture is None else picture[..., ::-1]

        flow = mirrored(data.flow)
        return replace(
            data,
            x=self.size[1] - 1 - data.x.astype(np.int64),
            flow=None if flow is None else flow * np.array([-1, 1], np.float32)[:, None, None],
            valid=mirrored(data.valid),
            before=mirrored(data.before),
            after=mirrored(data.after),
        )
