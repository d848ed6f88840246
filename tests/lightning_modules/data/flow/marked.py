"""A recording in which everything says where and when it is, for tests of what moves data about."""

import numpy as np

from lightning_modules.data.flow import FlowRecording, WindowData


class MarkedRecording(FlowRecording):
    """Each pixel fires once in each window, ON in even columns; grey and flow tell the pixel, time tells the window."""

    def __init__(self, name="marked", windows=5, size=(6, 8), frames=True, flow=True):
        self.name = name
        self.size = size
        self._windows = windows
        self._frames = frames
        self._flow = flow

    @property
    def num_windows(self):
        return self._windows

    def read(self, index):
        assert 0 <= index < self._windows
        height, width = self.size
        y, x = np.divmod(np.arange(height * width), width)
        t = np.full(len(x), index / 100, np.float32)
        grey = ((x + width * y) / 1000).astype(np.float32).reshape(self.size)
        flow = np.stack((x + 1, y + 1)).astype(np.float32).reshape(2, *self.size)
        valid = (x % 3 > 0).reshape(self.size)
        return WindowData(
            x.astype(np.uint16),
            y.astype(np.uint16),
            t,
            x % 2 == 0,
            flow=flow if self._flow else None,
            valid=valid if self._flow else None,
            before=grey + index if self._frames else None,
            after=grey + index + 1 if self._frames else None,
        )
