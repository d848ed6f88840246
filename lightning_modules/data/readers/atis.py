"""The ``.bin`` files of N-MNIST and N-Caltech101.

Five bytes an event: column, row, one bit ON and 23 bits of time, big-endian. Row 240 is no event: from there on
8192 microseconds are to be added to the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..events import EventDataError, make_events
from .header import whole_records

_OVERFLOW_ROW = 240
_OVERFLOW_US = 1 << 13


def read_atis_bin(path: str | Path) -> npt.NDArray[np.void]:
    """Reads one recording.

    Raises:
        EventDataError: The file is empty or cut off.
    """
    path = Path(path)
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0:
        raise EventDataError(f"{path}: cut off: it is empty")
    whole_records(raw.size, 5, path)
    rows = raw.reshape(-1, 5).astype(np.int64)
    overflow = rows[:, 1] == _OVERFLOW_ROW
    time = ((rows[:, 2] & 127) << 16 | rows[:, 3] << 8 | rows[:, 4]) + np.cumsum(overflow) * _OVERFLOW_US
    keep = ~overflow
    return make_events(rows[keep, 0], rows[keep, 1], time[keep], rows[keep, 2] >> 7)
