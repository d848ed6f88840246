"""Decompression of LZ4 frames in plain Python, for machines without the package ``lz4``: correct and slow."""

from __future__ import annotations

import struct

_MAGIC = 0x184D2204


def decompress_lz4(data: bytes) -> bytes:
    """Decompresses one frame. Its checksums are not compared.

    Raises:
        ValueError: The data are cut off, damaged or no LZ4 frame.
    """
    try:
        return _frame(data)
    except (IndexError, struct.error) as error:
        raise ValueError("the LZ4 data are cut off") from error


def _frame(data: bytes) -> bytes:
    magic, flags = struct.unpack_from("<IB", data)
    if magic != _MAGIC or flags >> 6 != 1:
        raise ValueError("no LZ4 frame")
    position = 7 + (8 if flags & 0b1000 else 0) + (4 if flags & 0b1 else 0)
    block_checksum = 4 if flags & 0b10000 else 0
    out = bytearray()
    while True:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == 0:
            return bytes(out)
        plain, size = size >> 31, size & 0x7FFFFFFF
        block = data[position : position + size]
        if len(block) < size:
            raise ValueError("the LZ4 data are cut off")
        if plain:
            out += block
        else:
            _block(block, out)
        position += size + block_checksum


def _block(data: bytes, out: bytearray) -> None:
    """Appends a block: runs of literals, each followed by a copy of earlier output."""
    i, size = 0, len(data)
    while i < size:
        token = data[i]
        i += 1
        literals = token >> 4
        if literals == 15:
            while data[i] == 255:
                literals += 255
                i += 1
            literals += data[i]
            i += 1
        if i + literals > size:
            raise ValueError("the LZ4 data are damaged")
        out += data[i : i + literals]
        i += literals
        if i == size:
            return
        distance = data[i] | data[i + 1] << 8
        i += 2
        length = token & 15
        if length == 15:
            while data[i] == 255:
                length += 255
                i += 1
            length += data[i]
            i += 1
        length += 4
        start = len(out) - distance
        if distance == 0 or start < 0:
            raise ValueError("the LZ4 data are damaged")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
