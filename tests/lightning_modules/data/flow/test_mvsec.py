"""MVSEC: both layouts of a recording give the same windows, only what a window needs is read, bad files are named."""

import importlib.util
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.data import DownloadError, EventDataError
from lightning_modules.data.flow.mvsec import MVSECDataModule
from lightning_modules.data.flow.mvsec_files import find_mvsec
from tests.lightning_modules.data.flow.flow_files import T0, scene, walked, write_original, write_single

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

ALL = {"outdoor_day1": (None, None), "outdoor_day2": (None, None)}


@pytest.fixture(scope="module")
def made():
    return scene()


@pytest.fixture(scope="module")
def files(made, tmp_path_factory):
    """The same recording three times: the original pair, with an archive for its flow, and all in one file."""
    folder = tmp_path_factory.mktemp("mvsec")
    for name in ("indoor_flying1", "outdoor_day2"):
        write_original(folder / "original" / name, name, made)
        write_original(folder / "archive", name, made, truth="npz")
        write_single(folder / "single", name, made)
    return folder


def module(path, **options):
    settings = {"train": ["outdoor_day2"], "test": ["indoor_flying1"], "ranges": ALL, "middle": None, "crop": None}
    data = MVSECDataModule(path, **{**settings, **options})
    data.setup()
    return data


def whole(data, part="test"):
    """All batches of a part, one lane, in one."""
    batches = list(data.dataset(part)[i] for i in range(len(data.dataset(part))))
    return {
        name: torch.cat([getattr(batch, name) for batch in batches], dim=1)
        for name in ("counts", "present", "flow", "valid")
    } | {"frames": torch.cat([batch.frames[:, :-1] for batch in batches], dim=1)}


@pytest.mark.parametrize("every", [1, 4])
def test_layouts_agree(files, every):
    reference = whole(module(files / "original", every=every))
    for layout in ("archive", "single"):
        found = whole(module(files / layout, every=every))
        for name in reference:
            torch.testing.assert_close(found[name], reference[name], rtol=1e-5, atol=2e-6, msg=f"{layout}: {name}")
    assert reference["counts"].sum() > 900 and reference["valid"].float().mean() > 0.3


@pytest.mark.parametrize(("layout", "every"), [("original", 1), ("original", 4), ("single", 4)])
def test_windows_hold_what_was_recorded(files, made, layout, every):
    data = module(files / layout, every=every)
    recording = data.dataset("test").recordings[0]
    covered = made.picture_times[made.picture_times >= made.flow_times[0]]
    covered = covered[covered <= made.flow_times[-1]][::every]
    assert recording.num_windows == len(covered) - 1 and recording.size == made.size
    for index in (0, 1, recording.num_windows - 1):
        start, end = covered[index : index + 2]
        window = recording.read(index)
        x, y, t, p = made.events[(made.events[:, 2] >= start) & (made.events[:, 2] < end)].T
        np.testing.assert_array_equal(window.x, x)
        np.testing.assert_array_equal(window.y, y)
        np.testing.assert_array_equal(window.p, p > 0)
        np.testing.assert_allclose(window.t, (t - start) / (end - start), atol=1e-5)
        flow, valid = walked(made, start, end)
        np.testing.assert_allclose(window.flow, flow, atol=2e-6)
        np.testing.assert_array_equal(window.valid, valid)
        pictures = [made.pictures[np.flatnonzero(made.picture_times == time)[0]] / 255 for time in (start, end)]
        np.testing.assert_allclose([window.before, window.after], pictures, atol=1e-6)


@pytest.mark.parametrize("layout", ["original", "single"])
def test_windows_by_time_and_by_count(files, made, layout):
    data = module(files / layout, window_us=50_000)
    recording = data.dataset("test").recordings[0]
    assert recording.num_windows == int((made.events[-1, 2] - T0) / 0.05)
    counted = [len(recording.read(i).x) for i in range(recording.num_windows)]
    expected, _ = np.histogram(made.events[:, 2], T0 + 0.05 * np.arange(recording.num_windows + 1))
    assert np.abs(np.array(counted) - expected).max() <= 1 and sum(counted) > 1500  # a stamp at an edge may round
    window = recording.read(8)  # 0.4 to 0.45 s
    flow, valid = walked(made, T0 + 0.4, T0 + 0.45)
    np.testing.assert_array_equal(window.valid, valid) if layout == "original" else None
    assert window.before is None and not recording.read(0).valid.any()  # before the first map

    data = module(files / layout, window_events=250)
    recording = data.dataset("test").recordings[0]
    assert recording.num_windows == 6
    read = [recording.read(i) for i in range(6)]
    np.testing.assert_array_equal(np.concatenate([one.x for one in read]), made.events[:1500, 0])
    assert all(0 <= one.t.min() <= one.t.max() <= 1 for one in read)


