"""Arrays that are computed once and kept on disk.

A cache file is an ``.npz`` archive whose name carries a hash of what the arrays depend on. It appears under its final
name only when it is complete, so a reader never sees half a file and several processes may build the same one at the
same time: the builds are equal and the last one to finish wins. A file that is cut off or damaged is named in a warning
and built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .archive import ArchiveError, Arrays, read_archive, write_archive

ENVIRONMENT_VARIABLE = "STLLR_CACHE"
_SETTINGS = "settings_json"


def cache_root(directory: str | Path | None = None) -> Path:
    """Where cache files lie: ``directory``, else the environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``."""
    if directory is not None:
        return Path(directory).expanduser()
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(from_environment).expanduser() if from_environment else Path.home() / ".cache" / "stllr"


def cache_path(name: str, settings: Mapping[str, Any], directory: str | Path | None = None) -> Path:
    """Path of the cache file for these settings: ``<root>/<name>-<hash of the settings>.npz``."""
    digest = hashlib.blake2b(_dump(settings).encode(), digest_size=8).hexdigest()
    return cache_root(directory) / f"{name}-{digest}.npz"


def cached_arrays(
    name: str,
    settings: Mapping[str, Any],
    build: Callable[[], Arrays],
    directory: str | Path | None = None,
    check: Callable[[Arrays, str], object] | None = None,
) -> Arrays:
    """Returns the arrays from the cache, or builds them and writes the cache file.

    Args:
        name: Start of the file name.
        settings: Everything the arrays depend on (with a version of the code that builds them), as plain JSON values.
        build: Computes the arrays; must be deterministic.
        directory: Cache directory; default as in `cache_root`.
        check: Called with the loaded arrays and the file's path; raises ValueError when they do not fit together.

    Returns:
        The arrays by name. Where the cache cannot be written (read-only directory, full disk) they are returned all
        the same, with a warning.
    """
    path = cache_path(name, settings, directory)
    if path.exists():
        try:
            arrays = _read(path, settings)
            if check is not None:
                check(arrays, str(path))
            return arrays
        except (OSError, ValueError) as error:
            warnings.warn(f"cache file {path} is damaged and will be built again: {error}", stacklevel=2)
    arrays = build()
    try:
        write_archive(path, {**arrays, _SETTINGS: np.array(_dump(settings))})
    except OSError as error:
        warnings.warn(
            f"could not write the cache file {path} ({type(error).__name__}: {error}); the data will be computed again "
            f"next time. Choose another directory with {ENVIRONMENT_VARIABLE} or cache_dir.",
            stacklevel=2,
        )
    return arrays


def _read(path: Path, settings: Mapping[str, Any]) -> Arrays:
    arrays = read_archive(path)
    found = str(arrays.pop(_SETTINGS, None))
    if found != _dump(settings):
        raise ArchiveError(f"it was made with other settings ({found})")
    return arrays


def _dump(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
