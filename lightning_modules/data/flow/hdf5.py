"""HDF5 files that are read piece by piece, from any number of processes, with messages that name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_modules.data.events import EventDataError
from lightning_modules.data.spike_files import import_h5py

_CACHE = 16 << 20
"""Bytes of unpacked pieces that each array keeps: a search looks at the same pieces again and again."""

_FILTERS = {32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32015: "Zstandard", 32026: "Blosc2"}


class HDF5File:
    """An HDF5 file for reading. Each process opens it for itself when it first reads; pickling it is cheap.

    Args:
        path: The file.
        what: What messages call its expected contents.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = Path(path).expanduser()
        self.what = what
        self._file: Any = None
        self._process = 0
        self._arrays: dict[str, Any] = {}
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file (expected {what}, HDF5)")

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return {**self.__dict__, "_file": None, "_process": 0, "_arrays": {}}

    def __contains__(self, name: str) -> bool:
        """Whether there is a group or data set of that name."""
        with self.reading():
            return name in self._handle()

    def __getitem__(self, name: str) -> Any:
        """A group or data set.

        Raises:
            EventDataError: It is missing; the message names the file and what it has instead.
        """
        with self.reading():
            file = self._handle()
            if name not in file:
                raise EventDataError(f"{self.path}: no {self.what}: {name} is missing; found {_entries(file, name)}")
            return file[name]

    def data(self, name: str) -> Any:
        """A data set that stays open, after a check that its compression can be read.

        Raises:
            EventDataError: It is missing, or is a group.
            ImportError: The package that reads its compression is not installed.
        """
        with self.reading():
            self._handle()
        if name in self._arrays:
            return self._arrays[name]
        found = self[name]
        with self.reading():
            if not hasattr(found, "dtype"):
                raise EventDataError(f"{self.path}: no {self.what}: {name} must be an array, found a group")
            self._check_filters(found)
        self._arrays[name] = found
        return found

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns the errors of a damaged file into an `EventDataError` with its name."""
        try:
            yield
        except (OSError, RuntimeError, KeyError) as error:  # a damaged file can fail anywhere
            raise EventDataError(
                f"{self.path}: no HDF5 file, or cut off or damaged ({error}); expected {self.what}"
            ) from error

    def _handle(self) -> Any:
        if self._file is None or self._process != os.getpid():  # handles do not survive a fork
            h5py = import_h5py()
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401  (registers its filters)
            self._arrays = {}
            self._file, self._process = h5py.File(self.path, "r", rdcc_nbytes=_CACHE), os.getpid()
        return self._file

    def _check_filters(self, data: Any) -> None:
        h5z = import_h5py().h5z
        properties = data.id.get_create_plist()
        for i in range(properties.get_nfilters()):
            code, _, _, title = properties.get_filter(i)
            if not h5z.filter_avail(code):
                name = _FILTERS.get(code, title.decode(errors="replace") or f"filter {code}")
                raise ImportError(
                    f"{self.path}: {data.name} is compressed with {name}, which h5py alone cannot read: "
                    'pip install "stllr-plugin[data]" (or hdf5plugin)'
                )


def _entries(file: Any, name: str) -> list[str]:
    """What lies where ``name`` was expected."""
    parent = name.rpartition("/")[0]
    while parent and parent not in file:
        parent = parent.rpartition("/")[0]
    group = file[parent] if parent else file
    prefix = f"{parent}/" if parent else ""
    return [prefix + entry for entry in sorted(group)[:10]] if hasattr(group, "keys") else [parent]