@pytest.mark.parametrize("every", [1, 4])
def test_maps_without_pictures_begin_with_the_second(made, tmp_path, every):
    """When the first map begins nothing tells."""
    write_single(tmp_path, "indoor_flying1", made, pictures=False)
    recording = module(tmp_path, train=None, every=every).dataset("test").recordings[0]
    covered = made.picture_times[made.picture_times >= made.flow_times[0]]
    edges = covered[covered <= made.flow_times[-1]][::every][1:]
    np.testing.assert_array_equal(recording.cut.edges, edges)
    flow, valid = walked(made, edges[1], edges[2])
    np.testing.assert_allclose(recording.read(1).flow, flow, atol=2e-6)
    np.testing.assert_array_equal(recording.read(1).valid, valid)


def test_only_the_window_is_read(files, made, monkeypatch):
    file = find_mvsec(files / "original", "indoor_flying1")
    rows = []
    events, times = file.store.events, file.store.times
    monkeypatch.setattr(file.store, "events", lambda low, high: (rows.append(high - low), events(low, high))[1])
    monkeypatch.setattr(file.store, "times", lambda low, high: (rows.append(high - low), times(low, high))[1])
    monkeypatch.setattr("lightning_modules.data.flow.stored._BLOCK", 16)
    monkeypatch.setattr("lightning_modules.data.flow.mvsec.find_mvsec", lambda *_: file)
    recording = module(files / "original").dataset("test").recordings[0]
    assert not rows
    window = recording.read(20)
    assert 0 < sum(rows) < len(window.x) + 2 * (16 + 12)  # of 1600


def test_middle_of_the_picture_equals_a_file_of_the_middle(made, tmp_path):
    write_original(tmp_path / "whole", "indoor_flying1", made)
    write_single(tmp_path / "part", "indoor_flying1", made, crop=(8, 10))
    options = {"train": None, "middle": (8, 10), "every": 4}
    first, second = module(tmp_path / "whole", **options), module(tmp_path / "part", **options)
    assert first.dataset("test").size == second.dataset("test").size == (8, 10)
    for name, values in whole(first).items():
        torch.testing.assert_close(whole(second)[name], values, rtol=1e-5, atol=2e-6, msg=name)


def test_hood_counts_outdoors_only(tmp_path):
    made = scene(size=(260, 4), seconds=0.8, count=200, flow=(0.5, 0.5))
    for name in ("outdoor_day1", "indoor_flying1"):
        write_original(tmp_path, name, made)
    valid = {}
    for middle in (None, (256, 4)):
        data = module(tmp_path, train=None, test=["outdoor_day1", "indoor_flying1"], middle=middle)
        for recording in data.dataset("test").recordings:
            valid[recording.name, middle] = recording.read(0).valid.any(1)
    assert np.flatnonzero(valid["outdoor_day1", None]).max() == 191
    assert np.flatnonzero(valid["outdoor_day1", (256, 4)]).max() == 189  # rows < 190 of the middle, as published
    assert valid["indoor_flying1", (256, 4)].all()


def test_only_the_range_is_used(files, made):
    data = module(files / "original", ranges={**ALL, "indoor_flying1": (0.5, 1.0)})
    recording = data.dataset("test").recordings[0]
    edges = recording.cut.edges
    assert T0 + 0.5 <= edges[0] < T0 + 0.53 and T0 + 0.97 < edges[-1] <= T0 + 1.0
    assert "indoor_flying1 (0.5 s to 1 s)" in data.split_name
    for layout in ("original", "single"):  # a window of four pictures begins where it does without a range
        ranges = {**ALL, "indoor_flying1": (0.5, 1.0)}
        part = module(files / layout, every=4, ranges=ranges).dataset("test").recordings[0].cut.edges
        assert set(part) <= set(module(files / layout, every=4).dataset("test").recordings[0].cut.edges)


