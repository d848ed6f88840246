"""AEDAT 4: what iniVation's DV software writes, and one of the forms in which CIFAR10-DVS is distributed.

A line of text; a header, which is a FlatBuffer with the kind of compression, the place of the table of contents and an
XML description of the streams; then packets: stream, size, and a compressed FlatBuffer. The events in it are structs of
16 bytes: time (int64), column and row (int16), ON (bool).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..events import EventDataError, make_events
from .header import expect_start
from .lz4 import decompress_lz4

_MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "?"], "itemsize": 16})

Decompress = Callable[[bytes], bytes]


def read_aedat4(path: str | Path) -> npt.NDArray[np.void]:
    """Reads the first event stream of one recording.

    LZ4 needs no package, but is slow without ``lz4``; Zstandard needs Python 3.14 or the package ``zstandard``.

    Raises:
        EventDataError: It is no AEDAT 4 file, has no events, is cut off or damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    expect_start(data, _MAGIC, path, "an AEDAT 4 file")
    try:
        return _read(data, path)
    except EventDataError:
        raise
    except (struct.error, IndexError, ValueError, OverflowError, RuntimeError, UnicodeDecodeError) as error:
        raise EventDataError(f"{path}: cut off or damaged ({type(error).__name__}: {error})") from error


def _read(data: bytes, path: Path) -> npt.NDArray[np.void]:
    position = len(_MAGIC)
    (size,) = struct.unpack_from("<I", data, position)
    header = _Table(data, position + 4)
    compression = header.scalar(0, "<i", 0)
    table_of_contents = header.scalar(1, "<q", -1)
    stream = _event_stream(header.text(2), path)
    decompress = _decompressor(compression, path)
    position += 4 + size
    end = table_of_contents if table_of_contents > 0 else len(data)
    if end > len(data):
        raise EventDataError(f"{path}: cut off: the table of contents should begin at byte {end} of {len(data)}")
    parts = []
    while position < end:
        packet_stream, size = struct.unpack_from("<ii", data, position)
        position += 8
        if size < 0 or position + size > end:
            raise EventDataError(f"{path}: cut off or damaged: a packet of {size} bytes at byte {position} of {end}")
        if packet_stream == stream:
            packet = decompress(data[position : position + size])
            parts.append(_Table(packet, 4).structs(0, _EVENT))
        position += size
    events = np.concatenate(parts) if parts else np.zeros(0, _EVENT)
    return make_events(events["x"], events["y"], events["t"], events["p"])


class _Table:
    """The root table of a FlatBuffer that begins at ``start``; every access is checked against the buffer's end."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.position = start + int(struct.unpack_from("<I", data, start)[0])
        self.fields = self.position - int(struct.unpack_from("<i", data, self.position)[0])
        (self.size,) = struct.unpack_from("<H", data, self.fields)

    def _field(self, index: int) -> int | None:
        slot = 4 + 2 * index
        if slot + 2 > self.size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, self.fields + slot)
        return self.position + offset if offset else None

    def scalar(self, index: int, form: str, default: int) -> int:
        place = self._field(index)
        return default if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def _vector(self, index: int) -> tuple[int, int]:
        place = self._field(index)
        if place is None:
            return 0, 0
        place += int(struct.unpack_from("<I", self.data, place)[0])
        return place + 4, int(struct.unpack_from("<I", self.data, place)[0])

    def text(self, index: int) -> str:
        start, length = self._vector(index)
        return self.data[start : start + length].decode()

    def structs(self, index: int, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        start, count = self._vector(index)
        return np.frombuffer(self.data, dtype, count, start) if count else np.zeros(0, dtype)


def _event_stream(description: str, path: Path) -> int:
    """Number of the first stream whose type is EVTS, in an XML of nodes ``outInfo/NUMBER`` with attributes."""
    node = r'<node name="(\d+)"[^>]*>(.*?)(?=<node name="\d+"|\Z)'
    kinds = {}
    for number, body in re.findall(node, description, re.DOTALL):
        if kind := re.search(r'key="typeIdentifier"[^>]*>(\w+)<', body):
            kinds[int(number)] = kind[1]
    streams = sorted(number for number, kind in kinds.items() if kind == "EVTS")
    if not streams:
        raise EventDataError(f"{path}: no stream of events; found {sorted(set(kinds.values()))}")
    return streams[0]


def _decompressor(kind: int, path: Path) -> Decompress:
    if kind == 0:
        return bytes
    if kind in (1, 2):
        try:
            from lz4.frame import decompress as fast_lz4
        except ImportError:
            return decompress_lz4
        return lambda packet: bytes(fast_lz4(packet))
    if kind in (3, 4):
        return _zstandard(path)
    raise EventDataError(f"{path}: damaged, or a kind of compression that is not known ({kind})")


def _zstandard(path: Path) -> Decompress:
    try:
        from compression import zstd
    except ImportError:
        return _zstandard_package(path)

    def unpack(packet: bytes) -> bytes:
        try:
            return bytes(zstd.decompress(packet))
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error

    return unpack


def _zstandard_package(path: Path) -> Decompress:
    try:
        import zstandard
    except ImportError as error:
        raise EventDataError(f"{path}: compressed with Zstandard; to read it: pip install zstandard") from error

    def unpack(packet: bytes) -> bytes:
        whole = zstandard.ZstdDecompressor().decompressobj()
        try:
            unpacked = bytes(whole.decompress(packet))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not whole.eof:
            raise ValueError("a compressed packet does not end")
        return unpacked

    return unpack
