"""Checksums of files: of their content, read once, and again where anything about a file changed."""

import os

import pytest

from lightning_modules.data import digests
from lightning_modules.data.digests import content_digest


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_S", 0.0)
    paths = [tmp_path / "data" / name for name in ("a", "b")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return paths


@pytest.fixture
def read(monkeypatch):
    """The files that were read."""
    seen, real = [], digests._digest
    monkeypatch.setattr(digests, "_digest", lambda path: seen.append(path) or real(path))
    return seen


def test_files_are_read_once(files, read, tmp_path):
    first = content_digest(files, tmp_path / "cache")
    assert content_digest(files, tmp_path / "cache") == first
    assert read == files and len(set(first)) == 2


def test_changed_file_of_the_same_size_and_date_is_read_again(files, read, tmp_path):
    first, dates = content_digest(files, tmp_path / "cache"), files[0].stat()
    files[0].write_bytes(b"c" * 100)
    os.utime(files[0], ns=(dates.st_atime_ns, dates.st_mtime_ns))
    second = content_digest(files, tmp_path / "cache")
    assert second[0] != first[0] and second[1] == first[1]
    assert read == [*files, files[0]]


def test_copies_have_the_same_checksum(files, tmp_path):
    copy = tmp_path / "elsewhere"
    copy.write_bytes(files[0].read_bytes())
    assert content_digest([copy], tmp_path / "cache") == content_digest(files[:1], tmp_path / "cache")


def test_a_file_that_has_just_changed_is_not_remembered(files, read, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_S", 60.0)
    for _ in range(2):
        content_digest(files, tmp_path / "cache")
    assert read == files * 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": [[1], 2, 3]}'])
def test_damaged_memory_is_made_anew(files, tmp_path, content):
    right = content_digest(files, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / ".digests").iterdir()
    kept.write_text(content)
    assert content_digest(files, tmp_path / "cache") == right


def test_nothing_can_be_kept(files, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(content_digest(files, tmp_path / "cache")) == 2
    assert content_digest([], tmp_path / "cache") == []
