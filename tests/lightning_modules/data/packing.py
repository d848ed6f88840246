"""Structured event arrays as one `PackedEvents`."""

import numpy as np

from lightning_modules.data import PackedEvents, check_events


def pack(recordings, labels, sensor_size):
    """Packs recordings after checking each."""
    for i, events in enumerate(recordings):
        check_events(events, sensor_size, name=f"recording {i}")
    offsets = np.concatenate(([0], np.cumsum([len(events) for events in recordings], dtype=np.int64)))
    columns = [np.concatenate([one[field] for one in recordings] or [np.zeros(0, np.int64)]) for field in "xytp"]
    return PackedEvents.from_columns(*columns, offsets, labels, sensor_size)
