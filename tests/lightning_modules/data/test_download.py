"""Downloads: mirrors, checksums, resuming, and what one is told when they fail. The server runs in this process."""

import errno
import gzip
import hashlib
import io
import multiprocessing
import os
import re
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lightning_modules.data import EventDataError
from lightning_modules.data import download as downloading
from lightning_modules.data.download import DownloadError, RemoteFile, data_root, fetch, manual_steps, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/page":
            return self.answer(200, b"<html>are you a robot?</html>", {"Content-Type": "text/html"})
        content = b"another file" if self.path == "/wrong" else CONTENT
        if asked and self.path != "/norange":
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if first >= len(content):
                return self.send_error(416)
            span = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            return self.answer(206, content[first:], span)
        return self.answer(200, content, {})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        breaks = self.path == "/stuck" or (self.path == "/breaks" and len(body) > 100_000)
        self.wfile.write(body[: 0 if self.path == "/stuck" else 100_000] if breaks else body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote(server, *paths, content=CONTENT, kind="md5", **options):
    checksum = f"{kind}:{hashlib.new(kind, content).hexdigest()}"
    urls = tuple(f"{server.url}/{path}" for path in paths) if server else ()
    return RemoteFile("set.bin", checksum, urls, page="https://example.org/set", **options)


def get(file, folder):
    return fetch(file, folder, progress=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_file_is_fetched_once(server, tmp_path, kind):
    file = remote(server, "good", kind=kind)
    for _ in range(2):
        assert get(file, tmp_path / "new" / "folder").read_bytes() == CONTENT
    assert server.requests == [("/good", None)] and names(tmp_path / "new" / "folder") == ["set.bin"]


def test_mirrors_are_tried_in_order(server, tmp_path):
    get(remote(server, "missing", "page", "wrong", "good", "never"), tmp_path)
    assert [path for path, _ in server.requests] == ["/missing", "/page", "/wrong", "/good"]


def test_partial_file_is_continued(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT[:1000])
    assert get(remote(server, "good"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/good", "bytes=1000-")] and names(tmp_path) == ["set.bin"]


def test_broken_connections_are_continued(server, tmp_path):
    assert get(remote(server, "breaks"), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_another_mirror_goes_on_where_one_stopped(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT[:1000])
    get(remote(server, "stuck", "good"), tmp_path)
    assert server.requests[-1] == ("/good", "bytes=1000-")


def test_server_that_cannot_resume_starts_again(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(b"x" * 1000)
    assert get(remote(server, "norange"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, CONTENT + b"more", b"x" * len(CONTENT)])
def test_spoiled_partial_file_is_replaced(server, tmp_path, left):
    (tmp_path / ".set.bin.part").write_bytes(left)
    assert get(remote(server, "good"), tmp_path).read_bytes() == CONTENT


def test_complete_partial_file_is_taken(server, tmp_path):
    """Killed between the last byte and the rename."""
    (tmp_path / ".set.bin.part").write_bytes(CONTENT)
    assert get(remote(server, "good"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/good", f"bytes={len(CONTENT)}-")]


def test_failure_names_every_mirror_and_the_manual_steps(server, tmp_path):
    file = remote(server, "missing", "page", "wrong", "stuck", steps="choose the second file")
    with pytest.raises(DownloadError) as caught:
        get(file, tmp_path)
    text = str(caught.value)
    for part in ("404", "web page", "another file", "connection ended after 0 of 300000", "https://example.org/set"):
        assert part in text
    assert "choose the second file" in text and str(tmp_path) in text and "--data.path" in text
    assert "set.bin" not in names(tmp_path)


def test_no_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise downloading.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(downloading.urllib.request, "urlopen", refuse)
    file = RemoteFile("set.bin", "md5:" + "0" * 32, ("https://example.org/set.bin",))
    with pytest.raises(DownloadError, match=r"(?s)no connection \(Name or service not known\).*--data.path"):
        get(file, tmp_path)


def test_source_without_urls_says_what_to_do(tmp_path):
    with pytest.raises(DownloadError, match=r"(?s)cannot be fetched by a program.*from https://example.org/set"):
        get(remote(None), tmp_path)


def test_file_put_there_by_hand_is_taken_without_network(tmp_path):
    (tmp_path / "set.bin").write_bytes(CONTENT)
    assert get(remote(None), tmp_path) == tmp_path / "set.bin"


def test_wrong_file_put_there_by_hand_is_named(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(EventDataError, match=r"set\.bin: cut off, damaged or another file.*md5.*Delete it"):
        get(remote(server, "good"), tmp_path)
    assert not server.requests and (tmp_path / "set.bin").exists()


def test_disk_that_is_too_small_is_noticed_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DownloadError, match=r"set\.bin: no room on the disk.*STLLR_DATA"):
        get(remote(server, "good"), tmp_path)


def test_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:5000])
            raise OSError(errno.ENOSPC, "No space left on device")

    real = downloading.Path.open
    monkeypatch.setattr(
        downloading.Path, "open", lambda self, mode="r": Full(self, mode) if mode in ("ab", "wb") else real(self, mode)
    )
    with pytest.raises(DownloadError, match=r"set\.bin: no room on the disk"):
        get(remote(server, "good"), tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert names(tmp_path) == [".set.bin.part"]
    get(remote(server, "good"), tmp_path)
    assert server.requests[-1] == ("/good", "bytes=5000-")


def test_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"file/set\.bin: .*while downloading"):
        get(remote(server, "good"), tmp_path / "file")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_processes_share_one_download(server, tmp_path):
    file = remote(server, "good")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=get, args=(file, tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(server.requests) == 1


@pytest.mark.parametrize("checksum", ["", "md5:12", "sha1:" + "0" * 40])
def test_checksum_must_be_one(checksum):
    with pytest.raises(ValueError, match=r"set\.bin: checksum"):
        RemoteFile("set.bin", checksum)


def test_steps_name_all_files(tmp_path):
    text = manual_steps([RemoteFile(f"{n}.zip", "md5:" + "0" * 32, page="https://e.org") for n in "ab"], tmp_path)
    assert "a.zip" in text and "b.zip" in text and "put them into" in text


def test_root_follows_the_environment(tmp_path, monkeypatch):
    assert data_root() == tmp_path / "cache" / "datasets"
    monkeypatch.setenv("STLLR_DATA", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere"


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path, members):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


MAKERS = {"set.zip": zip_of, "set.tar": tar_of, "set.tar.gz": tar_of}
MEMBERS = {"a/one.bin": CONTENT, "a/b/two.bin": b"two"}


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", MAKERS)
def test_archive_is_unpacked_once(tmp_path, name):
    archive = MAKERS[name](tmp_path / name, MEMBERS)
    assert content(unpack(archive, tmp_path / "set", progress=False)) == MEMBERS
    archive.unlink()
    assert unpack(archive, tmp_path / "set", progress=False) == tmp_path / "set"


def test_single_gz_becomes_a_file(tmp_path):
    (tmp_path / "set.h5.gz").write_bytes(gzip.compress(CONTENT))
    assert unpack(tmp_path / "set.h5.gz", tmp_path / "set.h5", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("name", [*MAKERS, "set.h5.gz"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_cut_archive_is_named_and_nothing_half_stays(tmp_path, name, keep):
    archive = tmp_path / name
    if name in MAKERS:
        MAKERS[name](archive, {"a/one.bin": CONTENT, "two": CONTENT})
    else:
        archive.write_bytes(gzip.compress(CONTENT))
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(EventDataError, match=rf"{re.escape(name)}: cut off or damaged"):
        unpack(archive, tmp_path / "out", progress=False)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_damaged_archive_is_named(tmp_path, name):
    archive = MAKERS[name](tmp_path / name, MEMBERS)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(bytes(data))
    with pytest.raises(EventDataError, match=re.escape(name)):
        unpack(archive, tmp_path / "out", progress=False)
    assert names(tmp_path) == [name]


def test_web_page_in_place_of_an_archive_is_named(tmp_path):
    (tmp_path / "set.zip").write_text("<html>")
    with pytest.raises(EventDataError, match=r"set\.zip: cut off or damaged, or no archive"):
        unpack(tmp_path / "set.zip", tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", MAKERS)
def test_members_cannot_leave_the_folder(tmp_path, name):
    archive = MAKERS[name](tmp_path / name, {"../escaped": b"x", "in": b"y"})
    (tmp_path / "deep").mkdir()
    unpack(archive, tmp_path / "deep" / "out", progress=False)
    assert not (tmp_path / "deep" / "escaped").exists() and (tmp_path / "deep" / "out" / "in").exists()


def test_killed_unpacking_starts_again(tmp_path):
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "half").write_bytes(b"h")
    archive = zip_of(tmp_path / "set.zip", MEMBERS)
    assert content(unpack(archive, tmp_path / "out", progress=False)) == MEMBERS


def test_full_disk_while_unpacking_is_named(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "set.zip", MEMBERS)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(DownloadError, match=r"out: no room on the disk while unpacking .*set\.zip"):
        unpack(archive, tmp_path / "out", progress=False)
    assert names(tmp_path) == ["set.zip"]


def test_progress_is_shown(server, tmp_path, capsys):
    fetch(remote(server, "good"), tmp_path)
    assert "set.bin" in capsys.readouterr().out


def test_killed_process_gives_the_lock_back(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    child = os.fork()
    if child == 0:
        downloading.locked(tmp_path / "lock").__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    with downloading.locked(tmp_path / "lock"):
        pass
