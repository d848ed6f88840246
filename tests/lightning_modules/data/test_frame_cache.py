"""The cache of frames: complete or not there, resumed after a kill, shared by processes, rebuilt when damaged."""

import errno
import multiprocessing
import os
import time
import warnings

import numpy as np
import pytest

from lightning_modules.data import Binning, EventDataError, frame_cache
from lightning_modules.data.frame_cache import CacheError, Sample, cached_frames
from lightning_modules.data.frames import bin_events, count_events

SETTINGS = {"version": 1}
COUNT = 23

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork processes"
)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(frame_cache, "PORTION", 5)


def build(number):
    """Recording n has n % 3 samples of n % 4 + 1 steps."""
    random = np.random.default_rng(number)
    shape = (number % 4 + 1, 2, 3, 5)
    return [
        Sample(random.integers(0, 256, shape).astype(np.uint8), number % 10, number * 100 + part)
        for part in range(number % 3)
    ]


def refuse(number):
    raise AssertionError("built although the cache holds it")


def make(directory, function=build, settings=SETTINGS, count=COUNT):
    return cached_frames("thing", settings, count, function, directory, progress=False)


def assert_right(cached, count=COUNT):
    wanted = [(number, sample) for number in range(count) for sample in build(number)]
    assert len(cached.store) == len(cached.labels) == len(wanted)
    for i, (number, sample) in enumerate(wanted):
        np.testing.assert_array_equal(cached.store[i], sample.frames)
        assert (cached.sources[i], cached.labels[i], cached.events[i]) == (number, sample.label, sample.events)


def folder_of(directory):
    (folder,) = directory.iterdir()
    return folder


def names(directory):
    return sorted(path.name for path in folder_of(directory).iterdir())


def test_built_once_and_packed(tmp_path):
    assert_right(make(tmp_path))
    again = make(tmp_path, refuse)
    assert_right(again)
    assert isinstance(again.store.frames, np.memmap) and again.store.frames.dtype == np.uint8
    assert names(tmp_path) == [".lock", "frames.npy", "index.npz"]


def test_frames_can_be_changed_in_memory_without_changing_the_file(tmp_path):
    make(tmp_path).store.frames[:] = 7
    assert_right(make(tmp_path, refuse))


def test_other_settings_other_cache(tmp_path):
    make(tmp_path)
    make(tmp_path, settings={"version": 2})
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_to_cache(tmp_path):
    assert len(make(tmp_path, count=0).store) == 0


def test_failing_recording_leaves_no_cache_and_is_where_the_next_try_goes_on(tmp_path):
    def fail(number):
        if number == 12:
            raise EventDataError("file12: cut off")
        return build(number)

    with pytest.raises(EventDataError, match="file12"):
        make(tmp_path, fail)
    assert names(tmp_path) == [".lock", "portion-0000000.npz", "portion-0000005.npz"]
    built = []

    def note(number):
        built.append(number)
        return build(number)

    assert_right(make(tmp_path, note))
    assert built == list(range(10, COUNT))


