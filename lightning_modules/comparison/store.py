"""Finished results in a folder: each a JSON file, written at once or not at all, and found again by its key."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

IDENTITY = "settings.json"


class OtherConfigurationError(ValueError):
    """The folder holds results of something else."""


def key_of(settings: Mapping[str, Any]) -> str:
    """A short key of plain data: equal settings have equal keys, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Store:
    """Results of one configuration in one folder.

    ``folder/settings.json`` says whose results they are. A result lies in ``folder/results/NAME-KEY.json``, with its
    whole key inside; work that is not finished, such as checkpoints, in ``folder/unfinished/NAME-KEY``.

    Args:
        folder: Where the results are; made with the first of them.
        identity: The configuration that all results share, as plain data.

    Raises:
        OtherConfigurationError: If the folder has results of another configuration, or files that are not ours.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.identity = identity = json.loads(json.dumps(identity, default=str))
        known = _read(folder / IDENTITY)
        if known is None:
            if folder.is_dir() and any(folder.iterdir()):
                raise OtherConfigurationError(
                    f"The folder {folder} is not empty, and what is in it was not written by this command.\n"
                    "Name another one with --output."
                )
        elif known != identity:
            lines = "\n".join(f"  {line}" for line in differences(known, identity))
            raise OtherConfigurationError(
                f"The folder {folder} has results of another configuration:\n{lines}\n"
                "Name another folder with --output, or delete this one if you do not need it."
            )

    def get(self, name: str, key: str) -> dict[str, Any] | None:
        """The result, or None where there is none with this key."""
        found = _read(self._path(name, key))
        if found is None or found.get("key") != key:
            return None
        result: dict[str, Any] = found["result"]
        return result

    def put(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result, and drop what its unfinished work left behind."""
        self._claim()
        text = json.dumps({"name": name, "key": key, "result": result}, indent=1, default=str)
        write_atomically(self._path(name, key), text)
        shutil.rmtree(self.unfinished(name, key), ignore_errors=True)

    def unfinished(self, name: str, key: str) -> Path:
        """Folder for the work that leads to a result; the caller makes it."""
        self._claim()
        return self.folder / "unfinished" / f"{_slug(name)}-{key}"

    def _claim(self) -> None:
        if not (self.folder / IDENTITY).is_file():
            write_atomically(self.folder / IDENTITY, json.dumps(self.identity, indent=1))

    def _path(self, name: str, key: str) -> Path:
        return self.results / f"{_slug(name)}-{key}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that, whenever the process dies, the old content is there or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 6) -> list[str]:
    """Lines such as "trainer.max_epochs: 10 there, 2 here"."""
    first, second = dict(_flatten(there)), dict(_flatten(here))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    lines = [f"{name}: {first.get(name, 'not set')} there, {second.get(name, 'not set')} here" for name in names]
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        path = f"{prefix}{name}".replace("init_args.", "")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]+", "_", name)[:80]
