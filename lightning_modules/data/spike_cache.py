"""Spikes of sound, sorted into time steps: packed on disk, about two bytes a spike, and read where they are needed.

The cache is a folder whose name carries a hash of what it depends on. It holds portions of `PORTION` recordings, each a
``.npy`` file that appears when it is complete: a run that was killed goes on after the last one, and processes that
want the same cache wait for the one that builds it. A portion is mapped into memory when one of its recordings is
asked for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cache import ENVIRONMENT_VARIABLE, cache_root
from .digests import content_digest
from .lock import locked
from .spike_files import SpikeFile, SpikeRecordings

PORTION = 256
"""Recordings of a file."""

VERSION = 1
"""Changes when the same spikes would be packed in another way."""

_HEAD = 4  # number of recordings, checksum (two halves), nothing


class BinnedSpikes:
    """The recordings of a file, as counts per time step and channel.

    Args:
        file: The recordings.
        num_steps: Time steps of every recording; later spikes are left out. None: each its own length.
        step_ms: Duration of a time step.
        cache_dir: Cache directory; default as in `lightning_modules.data.cache.cache_root`.
        progress: Show a progress bar while the cache is built.

    Raises:
        EventDataError: The file is damaged.
        OSError: The cache cannot be written. What is complete stays, and is used next time.
    """

    def __init__(
        self,
        file: SpikeFile,
        num_steps: int | None,
        step_ms: float,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.file = file
        self.num_steps = num_steps
        self.step_ms = step_ms
        (content,) = content_digest([file.path], cache_dir)
        key = {"version": VERSION, "file": content, "num_steps": num_steps, "step_ms": step_ms}
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = cache_root(cache_dir) / f"{file.path.stem}-{digest}"
        self._portions: dict[int, _Portion] = {}
        self._build(progress)

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.file)

    def __getstate__(self) -> dict[str, Any]:
        """Workers open the files anew."""
        return {**self.__dict__, "_portions": {}}

    def spikes(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16], int]:
        """Time step and channel of each spike of one recording, and its number of time steps."""
        number, place = divmod(index, PORTION)
        if number not in self._portions:
            portion = _Portion.open(self._path(number))
            if portion is None:
                raise OSError(f"{self._path(number)} is gone or damaged; start again to have it built anew")
            self._portions[number] = portion
        return self._portions[number].spikes(place)

    def _path(self, number: int) -> Path:
        return self.folder / f"portion-{number:05d}.npy"

    def _build(self, progress: bool) -> None:
        numbers = range(-(-len(self.file) // PORTION))
        if all(_Portion.open(self._path(number)) is not None for number in numbers):
            return
        try:
            with locked(self.folder / ".lock"):
                self._build_missing(numbers, progress)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OSError(
                f"{self.folder}: the cache of spikes could not be written "
                f"({'no room on the disk' if full else error}). What is complete stays and is used next time. Make "
                f"room, or choose another directory with {ENVIRONMENT_VARIABLE} or --data.cache_dir."
            ) from error

    def _build_missing(self, numbers: range, progress: bool) -> None:
        from rich.progress import Progress

        for leftover in self.folder.glob(".*.tmp"):  # of killed writers: the lock says that nobody is writing
            leftover.unlink()
        with Progress(disable=not progress) as bar:
            task = bar.add_task(f"spikes of {self.file.path.name}", total=len(self.file))
            for number in numbers:
                low, high = number * PORTION, min((number + 1) * PORTION, len(self.file))
                path = self._path(number)
                if _Portion.open(path, check=True) is None:
                    if path.exists():
                        warnings.warn(f"cache file {path} is damaged and will be built again", stacklevel=4)
                    _write(path, pack(self.file.read(low, high), self.num_steps, self.step_ms))
                bar.advance(task, high - low)


def pack(recordings: SpikeRecordings, num_steps: int | None, step_ms: float) -> npt.NDArray[np.uint16]:
    """Packs recordings: a head, each one's number of steps, the number of spikes of each step, then the channels.

    Args:
        recordings: The recordings.
        num_steps: Time steps of every recording; later spikes are left out. None: each its own length.
        step_ms: Duration of a time step.
    """
    count = len(recordings)
    owner = np.repeat(np.arange(count), np.diff(recordings.offsets))
    # Times are float16 in the files: 0.05 s comes as 0.04999. What is nearly a border belongs behind it.
    step = (recordings.times.astype(np.float64) * 1000 / step_ms + 1e-2).astype(np.int64)
    if num_steps is None:
        steps = np.ones(count, dtype=np.int64)
        np.maximum.at(steps, owner, step + 1)
    else:
        steps = np.full(count, num_steps, dtype=np.int64)
    inside = step < steps[owner]
    starts = np.concatenate(([0], np.cumsum(steps)))
    cell = starts[owner[inside]] + step[inside]
    order = np.argsort(cell, kind="stable")
    counts = np.bincount(cell, minlength=int(starts[-1]))
    body = np.concatenate((steps, counts, recordings.units[inside][order])).astype(np.uint16)
    crc = zlib.crc32(body.tobytes())
    head = np.array([count, crc >> 16, crc & 0xFFFF, 0], dtype=np.uint16)
    return np.concatenate((head, body))


class _Portion:
    """Packed recordings, mapped into memory."""

    def __init__(self, data: npt.NDArray[np.uint16]) -> None:
        count = int(data[0])
        steps = data[_HEAD : _HEAD + count].astype(np.int64)
        self.first_step = np.concatenate(([0], np.cumsum(steps)))
        end = _HEAD + count + int(self.first_step[-1])
        self.counts = data[_HEAD + count : end]
        self.units = data[end:]
        before = np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))
        self.first_spike = before[self.first_step]
        if len(self.units) != before[-1] or len(self.counts) != self.first_step[-1]:
            raise ValueError("the sizes do not fit together")

    @classmethod
    def open(cls, path: Path, check: bool = False) -> _Portion | None:
        """The portion, or None if it is not there or damaged; with ``check`` its checksum is compared."""
        try:
            data = np.load(path, mmap_mode="r", allow_pickle=False)
            if check and zlib.crc32(data[_HEAD:].tobytes()) != (int(data[1]) << 16 | int(data[2])):
                return None
            return cls(data)
        except (OSError, ValueError, IndexError, EOFError):
            return None

    def spikes(self, place: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16], int]:
        low, high = int(self.first_step[place]), int(self.first_step[place + 1])
        step = np.repeat(np.arange(high - low), self.counts[low:high])
        units = self.units[int(self.first_spike[place]) : int(self.first_spike[place + 1])]
        return step, np.asarray(units), high - low


def _write(path: Path, data: npt.NDArray[np.uint16]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as out:
            np.save(out, data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
