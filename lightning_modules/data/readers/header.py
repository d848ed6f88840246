"""Text at the beginning of a recording."""

from __future__ import annotations

from pathlib import Path

from ..events import EventDataError


def skip_comments(data: bytes, mark: bytes) -> int:
    """Where the lines that begin with ``mark`` end."""
    position = 0
    while data[position : position + 1] == mark:
        end = data.find(b"\n", position)
        if end < 0:
            return len(data)
        position = end + 1
    return position


def expect_start(data: bytes, start: bytes, path: Path, what: str) -> None:
    """Refuses a file that begins otherwise.

    Raises:
        EventDataError: With the file's name and what it should have been.
    """
    if not data.startswith(start):
        found = "it is empty" if not data else f"it begins with {data[:16]!r}"
        raise EventDataError(f"{path}: not {what}: {found}, expected {start.decode()!r}")


def whole_records(size: int, record: int, path: Path) -> None:
    """Refuses a file whose events do not end with the file.

    Raises:
        EventDataError: With the file's name.
    """
    if size % record:
        raise EventDataError(f"{path}: cut off or damaged: {size} bytes of events are no multiple of {record}")