def test_published_ranges_are_the_default():
    data = MVSECDataModule("somewhere")
    assert data.ranges["outdoor_day1"] == (222.4, 240.4) and tuple(data.sequences["test"]) == (
        "outdoor_day1",
        "indoor_flying1",
        "indoor_flying2",
        "indoor_flying3",
    )


def test_validation_is_the_end_of_the_training_sequence(files):
    data = module(files / "original", val_fraction=0.25, windows_per_batch=1)
    train, val = (data.dataset(part).recordings[0] for part in ("train", "val"))
    total = module(files / "original", test=["outdoor_day2"], train=None).dataset("test").recordings[0].num_windows
    assert val.num_windows == round(total / 4) and train.num_windows + val.num_windows == total
    np.testing.assert_array_equal(train.read(train.num_windows - 1).after, val.read(0).before)
    assert f"the last {val.num_windows} of {total} windows validate" in data.split_name
    with pytest.raises(IndexError):
        train.read(train.num_windows)


def test_workers_load_the_same(files):
    def batches(workers):
        data = module(files / "original", num_workers=workers, crop=(8, 8), section=10, seed=3)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(0)
        return [(batch.names, batch.counts, batch.flow, batch.frames) for batch in loader]

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) > 1
    for one, other in zip(alone, shared, strict=True):
        assert one[0] == other[0]
        for first, second in zip(one[1:], other[1:], strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_recordings_go_to_other_processes(files):
    for layout in ("original", "archive", "single"):
        recording = module(files / layout).dataset("test").recordings[0]
        before = recording.read(3)
        sent = pickle.dumps(recording)
        assert len(sent) < 20_000
        after = pickle.loads(sent).read(3)
        np.testing.assert_array_equal(before.x, after.x)
        np.testing.assert_array_equal(before.flow, after.flow)


def test_compressed_archive_is_unpacked_once(made, tmp_path):
    write_original(tmp_path / "data", "indoor_flying1", made, truth="npz", compressed=True)
    reference, _ = walked(made, made.picture_times[30], made.picture_times[31])
    for _ in range(2):
        data = module(tmp_path / "data", train=None, cache_dir=tmp_path / "cache")
        recording = data.dataset("test").recordings[0]
        index = int(np.flatnonzero(recording.cut.edges == made.picture_times[30])[0])
        np.testing.assert_allclose(recording.read(index).flow, reference, atol=2e-6)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def test_no_true_flow_is_no_error(made, tmp_path):
    write_original(tmp_path, "outdoor_day2", made, truth=None)
    batch = module(tmp_path, train=None, test=["outdoor_day2"]).dataset("test")[0]
    assert batch.flow is None and batch.valid is None and batch.frames is not None


def test_test_part_alone(files):
    data = module(files / "single", train=None)
    assert data.split_name == "test indoor_flying1" and set(data.report()) >= {"dataset", "split", "test", "resolution"}
    assert data.report()["dataset"] == "MVSEC, dt1"


def test_missing_pictures_for_a_photometric_loss(made, tmp_path):
    path = write_single(tmp_path / "single", "outdoor_day2", made, pictures=False)
    write_single(tmp_path / "single", "indoor_flying1", made, pictures=False)
    message = rf"{re.escape(str(path))}: no grey pictures .*photometric loss.*--data.pictures false"
    with pytest.raises(EventDataError, match=message):
        module(tmp_path / "single")
    data = module(tmp_path / "single", pictures=False)
    assert data.dataset("test")[0].frames is None and data.dataset("test")[0].flow is not None
    path = write_original(tmp_path / "original", "outdoor_day2", made, truth=None, pictures=False)
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: no grey pictures .*by time or count"):
        module(tmp_path / "original", train=None, test=["outdoor_day2"])


def changed(scene, **fields):
    return replace(scene, **{name: change(getattr(scene, name).copy()) for name, change in fields.items()})


def swapped(values):
    values[[800, 900]] = values[[900, 800]]
    return values


BACKWARDS = {
    "events": ({"events": swapped}, "time stamps run backwards"),
    "ends": ({"events": lambda values: values[::-1]}, "time stamps run backwards: the first event"),
    "pictures": ({"picture_times": lambda values: values[::-1]}, "grey pictures run backwards or repeat"),
    "repeated": ({"picture_times": lambda values: np.repeat(values[::2], 2)}, "grey pictures run backwards or repeat"),
}


@pytest.mark.parametrize("what", BACKWARDS)
@pytest.mark.parametrize("write", [write_original, write_single])
def test_time_stamps_that_run_backwards_are_named(made, tmp_path, write, what):
    fields, message = BACKWARDS[what]
    bad = changed(made, **fields)
    if write is write_single and what in ("pictures", "repeated"):
        path = write(tmp_path, "indoor_flying1", replace(bad, flow_times=bad.flow_times[:0]))
    else:
        path = write(tmp_path, "indoor_flying1", bad)
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}.*{message}"):
        recording = module(tmp_path, train=None).dataset("test").recordings[0]
        for index in range(recording.num_windows):
            recording.read(index)


