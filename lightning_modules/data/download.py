"""Fetching public data sets: mirrors, checksums, resuming, unpacking, and what to do by hand where that fails.

A file appears under its name only when it is complete and its checksum is right; until then it is ``.NAME.part``, which
the next try goes on with. An archive is unpacked beside its destination and moved there when all of it is out. So
whatever exists is whole, however a run before ended.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .cache import cache_root
from .events import EventDataError
from .lock import locked

ENVIRONMENT_VARIABLE = "STLLR_DATA"

TIMEOUT_S = 30.0
"""How long a silent server is waited for."""

ATTEMPTS = 4
"""How often a mirror is asked again, each time for the rest, after its connection broke."""

_CHUNK = 1 << 20
_AGENT = {"User-Agent": "Mozilla/5.0 (compatible; stllr-plugin)"}
_FULL = (errno.ENOSPC, errno.EDQUOT)

Advance = Callable[[int], None]


class DownloadError(RuntimeError):
    """A file that could not be fetched or unpacked; the message names it and says how to go on by hand."""


class _MirrorError(Exception):
    """This mirror does not give the file."""


class _BrokenError(Exception):
    """The connection ended early; what came so far is kept."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public data set and where it can be had.

    Attributes:
        name: File name under which it is kept.
        checksum: "md5:..." or "sha256:..." in hexadecimal digits.
        urls: Mirrors, in the order in which they are tried; none for a source that only a person can use.
        page: Web page where a person finds the file.
        steps: What a person has to know there, such as "sign in".
        size: Bytes, if known: to see beforehand whether the disk has room.
    """

    name: str
    checksum: str
    urls: tuple[str, ...] = ()
    page: str = ""
    steps: str = ""
    size: int | None = None

    def __post_init__(self) -> None:
        """Checks the checksum's form."""
        kind, _, digits = self.checksum.partition(":")
        if {"md5": 32, "sha256": 64}.get(kind) != len(digits):
            raise ValueError(f"{self.name}: checksum must be md5:<32 digits> or sha256:<64 digits>")


def data_root() -> Path:
    """Where downloaded data sets lie: the environment variable ``STLLR_DATA``, else ``datasets`` in the cache."""
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(from_environment).expanduser() if from_environment else cache_root() / "datasets"


def fetch(file: RemoteFile, folder: Path, progress: bool = True) -> Path:
    """Returns the complete, checked file in ``folder``; downloads it if it is not there.

    Several processes may call it at the same time: one downloads, the others wait.

    Args:
        file: What to fetch.
        folder: Where it is kept; made if it does not exist.
        progress: Show a progress bar.

    Raises:
        EventDataError: A file of that name is there, but is not the right one.
        DownloadError: It could not be had: no network, all mirrors failed, the disk is full. The message says what to
            do by hand.
    """
    path = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{file.name}.lock"):
            if path.exists():
                verify(path, file.checksum)
                return path
            _download(file, path, progress)
    except OSError as error:
        raise DownloadError(_disk_message(error, path, "downloading")) from error
    return path


def verify(path: Path, checksum: str) -> None:
    """Compares a file with its checksum.

    Raises:
        EventDataError: It is another one; the message names the file.
    """
    found = _checksum(path, checksum)
    if found != checksum:
        raise EventDataError(
            f"{path}: cut off, damaged or another file: its checksum is {found}, expected {checksum} "
            f"({path.stat().st_size} bytes). Delete it to have it fetched again."
        )


def manual_steps(files: Sequence[RemoteFile], folder: Path) -> str:
    """What a person does to get the files without this program."""
    lines = []
    for file in files:
        where = file.page or (file.urls[0] if file.urls else "")
        lines.append(f"  - download {file.name}" + (f" from {where}" if where else ""))
        if file.steps:
            lines.append(f"    ({file.steps})")
    names = "it" if len(files) == 1 else "them"
    return "\n".join(
        [
            "By hand:",
            *lines,
            f"  - put {names} into {folder} and start again; or have {names} (or the unpacked folder) elsewhere and",
            "    pass that folder: --data.path FOLDER",
        ]
    )


def unpack(archive: Path, destination: Path, progress: bool = True) -> Path:
    """Unpacks a .zip, .tar, .tar.gz, .tgz or .gz file; ``destination`` exists afterwards only if all of it is out.

    Args:
        archive: The file.
        destination: The folder to be made (for a plain .gz: the file). If it exists already, nothing is done.
        progress: Show a progress bar.

    Raises:
        EventDataError: The archive is cut off or damaged, or is none of these.
        DownloadError: The disk is full or cannot be written.
    """
    try:
        with locked(destination.parent / f".{destination.name}.lock"):
            if destination.exists():
                return destination
            working = destination.with_name(f".{destination.name}.unpacking")
            _remove(working)  # of a run that was killed
            try:
                with _bar(f"unpacking {archive.name}", None, progress) as (advance, total):
                    _extract(archive, working, advance, total)
                os.replace(working, destination)
            finally:
                _remove(working)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise EventDataError(f"{archive}: cut off or damaged, or no archive ({error})") from error
    except OSError as error:
        raise DownloadError(_disk_message(error, destination, f"unpacking {archive}")) from error
    return destination


