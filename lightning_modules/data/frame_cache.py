"""Frames of a whole data set on disk: made once, packed in bytes, mapped into memory by every process that reads them.

The cache is a folder whose name carries a hash of what the frames depend on. It is filled in portions of
``PORTION`` recordings, each an ``.npz`` archive that appears when it is complete; a run that was killed goes on after
the last one. At the end they become ``frames.npy``, and ``index.npz`` says that the cache is whole. Processes that want
the same cache wait for the one that builds it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import ArchiveError, Arrays, read_archive, write_archive
from .cache import ENVIRONMENT_VARIABLE, cache_root
from .frames import FrameStore
from .lock import locked

PORTION = 256
"""Recordings (files) that are put on disk together."""

_CHUNK = 1 << 24


class CacheError(RuntimeError):
    """A cache that cannot be written; the message names the file and what to do."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Frames of one sample, on their way into the cache.

    Attributes:
        frames: Counts ``[steps, 2, height, width]``.
        label: Class.
        events: Number of events that the frames were made from.
    """

    frames: npt.NDArray[np.uint8]
    label: int
    events: int


@dataclass(frozen=True, eq=False)
class CachedFrames:
    """All samples of a data set.

    Attributes:
        store: Their frames; on disk, and read when they are used.
        labels: Their classes.
        sources: Which recording (file) each came from: its number.
        events: Number of events of each.
    """

    store: FrameStore
    labels: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]


def cached_frames(
    name: str,
    settings: Mapping[str, Any],
    count: int,
    build: Callable[[int], list[Sample]],
    directory: str | Path | None = None,
    progress: bool = True,
) -> CachedFrames:
    """Returns the frames from the cache, after building what is missing of it.

    Args:
        name: Of the data set; starts the folder's name and stands at the progress bar.
        settings: Everything the frames depend on (with versions of the data and of the code), as plain JSON values.
        count: Number of recordings.
        build: Makes the samples of a recording from its number. All frames have the same shape but for their steps.
        directory: Cache directory; default as in `lightning_modules.data.cache.cache_root`.
        progress: Show a progress bar.

    Raises:
        CacheError: The cache cannot be written (full disk, no rights). What is complete stays, and is used next time.
    """
    text = json.dumps(settings, sort_keys=True)
    folder = cache_root(directory) / f"{name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    found = _open(folder, check=False)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            found = _open(folder, check=True)
            if found is None:
                _clear_leftovers(folder)
                portions = _build(folder, name, count, build, progress)
                _assemble(folder, portions, text)
                found = _open(folder, check=False)
    except OSError as error:
        raise CacheError(_message(error, folder)) from error
    if found is None:
        raise CacheError(f"{folder}: written, but cannot be read back; is the disk faulty?")
    return found


def _open(folder: Path, check: bool) -> CachedFrames | None:
    """The complete cache, or None; with ``check`` the frames' checksum is compared too."""
    index_path, frames_path = folder / "index.npz", folder / "frames.npy"
    if not index_path.exists():
        return None
    try:
        index = read_archive(index_path)
        # Copy on write: torch wants arrays that can be written; nothing is ever written back.
        frames = np.load(frames_path, mmap_mode="c", allow_pickle=False)
        if frames_path.stat().st_size != int(index["size"]) or len(frames) != int(index["offsets"][-1]):
            raise ArchiveError(f"{frames_path} has another size than when it was written")
        if check and _crc(frames_path) != int(index["crc"]):
            raise ArchiveError(f"{frames_path} is damaged")
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        warnings.warn(f"cache {folder} is damaged and will be built again: {error}", stacklevel=3)
        for path in (index_path, frames_path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return None
    store = FrameStore(frames, index["offsets"])
    return CachedFrames(store, index["labels"], index["sources"], index["events"])


def _clear_leftovers(folder: Path) -> None:
    """Removes half-written files of killed writers; the lock says that nobody is writing."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def _build(
    folder: Path, name: str, count: int, build: Callable[[int], list[Sample]], progress: bool
) -> list[tuple[Path, Arrays]]:
    """Makes the portions that are missing. Returns each one's file and its arrays other than the frames."""
    portions = []
    with _bar(f"frames of {name}", count, progress) as advance:
        for low in range(0, count, PORTION):
            high = min(low + PORTION, count)
            path = folder / f"portion-{low:07d}.npz"
            arrays = _read_portion(path)
            if arrays is None:
                arrays = _portion(range(low, high), build, advance)
                write_archive(path, arrays)
            else:
                advance(high - low)
            arrays.pop("frames")
            portions.append((path, arrays))
    return portions


def _read_portion(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    try:
        return read_archive(path)
    except ArchiveError as error:
        warnings.warn(f"cache file {path} is damaged and will be built again: {error}", stacklevel=4)
        return None


def _portion(numbers: range, build: Callable[[int], list[Sample]], advance: Callable[[int], None]) -> Arrays:
    samples: list[Sample] = []
    sources: list[int] = []
    for number in numbers:
        made = build(number)
        samples += made
        sources += [number] * len(made)
        advance(1)
    frames = [sample.frames for sample in samples]
    return {
        "frames": np.concatenate(frames) if frames else np.zeros((0, 0, 0, 0), np.uint8),
        "lengths": np.array([len(one) for one in frames], dtype=np.int64),
        "labels": np.array([sample.label for sample in samples], dtype=np.int64),
        "events": np.array([sample.events for sample in samples], dtype=np.int64),
        "sources": np.array(sources, dtype=np.int64),
    }


def _assemble(folder: Path, portions: list[tuple[Path, Arrays]], settings: str) -> None:
    """Turns the portions into one file that can be mapped into memory, then into an index, then removes them."""
    together = {
        key: np.concatenate([arrays[key] for _, arrays in portions] or [np.zeros(0, np.int64)])
        for key in ("lengths", "labels", "events", "sources")
    }
    offsets = np.concatenate(([0], np.cumsum(together.pop("lengths"))))
    path = folder / "frames.npy"
    temporary = folder / f".frames.{uuid.uuid4().hex}.tmp"
    try:
        out = None
        position = 0
        for portion, _ in portions:
            frames = read_archive(portion)["frames"]
            if len(frames) == 0:
                continue
            if out is None:
                shape = (int(offsets[-1]), *frames.shape[1:])
                _reserve(temporary, shape)
                out = np.lib.format.open_memmap(temporary, "r+")
            out[position : position + len(frames)] = frames
            position += len(frames)
        if out is None:
            _reserve(temporary, (0, 2, 0, 0))
        else:
            out.flush()
            del out
        crc = _crc(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    facts = {"size": path.stat().st_size, "crc": crc, "settings_json": settings}
    write_archive(
        folder / "index.npz",
        {"offsets": offsets, **together, **{key: np.array(value) for key, value in facts.items()}},
    )
    for portion, _ in portions:
        portion.unlink()


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Makes the file at its full size, so that a full disk shows here and not as a crash while memory is written."""
    size = int(np.prod(shape))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB are needed", str(path))
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), file.tell(), size)
        else:
            file.truncate(file.tell() + size)


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _message(error: OSError, folder: Path) -> str:
    reason = (
        "no room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{type(error).__name__}: {error}"
    )
    return (
        f"{folder}: the cache of frames could not be written ({reason}). What is complete stays and is used next time. "
        f"Make room, or choose another directory with {ENVIRONMENT_VARIABLE} or --data.cache_dir."
    )


@contextlib.contextmanager
def _bar(text: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    from rich.progress import Progress

    with Progress(disable=not show) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)
