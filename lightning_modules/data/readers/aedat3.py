"""AEDAT 3.1: the form in which DVS Gesture was published.

A text header, then packets: 28 bytes of header with the events' type, size and number, then the events. A polarity
event (type 1) is two little-endian 32-bit words: bit 0 valid, bit 1 ON, bits 2 to 16 row, bits 17 to 31 column; and the
time, whose upper bits are the packet's overflow counter.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..events import EventDataError, make_events
from .header import expect_start, skip_comments

_HEADER = struct.Struct("<HHIIIIII")
_END = b"#!END-HEADER\r\n"
_POLARITY = 1


def read_aedat3(path: str | Path) -> npt.NDArray[np.void]:
    """Reads the polarity events of one recording; events of other types are passed over.

    Raises:
        EventDataError: It is no AEDAT 3 file, or cut off or damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    expect_start(data, b"#!AER-DAT3", path, "an AEDAT 3 file")
    end = data.find(_END)
    position = end + len(_END) if end >= 0 else skip_comments(data, b"#")
    words, overflows = [], []
    while position < len(data):
        if position + _HEADER.size > len(data):
            raise EventDataError(f"{path}: cut off: the header of a packet ends after {len(data) - position} bytes")
        kind, _, size, _, overflow, capacity, number, valid = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        if size < 8 or number > capacity:
            raise EventDataError(f"{path}: damaged: a packet of {number} of {capacity} events of {size} bytes")
        if position + size * capacity > len(data):
            missing = position + size * capacity - len(data)
            raise EventDataError(f"{path}: cut off: {missing} bytes of the last packet are missing")
        if kind == _POLARITY and number:
            packet = np.frombuffer(data, np.uint8, size * number, position).reshape(number, size)
            pairs = np.ascontiguousarray(packet[:, :8]).view("<u4")
            if valid != number:
                pairs = pairs[(pairs[:, 0] & 1) == 1]
            words.append(pairs)
            overflows.append(np.full(len(pairs), overflow, dtype=np.int64))
        position += size * capacity
    pairs = np.concatenate(words) if words else np.zeros((0, 2), np.uint32)
    address = pairs[:, 0]
    time = pairs[:, 1].astype(np.int64) | (np.concatenate(overflows or [np.zeros(0, np.int64)]) << 31)
    return make_events((address >> 17) & 0x7FFF, (address >> 2) & 0x7FFF, time, (address >> 1) & 1)
