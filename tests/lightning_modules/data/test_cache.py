import multiprocessing
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.data import cache_root, cached_arrays
from lightning_modules.data.archive import write_archive
from lightning_modules.data.cache import cache_path

SETTINGS = {"version": 1, "seed": 3}


def build():
    return {"numbers": np.arange(5000), "name": np.array([1, 2], dtype=np.uint8)}


def refuse():
    raise AssertionError("built although the cache holds it")


needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork processes"
)


def in_processes(*functions):
    """Runs the functions at the same time, each in a process of its own, and returns the exit codes."""
    processes = [multiprocessing.get_context("fork").Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_second_call_reads_the_file(tmp_path):
    first = cached_arrays("thing", SETTINGS, build, tmp_path)
    second = cached_arrays("thing", SETTINGS, refuse, tmp_path)
    assert first.keys() == second.keys()
    np.testing.assert_array_equal(first["numbers"], second["numbers"])
    assert files(tmp_path) == [cache_path("thing", SETTINGS, tmp_path).name]


def test_other_settings_other_file(tmp_path):
    cached_arrays("thing", SETTINGS, build, tmp_path)
    cached_arrays("thing", {**SETTINGS, "seed": 4}, build, tmp_path)
    assert len(files(tmp_path)) == 2


def test_order_of_settings_does_not_matter(tmp_path):
    assert cache_path("thing", {"a": 1, "b": 2}, tmp_path) == cache_path("thing", {"b": 2, "a": 1}, tmp_path)


def test_root_is_argument_then_environment_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STLLR_CACHE", str(tmp_path / "a"))
    assert cache_root(tmp_path / "b") == tmp_path / "b"
    assert cache_root() == tmp_path / "a"
    monkeypatch.delenv("STLLR_CACHE")
    assert cache_root() == Path.home() / ".cache" / "stllr"


class Interrupted(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def test_crash_while_writing_leaves_nothing(tmp_path, monkeypatch):
    real = np.savez_compressed

    def half(file, **arrays):
        real(file, **arrays)
        file.truncate(file.tell() // 2)
        raise Interrupted

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(Interrupted):
        cached_arrays("thing", SETTINGS, build, tmp_path)
    assert files(tmp_path) == []
    monkeypatch.undo()
    cached_arrays("thing", SETTINGS, build, tmp_path)
    cached_arrays("thing", SETTINGS, refuse, tmp_path)


@needs_fork
def test_killed_writer_leaves_no_cache_file(tmp_path):
    """A process that is killed in mid-write cannot clean up; what it leaves is no cache file and goes when old."""

    def write_half_and_die():
        def die(file, **arrays):
            file.write(b"half")
            file.flush()
            os._exit(9)

        np.savez_compressed = die
        cached_arrays("thing", SETTINGS, build, tmp_path)

    (status,) = in_processes(write_half_and_die)
    assert status == 9
    (leftover,) = tmp_path.iterdir()
    assert leftover.suffix == ".tmp"
    cached_arrays("thing", SETTINGS, build, tmp_path)
    assert leftover.exists(), "it might belong to a writer at work"
    os.utime(leftover, (0, time.time() - 7200))
    write_archive(cache_path("thing", SETTINGS, tmp_path), build())
    assert files(tmp_path) == [cache_path("thing", SETTINGS, tmp_path).name]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not an archive")


def bare_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def other_settings(path):
    np.savez_compressed(path, settings_json=np.array("{}"), numbers=np.arange(3))


def no_settings(path):
    np.savez_compressed(path, numbers=np.arange(3))


@pytest.mark.parametrize("damage", [cut, flip_a_byte, empty, text, bare_array, other_settings, no_settings])
def test_damaged_file_is_named_and_built_again(tmp_path, damage):
    cached_arrays("thing", SETTINGS, build, tmp_path)
    path = cache_path("thing", SETTINGS, tmp_path)
    damage(path)
    with pytest.warns(UserWarning, match="damaged and will be built again") as record:
        arrays = cached_arrays("thing", SETTINGS, build, tmp_path)
    assert str(path) in str(record[0].message)
    np.testing.assert_array_equal(arrays["numbers"], np.arange(5000))
    cached_arrays("thing", SETTINGS, refuse, tmp_path)


def test_arrays_that_do_not_fit_together_are_built_again(tmp_path):
    def check(arrays, name):
        if len(arrays["numbers"]) != 5000:
            raise ValueError(f"{name}: wrong length")

    cached_arrays("thing", SETTINGS, lambda: {"numbers": np.arange(3)}, tmp_path)
    with pytest.warns(UserWarning, match="wrong length"):
        arrays = cached_arrays("thing", SETTINGS, build, tmp_path, check)
    assert len(arrays["numbers"]) == 5000


def test_directory_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="STLLR_CACHE"):
        arrays = cached_arrays("thing", SETTINGS, build, tmp_path / "file")
    assert len(arrays["numbers"]) == 5000


@needs_fork
def test_several_processes_at_once(tmp_path):
    def slow():
        time.sleep(0.2)
        return {"numbers": np.arange(200_000)}

    def use():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cached_arrays("thing", SETTINGS, slow, tmp_path)["numbers"].sum() == sum(range(200_000))

    assert in_processes(use, use, use) == [0, 0, 0]
    assert files(tmp_path) == [cache_path("thing", SETTINGS, tmp_path).name]


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
def test_a_shared_cache_can_be_read_by_others(tmp_path):
    cached_arrays("thing", SETTINGS, build, tmp_path)
    (tmp_path / "plain").touch()
    assert cache_path("thing", SETTINGS, tmp_path).stat().st_mode == (tmp_path / "plain").stat().st_mode
