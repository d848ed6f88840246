"""AEDAT 2 of the DVS128 camera: the form in which CIFAR10-DVS was published.

Comment lines, then pairs of big-endian 32-bit words, address and time. Of the address, bit 0 is 0 for ON, bits 1 to 7
and 8 to 14 are the pixel. The pictures of CIFAR10-DVS stand upright when bits 8 to 14 count columns from the right and
bits 1 to 7 rows from the bottom.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..events import make_events
from .header import expect_start, skip_comments, whole_records


def read_dvs128_aedat2(path: str | Path) -> npt.NDArray[np.void]:
    """Reads one recording of a 128x128 sensor.

    Raises:
        EventDataError: It is no AEDAT 2 file, or cut off.
    """
    path = Path(path)
    data = path.read_bytes()
    expect_start(data, b"#!AER-DAT2", path, "an AEDAT 2 file")
    start = skip_comments(data, b"#")
    whole_records(len(data) - start, 8, path)
    words = np.frombuffer(data, ">u4", offset=start).astype(np.int64)
    address, time = words[::2], words[1::2]
    return make_events(127 - ((address >> 8) & 127), 127 - ((address >> 1) & 127), time, (address & 1) == 0)
