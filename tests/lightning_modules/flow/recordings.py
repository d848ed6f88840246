"""Recordings of random events, each with a flow of its own."""

import numpy as np

from lightning_modules.data.flow import FlowRecording, WindowData


class RandomRecording(FlowRecording):
    def __init__(self, number, windows=4, size=(8, 12)):
        self.name, self.size = f"random {number}", size
        self._number, self._windows = number, windows

    @property
    def num_windows(self):
        return self._windows

    def read(self, index):
        random = np.random.default_rng([self._number, index])
        height, width = self.size
        return WindowData(
            random.integers(0, width, 60).astype(np.uint16),
            random.integers(0, height, 60).astype(np.uint16),
            np.sort(random.random(60)).astype(np.float32),
            random.random(60) < 0.5,
            flow=np.broadcast_to(random.normal(size=(2, 1, 1)), (2, height, width)).astype(np.float32),
        )
