"""Arrays of an ``.npz`` archive, read row by row: only the rows that are asked for come from the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.cache import cache_root
from lightning_modules.data.events import EventDataError
from lightning_modules.data.lock import locked

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, struct.error)


class NpzArray:
    """One array of an archive, mapped into memory by the process that reads it.

    An array that the archive holds compressed is unpacked once, into the cache.

    Args:
        path: The archive.
        name: The array's name.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.

    Raises:
        EventDataError: It is no archive, is cut off or damaged, or has no such array. The message names the file.
    """

    def __init__(self, path: Path, name: str, cache_dir: str | Path | None = None) -> None:
        self.path = path
        self.name = name
        self._map: npt.NDArray[Any] | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                names = [entry.removesuffix(".npy") for entry in archive.namelist()]
                if name not in names:
                    raise EventDataError(f"{path}: the array {name} is missing; found {sorted(names)[:10]}")
                member = archive.getinfo(f"{name}.npy")
                if member.compress_type == zipfile.ZIP_STORED:
                    self._file, self._offset = path, _data_offset(path, member)
                else:
                    self._file, self._offset = _unpacked(path, archive, member, cache_dir), 0
            self.shape = self._open().shape
        except _BROKEN as error:
            if isinstance(error, EventDataError):
                raise
            raise EventDataError(f"{path}: no .npz archive, or cut off or damaged ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the map."""
        return {**self.__dict__, "_map": None}

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Rows, as numpy indexes them."""
        return np.asarray(self._open()[index])

    def _open(self) -> npt.NDArray[Any]:
        if self._map is None:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_column, dtype = read(file)
                start = file.tell()
            order = "F" if by_column else "C"
            self._map = np.memmap(self._file, dtype, "r", start, shape, order)  # type: ignore[call-overload]
        return self._map


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header, whose length the archive's table does not tell."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        *_, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return int(member.header_offset + _LOCAL_HEADER.size + name + extra)


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, cache_dir: str | Path | None) -> Path:
    identity = f"{path.resolve()} {path.stat().st_size} {member.CRC}"
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    target = cache_root(cache_dir) / f"{path.stem}-{Path(member.filename).stem}-{digest}.npy"
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            working = target.with_name(f".{target.name}.unpacking")
            with archive.open(member) as source, working.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            os.replace(working, target)
    return target
