"""The ``.dat`` files of Prophesee's data sets, N-CARS among them.

Comment lines, then, where there are any, a byte for the events' type and one for their size (8); then the events: two
little-endian 32-bit words, time; and bits 0 to 13 column, 14 to 27 row, 28 ON.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..events import EventDataError, make_events
from .header import skip_comments, whole_records

_TYPES = (0, 12)  # both names of a change in contrast at a pixel


def read_dat(path: str | Path) -> npt.NDArray[np.void]:
    """Reads one recording. Height and width in the header are optional and not read.

    Raises:
        EventDataError: The file is empty, cut off, or holds something else than 8-byte events.
    """
    path = Path(path)
    data = path.read_bytes()
    start = skip_comments(data, b"%")
    if start:
        if len(data) < start + 2:
            raise EventDataError(f"{path}: cut off: it ends within the header")
        kind, size = data[start], data[start + 1]
        if kind not in _TYPES or size != 8:
            raise EventDataError(f"{path}: damaged, or not a .dat file of events: type {kind}, {size} bytes an event")
        start += 2
    elif not data:
        raise EventDataError(f"{path}: cut off: it is empty")
    whole_records(len(data) - start, 8, path)
    words = np.frombuffer(data, "<u4", offset=start)
    pixel = words[1::2]
    return make_events(pixel & 0x3FFF, (pixel >> 14) & 0x3FFF, words[::2], (pixel >> 28) & 1)