def test_flow_times_that_run_backwards_are_named(made, tmp_path):
    write_original(tmp_path, "indoor_flying1", replace(made, flow_times=made.flow_times[::-1].copy()))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(tmp_path))}.*_gt.hdf5: .*true flow run backwards"):
        module(tmp_path, train=None)


@pytest.mark.parametrize("kept", [0, 100, 5000, -200])
@pytest.mark.parametrize("name", ["indoor_flying1_data.hdf5", "indoor_flying1_gt.hdf5"])
def test_cut_files_are_named(made, tmp_path, kept, name):
    write_original(tmp_path, "indoor_flying1", made)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*cut off or damaged"):
        module(tmp_path, train=None)


@pytest.mark.parametrize("kept", [0, 100, 40_000, -100])
def test_cut_archives_are_named(made, tmp_path, kept):
    write_original(tmp_path, "indoor_flying1", made, truth="npz")
    path = tmp_path / "indoor_flying1_gt_flow_dist.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*cut off or damaged"):
        module(tmp_path, train=None)


def test_a_damaged_piece_is_named_when_it_is_read(made, tmp_path):
    path = write_original(tmp_path, "indoor_flying1", made)
    with h5py.File(path) as file:
        piece = file["davis/left/events"].id.get_chunk_info(6)
    content = bytearray(path.read_bytes())
    content[piece.byte_offset : piece.byte_offset + piece.size] = bytes(piece.size)
    path.write_bytes(content)
    recording = module(tmp_path, train=None).dataset("test").recordings[0]
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*cut off or damaged"):
        for index in range(recording.num_windows):
            recording.read(index)


def test_missing_parts_are_named(made, tmp_path):
    path = write_original(tmp_path / "a", "indoor_flying1", made)
    with h5py.File(path, "a") as file:
        del file["davis/left/image_raw_ts"]
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*davis/left/image_raw_ts is missing; found"):
        module(tmp_path / "a", train=None)
    path = write_single(tmp_path / "b", "indoor_flying1", made)
    with h5py.File(path, "a") as file:
        del file["events/ps"]
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*events/ps is missing; found .*events/ts"):
        module(tmp_path / "b", train=None)
    path = write_single(tmp_path / "c", "indoor_flying1", made)
    with h5py.File(path, "a") as file:
        del file["flow_dt1/000000003"].attrs["timestamp"]
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: flow_dt1/000000003 has no attribute timestamp"):
        module(tmp_path / "c", train=None)
    path = tmp_path / "d" / "indoor_flying1_data.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["something"] = 1
    with pytest.raises(EventDataError, match=r"davis/left/events or events/xs; found \['something'\]"):
        module(tmp_path / "d", train=None)


def test_events_outside_of_the_sensor_are_named(made, tmp_path):
    def outside(events):
        events[700, 0] = 99
        return events

    path = write_original(tmp_path, "indoor_flying1", changed(made, events=outside))
    recording = module(tmp_path, train=None).dataset("test").recordings[0]
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: event 700 has x = 99"):
        for index in range(recording.num_windows):
            recording.read(index)


