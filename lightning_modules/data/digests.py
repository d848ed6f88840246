"""Checksums of files, so that a cache notices when a recording is replaced, whatever its size or date.

A file is read for its checksum once. The checksum is kept in the cache directory with what the file system says of the
file (size, times, number); only a file of which it says something else is read again. The time of the last change of
the entry itself ("ctime") is among them: programs that copy a file with its date cannot set that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from .cache import cache_root

_SETTLED_S = 2.0
"""A file that changed less than this ago may change again within one tick of the file system's clock."""


def content_digest(paths: Sequence[Path], cache_dir: str | Path | None = None) -> list[str]:
    """A checksum of the content of each file.

    Args:
        paths: The files.
        cache_dir: Cache directory; default as in `lightning_modules.data.cache.cache_root`.

    Raises:
        OSError: A file cannot be read.
    """
    if not paths:
        return []
    whole = [path.absolute() for path in paths]
    folder = Path(os.path.commonpath([path.parent for path in whole]))
    kept_at = cache_root(cache_dir) / ".digests" / f"{_hash(str(folder).encode())}.json"
    known, fresh = _load(kept_at), {}
    digests, now = [], time.time()
    for path in whole:
        name, state = path.relative_to(folder).as_posix(), _state(path)
        state_then, digest = known.get(name, (None, ""))
        if state_then != state:
            digest = _digest(path)
            if max(state[1], state[2]) < (now - _SETTLED_S) * 1e9:
                fresh[name] = (state, digest)
        digests.append(digest)
    if fresh:
        _save(kept_at, {**known, **fresh})
    return digests


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _load(path: Path) -> dict[str, tuple[list[int], str]]:
    """What is kept; nothing where it is damaged, since all of it can be had again."""
    try:
        return {str(name): (list(state), str(digest)) for name, (state, digest) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(path: Path, entries: dict[str, tuple[list[int], str]]) -> None:
    """Several processes may write; the last one wins. Where nothing can be written the files are read next time."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