@needs_fork
@pytest.mark.parametrize("where", ["write_archive", "_assemble", "_crc"])
def test_killed_process_is_resumed(tmp_path, where):
    def work_and_die():
        real, calls = getattr(frame_cache, where), []

        def die(*args):
            calls.append(args)
            if where != "write_archive" or len(calls) == 3:
                os._exit(9)
            return real(*args)

        setattr(frame_cache, where, die)
        make(tmp_path)

    process = multiprocessing.get_context("fork").Process(target=work_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9 and "index.npz" not in names(tmp_path)
    assert_right(make(tmp_path, build if where == "write_archive" else refuse))
    assert names(tmp_path) == [".lock", "frames.npy", "index.npz"]


@needs_fork
def test_processes_build_it_once(tmp_path):
    log = tmp_path / "log"

    def slow(number):
        with log.open("a") as file:
            file.write(f"{number}\n")
        time.sleep(0.005)
        return build(number)

    def use():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_right(make(tmp_path / "cache", slow))

    workers = [multiprocessing.get_context("fork").Process(target=use) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(log.read_text().split()) == COUNT


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def gone(path):
    path.unlink()


def text(path):
    path.write_text("something else")


@pytest.mark.parametrize("damage", [cut, gone, text])
@pytest.mark.parametrize("name", ["frames.npy", "index.npz"])
def test_damaged_cache_is_named_and_built_again(tmp_path, name, damage):
    make(tmp_path)
    damage(folder_of(tmp_path) / name)
    if (name, damage) == ("index.npz", gone):
        assert_right(make(tmp_path))  # as after a kill
        return
    with pytest.warns(UserWarning, match="damaged and will be built again") as record:
        assert_right(make(tmp_path))
    assert str(folder_of(tmp_path)) in str(record[0].message)


def test_damaged_portion_is_named_and_built_again(tmp_path):
    def stop(number):
        if number == 20:
            raise KeyboardInterrupt
        return build(number)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, stop)
    cut(folder_of(tmp_path) / "portion-0000005.npz")
    with pytest.warns(UserWarning, match="portion-0000005"):
        assert_right(make(tmp_path))


@pytest.mark.parametrize("where", ["write_archive", "_reserve"])
def test_full_disk_says_what_to_do_and_keeps_what_is_complete(tmp_path, monkeypatch, where):
    real, calls = getattr(frame_cache, where), []

    def full(*args):
        calls.append(args)
        if where == "_reserve" or len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(frame_cache, where, full)
    with pytest.raises(CacheError, match=r"thing-.*no room on the disk.*STLLR_CACHE.*--data.cache_dir"):
        make(tmp_path)
    assert not any(name.endswith(".tmp") or name == "index.npz" for name in names(tmp_path))
    monkeypatch.setattr(frame_cache, where, real)
    assert_right(make(tmp_path, build if where == "write_archive" else refuse))


def test_disk_without_room_for_the_whole_is_noticed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(CacheError, match="no room on the disk"):
        make(tmp_path)


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"file/thing-.*could not be written"):
        make(tmp_path / "file")


def test_size_scales_the_sensor(random_recordings):
    packed = random_recordings(3)
    store = bin_events(packed, Binning(2, size=(10, 20)), 300_000)
    assert store.frames.shape[1:] == (2, 10, 20)
    events = packed.recording(1)
    frames = np.zeros((2, 2, 10, 20))
    for x, y, t, p in events:
        frames[t // 150_000, int(p), y * 10 // 34, x * 20 // 34] += 1
    np.testing.assert_array_equal(store[1], frames)


@pytest.mark.parametrize(
    "binning",
    [Binning(4), Binning(None, 20_000), Binning(3, 20_000), Binning(4, own_duration=True), Binning(4, size=(5, 5))],
)
def test_one_by_one_is_as_all_together(random_recordings, binning):
    packed = random_recordings(70)
    store = bin_events(packed, binning, 300_000)
    for i in range(len(packed)):
        np.testing.assert_array_equal(count_events(packed.recording(i), binning, (34, 34), 300_000), store[i])


def test_own_duration_divides_what_was_recorded(random_recordings):
    packed = random_recordings(1, duration_us=1000, events=40)
    events = packed.recording(0)
    events["t"] += 5_000
    frames = count_events(events, Binning(4, own_duration=True), (34, 34), 300_000)
    assert frames.sum() == len(events) and frames[0].any() and frames[3].any()
    one = events[:1]
    assert count_events(one, Binning(4, own_duration=True), (34, 34), 300_000).sum(axis=(1, 2, 3)).tolist() == [
        1,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "options",
    [{"size": (0, 3)}, {"size": (3,)}, {"size": (3, 3), "downsample": 2}, {"bin_us": 5, "own_duration": True}],
)
def test_contradictions_are_refused(options):
    with pytest.raises(ValueError):
        Binning(4, **options)