def test_a_checkpoint_is_compared_with_what_is_tested(files, recwarn):
    trained = module(files / "original").state_dict()
    assert trained["seen"] == "outdoor_day2" and "indoor_flying1" in trained["split"]
    module(files / "original", train=None, every=4).load_state_dict(trained)
    module(files / "original", train=None).load_state_dict({"dataset": "simulated", "split": "its own"})
    assert not recwarn
    with pytest.warns(UserWarning, match=r"was trained or chosen on \['outdoor_day2'\], which are tested now"):
        module(files / "original", train=None, test=["outdoor_day2"]).load_state_dict(trained)


def test_missing_sequences_and_folders(files, tmp_path, monkeypatch):
    with pytest.raises(EventDataError, match=r"no files of \['outdoor_day1'\] .*it has .*indoor_flying1_data.hdf5"):
        module(files / "original", test=["outdoor_day1"])
    with pytest.raises(EventDataError, match="no such folder"):
        module(tmp_path / "nowhere")
    monkeypatch.setenv("STLLR_DATA", str(tmp_path))
    with pytest.raises(DownloadError, match=r"(?s)By hand.*--data.path FOLDER.*NAME_data.hdf5"):
        MVSECDataModule().prepare_data()


def test_a_recording_shorter_than_its_range_is_named(files):
    with pytest.raises(
        EventDataError, match=r"outdoor_day2_data.hdf5: lasts 1.59\d+ s, but the part from 45.0 to None s"
    ):
        module(files / "original", ranges=None)


def test_files_that_do_not_belong_together(made, tmp_path):
    write_original(tmp_path, "indoor_flying1", replace(made, flow_times=made.flow_times + 100))
    with pytest.raises(EventDataError, match="do these files belong together"):
        module(tmp_path, train=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 2}, "every must be 1 or 4"),
        ({"window_us": 1000, "window_events": 10}, "give window_us or window_events"),
        ({"test": ["outdoor_day2"]}, r"\['outdoor_day2'\] are for training or validation, and for the test"),
        ({"test": []}, "name at least one sequence"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"ranges": {"outdoor_day1": (5.0, 5.0)}}, "ranges: outdoor_day1"),
        ({"window_us": 0}, "window_us must be at least 1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        MVSECDataModule("somewhere", **options)


def test_compression_of_other_packages(made, tmp_path, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    path = write_single(tmp_path / "packed", "indoor_flying1", made, **hdf5plugin.Zstd())
    write_original(tmp_path / "plain", "indoor_flying1", made)
    torch.testing.assert_close(
        whole(module(tmp_path / "packed", train=None))["counts"],
        whole(module(tmp_path / "plain", train=None))["counts"],
    )
    with pytest.raises(EventDataError, match=r"several files of indoor_flying1: .*packed.*plain"):
        module(tmp_path, train=None)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(
        ImportError, match=rf'{re.escape(str(path))}: /events/xs .*Zstandard.*pip install "stllr-plugin'
    ):
        module(tmp_path / "packed", train=None)


def test_zero_flow_is_the_length_of_the_true_flow(tmp_path, capsys, monkeypatch):
    """The command that tells whether the protocol is the published one."""
    made = scene(size=(260, 256), seconds=1.0, count=3000, flow=(3.0, 4.0))  # 5 pixels a map, two windows a map
    write_original(tmp_path, "indoor_flying1", made)
    write_single(tmp_path, "indoor_flying2", replace(made, flow_times=made.flow_times[:0]))
    path = Path(__file__).parents[4] / "benchmarks" / "mvsec_zero_flow.py"
    if not path.exists():
        pytest.skip(f"not a checkout: no {path}")
    spec = importlib.util.spec_from_file_location("mvsec_zero_flow", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found, windows, _ = benchmark.measure(tmp_path, "indoor_flying1", 4, {"indoor_flying1": (0.3, 0.6)}, False)
    np.testing.assert_allclose(found, 10, rtol=1e-4)
    assert windows == 2
    with pytest.raises(SystemExit, match="indoor_flying2: no true flow"):
        benchmark.measure(tmp_path, "indoor_flying2", 1, {}, False)
    monkeypatch.setattr("sys.argv", ["mvsec_zero_flow.py"])
    benchmark.main()
    assert "nothing measured" in capsys.readouterr().out