def _download(file: RemoteFile, path: Path, progress: bool) -> None:
    partial = path.with_name(f".{path.name}.part")
    failures = []
    for url in file.urls:
        try:
            _from_mirror(url, file, partial, progress)
        except _MirrorError as error:
            failures.append(f"  {url}: {error}")
            continue
        os.replace(partial, path)
        return
    tried = "\n".join(failures) if failures else "  this source cannot be fetched by a program"
    raise DownloadError(f"{file.name} could not be fetched:\n{tried}\n{manual_steps([file], path.parent)}")


def _from_mirror(url: str, file: RemoteFile, partial: Path, progress: bool) -> None:
    resumed = partial.exists()
    for attempt in range(ATTEMPTS):
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _transfer(url, file, partial, progress)
        except _BrokenError as error:
            grown = partial.exists() and partial.stat().st_size > before
            if attempt + 1 == ATTEMPTS or not grown:
                raise _MirrorError(f"{error}; what came is kept, and the next try goes on from there") from error
            continue
        found = _checksum(partial, file.checksum)
        if found == file.checksum:
            return
        partial.unlink()
        if not resumed:  # what an earlier run left may have been the fault: then once more from the beginning
            raise _MirrorError(f"sent another file (checksum {found}, expected {file.checksum})")
        resumed = False
    raise _MirrorError("sent another file each time")


def _transfer(url: str, file: RemoteFile, partial: Path, progress: bool) -> None:
    """Appends to the partial file what it lacks."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {**_AGENT, **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing beyond what is there: the checksum decides
            return
        raise _MirrorError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _MirrorError(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(f"no connection ({type(error).__name__}: {error})") from error
    with response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise _MirrorError("the server sent a web page instead of the file (a check for robots, or the file moved)")
        rest = response.headers.get("Content-Length")
        expected = None if rest is None else int(rest)
        if have and not (
            response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        ):
            have = 0  # it does not resume
        _check_room(partial, expected if expected is not None else (file.size or 0) - have)
        total = have + expected if expected is not None else file.size
        received = 0
        with partial.open("ab" if have else "wb") as out, _bar(file.name, total, progress) as (advance, _):
            advance(have)
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _BrokenError(f"the connection broke ({type(error).__name__}: {error})") from error
                if not chunk:
                    break
                out.write(chunk)
                received += len(chunk)
                advance(len(chunk))
    if expected is not None and received < expected:
        raise _BrokenError(f"the connection ended after {have + received} of {have + expected} bytes")


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


def _extract(archive: Path, working: Path, advance: Advance, total: Callable[[int], None]) -> None:
    with archive.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            total(sum(member.file_size for member in members))
            _check_room(working, sum(member.file_size for member in members))
            working.mkdir()
            for member in members:
                zipped.extract(member, working)  # leaves out "..", drives and leading slashes
                advance(member.file_size)
        return
    if not start:
        raise EOFError("it is empty")
    with gzip.open(archive) if start[:2] == b"\x1f\x8b" else archive.open("rb") as stream:
        if archive.name.endswith(".gz") and not archive.name.endswith(".tar.gz"):
            with working.open("xb") as out:
                _copy(stream, out, advance)
            return
        with tarfile.open(fileobj=stream, mode="r:") as tarred:
            working.mkdir()
            for entry in tarred:
                _extract_from_tar(tarred, entry, working, advance)
        while stream.read(_CHUNK):  # to the end, where gzip has its checksum
            pass


def _extract_from_tar(tarred: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path, advance: Advance) -> None:
    if not (entry.isfile() or entry.isdir()) or _leaves(entry.name):
        return
    target = folder / entry.name
    (target if entry.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
    source = tarred.extractfile(entry)
    if source is None:
        return
    with source, target.open("wb") as out:
        _copy(source, out, advance)
    if target.stat().st_size != entry.size:
        raise tarfile.ReadError(f"{entry.name} is cut off")


def _leaves(name: str) -> bool:
    """Whether a member of an archive would be written outside of the folder it is unpacked into."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def _copy(source: Any, out: IO[bytes], advance: Advance) -> None:
    while chunk := source.read(_CHUNK):
        out.write(chunk)
        advance(len(chunk))


def _checksum(path: Path, like: str) -> str:
    kind = like.partition(":")[0]
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def _disk_message(error: OSError, path: Path, doing: str) -> str:
    if error.errno in _FULL:
        return (
            f"{path}: no room on the disk while {doing} ({error.strerror}). Free some and start again (a download goes "
            f"on where it stopped), or set STLLR_DATA to a folder on a larger disk."
        )
    return f"{path}: {type(error).__name__} while {doing}: {error}. Set STLLR_DATA to a folder that can be written."


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@contextlib.contextmanager
def _bar(text: str, total: int | None, show: bool) -> Iterator[tuple[Advance, Callable[[int], None]]]:
    """A progress bar in bytes: functions that advance it and that set its total."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), disable=not show) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count), lambda count: bar.update(task, total=count)
