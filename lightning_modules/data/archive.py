"""Reading and writing ``.npz`` archives so that a damaged one is noticed and a half-written one never exists."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

_STALE_AFTER_S = 3600.0


class ArchiveError(ValueError):
    """An ``.npz`` archive that cannot be read to its end."""


def read_archive(path: Path) -> Arrays:
    """Reads all arrays; zip archives carry a checksum for each, which is compared.

    Raises:
        OSError: The file cannot be opened.
        ArchiveError: It is no ``.npz`` archive, or is cut off or damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ArchiveError("not an .npz archive")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # a damaged archive can fail anywhere: in zip, in zlib, in a header, in a shape
            raise ArchiveError(f"the archive is cut off or damaged ({type(error).__name__}: {error})") from error


def write_archive(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a compressed archive that is either complete under ``path`` or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    members: dict[str, Any] = dict(arrays)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez_compressed(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files of writers that were killed; young ones may belong to a writer at work."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
                leftover.unlink()
