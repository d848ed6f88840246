"""DSEC: rectified events, 16-bit flow and mapped pictures of each interval; bad files are named."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_modules.data import DownloadError, EventDataError
from lightning_modules.data.flow import dsec
from lightning_modules.data.flow.dsec import DSECDataModule
from lightning_modules.data.flow.dsec_files import read_flow_png
from lightning_modules.data.flow.dsec_pictures import picture_places
from lightning_modules.data.flow.png import read_png16
from tests.lightning_modules.data.flow.flow_files import drive, png8, png16, write_drive, write_pictures

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")

SIZE = (12, 16)


@pytest.fixture(autouse=True)
def small_sensor(monkeypatch):
    monkeypatch.setattr(dsec, "SENSOR", SIZE)


@pytest.fixture(scope="module")
def made():
    return drive()


def module(path, **options):
    data = DSECDataModule(path, **{"train": None, "test": ["thun_00_a"], "crop": None, **options})
    data.setup()
    return data


def recordings(path, **options):
    return module(path, **options).dataset("test").recordings


def read_all(path, **options):
    for recording in recordings(path, **options):
        for index in range(recording.num_windows):
            recording.read(index)


def test_windows_hold_what_was_recorded(made, tmp_path):
    write_drive(tmp_path / "train", "thun_00_a", made)
    (recording,) = recordings(tmp_path)
    assert (recording.name, recording.size, recording.num_windows) == ("thun_00_a", SIZE, 5)
    for index, (start, end) in enumerate(made.intervals):
        window = recording.read(index)
        t = made.events[:, 2] + made.offset
        x, y, t, p = made.events[(t >= start) & (t < end)].T
        rectified = np.rint(made.rectify[y, x]).astype(int)
        inside = (rectified >= 0).all(1) & (rectified < SIZE[::-1]).all(1)
        assert 0 < inside.sum() < len(x)
        np.testing.assert_array_equal(np.stack((window.x, window.y), axis=1), rectified[inside])
        np.testing.assert_array_equal(window.p, p[inside] == 1)
        np.testing.assert_allclose(window.t, (t[inside] + made.offset - start) / 100_000, atol=1e-6)
        levels = made.flow[index]
        known = levels[..., 2] == 1
        np.testing.assert_array_equal(window.valid, known)
        expected = (levels[..., :2].astype(float) - 32768) / 128
        np.testing.assert_allclose(window.flow.transpose(1, 2, 0)[known], expected[known])
        assert not window.flow[:, ~known].any() and window.before is None
    (recording,) = recordings(tmp_path, rectify=False)
    t = made.events[:, 2] + made.offset
    np.testing.assert_array_equal(
        recording.read(0).x, made.events[(t >= made.intervals[0, 0]) & (t < made.intervals[0, 1]), 0]
    )


def test_events_and_flow_in_different_folders(made, tmp_path):
    write_drive(tmp_path / "train_events", "thun_00_a", made)
    flow = tmp_path / "train_optical_flow" / "thun_00_a" / "flow"
    flow.parent.mkdir(parents=True)
    (tmp_path / "train_events" / "thun_00_a" / "flow").rename(flow)
    assert recordings(tmp_path)[0].read(2).valid.any()


def test_a_gap_in_the_maps_begins_another_recording(made, tmp_path):
    gap = replace(made, intervals=np.delete(made.intervals, 2, axis=0), flow=np.delete(made.flow, 2, axis=0))
    write_drive(tmp_path / "gap", "thun_00_a", gap)
    first, second = recordings(tmp_path / "gap")
    assert [(one.name, one.num_windows) for one in (first, second)] == [
        ("thun_00_a part 0", 2),
        ("thun_00_a part 1", 2),
    ]
    write_drive(tmp_path / "whole", "thun_00_a", made)
    (whole,) = recordings(tmp_path / "whole")
    for recording, index, place in ((first, 1, 1), (second, 0, 3)):
        np.testing.assert_array_equal(recording.read(index).x, whole.read(place).x)
        np.testing.assert_array_equal(recording.read(index).flow, whole.read(place).flow)


def test_maps_before_the_events_are_left_out(made, tmp_path):
    write_drive(tmp_path / "early", "thun_00_a", replace(made, intervals=made.intervals - 100_000))
    (recording,) = recordings(tmp_path / "early")
    assert recording.num_windows == 4
    write_drive(tmp_path / "other", "thun_00_a", replace(made, intervals=made.intervals - 10_000_000))
    with pytest.raises(EventDataError, match="do these files belong together"):
        recordings(tmp_path / "other")


def test_windows_by_time_need_no_flow(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made, flow=False)
    (recording,) = recordings(tmp_path, window_us=20_000, rectify=False)
    counted = [len(recording.read(i).x) for i in range(recording.num_windows)]
    first = made.events[0, 2]
    expected, _ = np.histogram(made.events[:, 2], first + 20_000 * np.arange(recording.num_windows + 1) - 0.5)
    assert counted == expected.tolist() and recording.read(0).flow is None
    with pytest.raises(EventDataError, match=r"events.h5: thun_00_a has no true flow .*--data.window_us"):
        recordings(tmp_path)


def test_batches_of_all_parts(made, tmp_path):
    for name in ("thun_00_a", "zurich_city_01_a", "zurich_city_02_c"):
        write_drive(tmp_path, name, made)
    parts = {"train": ["zurich_city_01_a"], "val": ["zurich_city_02_c"]}
    data = module(tmp_path, **parts, crop=(8, 8), middle=(8, 10), batch_size=1, windows_per_batch=2, bins=3)
    shapes = {part: data.dataset(part)[0].counts.shape for part in ("train", "val", "test")}
    assert shapes == {"train": (1, 2, 3, 2, 8, 8), "val": (1, 2, 3, 2, 8, 10), "test": (1, 2, 3, 2, 8, 10)}
    assert data.split_name == "train zurich_city_01_a; val zurich_city_02_c; test thun_00_a"
    assert data.report()["train"] == 5
    small = module(tmp_path, downsample=2).dataset("test")[0]
    assert small.flow.shape[-2:] == (6, 8) and small.counts.sum() > 0


def test_only_the_millisecond_is_searched(made, tmp_path, monkeypatch):
    write_drive(tmp_path, "thun_00_a", made)
    monkeypatch.setattr("lightning_modules.data.flow.stored._BLOCK", 16)
    (recording,) = recordings(tmp_path)
    rows = []
    times = recording.store.times
    monkeypatch.setattr(recording.store, "times", lambda low, high: (rows.append(high - low), times(low, high))[1])
    low, high = recording.cut.bounds(2)[2:]
    assert rows and sum(rows) < 40  # of 2000
    t = made.events[:, 2] + made.offset
    assert (low, high) == tuple(np.searchsorted(t, made.intervals[2]))


def test_recordings_go_to_other_processes(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    (recording,) = recordings(tmp_path)
    before = recording.read(3)
    sent = pickle.dumps(recording)
    after = pickle.loads(sent).read(3)
    np.testing.assert_array_equal(before.x, after.x)
    assert len(sent) < 10_000


def test_compression_of_the_published_files(made, tmp_path, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    path = write_drive(tmp_path / "packed", "thun_00_a", made, **hdf5plugin.Blosc(cname="zstd"))
    write_drive(tmp_path / "plain", "thun_00_a", made)
    first, second = (module(folder).dataset("test")[0].counts for folder in (tmp_path / "packed", tmp_path / "plain"))
    torch.testing.assert_close(first, second)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(ImportError, match=rf'{re.escape(str(path))}: /events/x .*Blosc.*pip install "stllr-plugin'):
        module(tmp_path / "packed")
    with pytest.raises(EventDataError, match=r"several files of thun_00_a: .*packed.*plain"):
        module(tmp_path)


# Pictures.

CALIBRATION = """
intrinsics:
  camRect0: {camera_matrix: [10.0, 10.0, 8.0, 6.0]}
  camRect1: {camera_matrix: [20.0, 20.0, 18.0, 14.0]}
extrinsics:
  R_rect0: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  R_rect1: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  T_10: [[1, 0, 0, 0.05], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
"""


def picture_times(made):
    return np.arange(made.intervals[0, 0] - 50_000, made.intervals[-1, 1] + 60_000, 50_000)


def test_pictures_of_the_events_size_are_taken_as_they_are(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    times = picture_times(made)
    pictures = np.random.default_rng(0).integers(0, 256, (len(times), *SIZE))
    write_pictures(tmp_path, "thun_00_a", times, pictures)
    (recording,) = recordings(tmp_path, pictures=True)
    for index, (start, end) in enumerate(made.intervals):
        window = recording.read(index)
        for found, time in ((window.before, start), (window.after, end)):
            np.testing.assert_allclose(found, pictures[int(np.flatnonzero(times == time)[0])] / 255, atol=1e-6)


def test_pictures_of_the_other_camera_are_mapped(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    times = picture_times(made)
    row, column = np.mgrid[0:34, 0:44]
    ramp = np.stack([2 * column + 3 * row + 5] * 3, axis=-1)  # grey, written in colours
    write_pictures(tmp_path, "thun_00_a", times, [ramp] * len(times), CALIBRATION)
    (recording,) = recordings(tmp_path, pictures=True)
    y, x = np.mgrid[0:12, 0:16]
    expected = (2 * (2 * (x - 8) + 18) + 3 * (2 * (y - 6) + 14) + 5) / 255
    inner = (slice(2, -2), slice(2, -2))  # smoothing changes the ramp at the picture's rim
    np.testing.assert_allclose(recording.read(0).before[inner], expected[inner], atol=0.006)


def test_places_of_far_points():
    random = np.random.default_rng(1)
    rotations = [np.linalg.qr(np.eye(3) + 0.1 * random.standard_normal((3, 3)))[0] for _ in range(3)]
    rotations = [one * np.sign(np.diag(one)) for one in rotations]
    rect0, rect1, between = rotations
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = between, (0.04, 0.01, 0)
    calibration = {
        "intrinsics": {
            "camRect0": {"camera_matrix": [11.0, 12.0, 8.0, 6.0]},
            "camRect1": {"camera_matrix": [25.0, 24.0, 20.0, 15.0]},
        },
        "extrinsics": {"R_rect0": rect0.tolist(), "R_rect1": rect1.tolist(), "T_10": transform.tolist()},
    }
    places = picture_places(calibration, SIZE)
    for row, column in ((0, 0), (5, 9), (11, 15)):
        ray = np.array([(column - 8) / 11, (row - 6) / 12, 1]) * 1e6  # a point far away, seen by the rectified camera
        x, y, z = rect1 @ (between @ (rect0.T @ ray) + transform[:3, 3])
        np.testing.assert_allclose(places[:, row, column], (25 * x / z + 20, 24 * y / z + 15), atol=1e-4)


def test_pictures_that_are_missing_are_named(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    with pytest.raises(
        EventDataError, match=r"thun_00_a has no images/left/rectified.*photometric.*--data.pictures false"
    ):
        module(tmp_path, pictures=True)
    times = picture_times(made)
    rectified = write_pictures(tmp_path, "thun_00_a", times, [np.zeros((34, 44))] * len(times))
    with pytest.raises(EventDataError, match=r"pictures of \(34, 44\).*cam_to_cam.yaml .*missing"):
        module(tmp_path, pictures=True)
    sorted(rectified.glob("*.png"))[-1].unlink()
    with pytest.raises(
        EventDataError, match=rf"timestamps.txt: {len(times)} time stamps, but {len(times) - 1} pictures"
    ):
        module(tmp_path, pictures=True)
    stamps = rectified.parents[1] / "timestamps.txt"
    stamps.write_text("\n".join(str(int(time) + 20_000) for time in times[:-1]))
    with pytest.raises(EventDataError, match=r"timestamps.txt: no picture at \d+ us, .* 20000 us away"):
        module(tmp_path, pictures=True)
    stamps.write_text("\n".join(str(int(time)) for time in times[-2::-1]))
    with pytest.raises(EventDataError, match="timestamps.txt: time stamps run backwards"):
        module(tmp_path, pictures=True)


def test_calibration_without_cameras_is_named(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    times = picture_times(made)
    write_pictures(tmp_path, "thun_00_a", times, [np.zeros((34, 44))] * len(times), "intrinsics: {}")
    with pytest.raises(EventDataError, match=r"cam_to_cam.yaml: no calibration .*camRect0"):
        read_all(tmp_path, pictures=True)


# Bad files.


def test_real_size_of_flow(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65_536, (480, 640, 3)).astype(np.uint16)
    levels[..., 2] = 1
    (tmp_path / "000002.png").write_bytes(png16(levels))
    flow, valid = read_flow_png(tmp_path / "000002.png", (480, 640))
    assert valid.all() and flow.shape == (2, 480, 640) and flow.dtype == np.float32
    assert flow[0, 7, 9] == (int(levels[7, 9, 0]) - 32768) / 128
    with pytest.raises(EventDataError, match=r"000002.png: \(480, 640\) rows and columns, expected \(240, 320\)"):
        read_flow_png(tmp_path / "000002.png", (240, 320))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-60], "cut off"),
        (lambda content: content[:100], "cut off"),
        (lambda content: b"", "no PNG picture, or cut off"),
        (lambda content: b"<html>not found</html>" * 9, "no PNG picture"),
        (lambda content: png8(np.zeros((12, 16, 3))), "expected a PNG of three channels with 16 bits, found uint8"),
    ],
)
def test_bad_flow_maps_are_named(made, tmp_path, change, message):
    write_drive(tmp_path, "thun_00_a", made)
    path = tmp_path / "thun_00_a" / "flow" / "forward" / "000006.png"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*{message}"):
        read_all(tmp_path)


def test_channels_in_another_order_are_named(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", replace(made, flow=made.flow[..., ::-1]))
    with pytest.raises(EventDataError, match="000002.png: the third channel must be 0 or 1 .*BGR"):
        read_all(tmp_path)


def test_png_of_16_bits(tmp_path):
    levels = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 1000
    (tmp_path / "one.png").write_bytes(png16(levels))
    np.testing.assert_array_equal(read_png16(tmp_path / "one.png"), levels)


def with_line(path, number, line):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:number], line, *lines[number + 1 :]]))


def test_time_stamps_of_flow_are_checked(made, tmp_path):
    write_drive(tmp_path, "thun_00_a", made)
    path = tmp_path / "thun_00_a" / "flow" / "forward_timestamps.txt"
    good = path.read_text()
    with_line(path, 2, "5, 4")
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: time stamps run backwards: interval 1"):
        module(tmp_path)
    path.write_text(good)
    with_line(path, 2, "some, words")
    with pytest.raises(EventDataError, match=rf'{re.escape(str(path))}: expected lines "from, to"'):
        module(tmp_path)
    path.write_text("\n".join(good.splitlines()[:-1]))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: 4 intervals, but 5 maps"):
        module(tmp_path)
    path.unlink()
    with pytest.raises(EventDataError, match=r"flow.forward: forward_timestamps.txt is missing"):
        module(tmp_path)


def test_bad_events_are_named(made, tmp_path):
    def written(name, **fields):
        return write_drive(tmp_path / name, "thun_00_a", replace(made, **fields))

    swapped = made.events.copy()
    swapped[[800, 900], 2] = swapped[[900, 800], 2]
    path = written("backwards", events=swapped)
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: time stamps run backwards"):
        read_all(tmp_path / "backwards")
    outside = made.events.copy()
    outside[700, 0] = 99
    path = written("outside", events=outside)
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: event 700 has x = 99"):
        read_all(tmp_path / "outside")
    path = written("cut")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*cut off or damaged"):
        module(tmp_path / "cut")
    path = written("index")
    with h5py.File(path, "a") as file:
        file["ms_to_idx"][:] = np.uint64(10**9)
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: ms_to_idx"):
        read_all(tmp_path / "index")
    path = written("map").with_name("rectify_map.h5")
    with h5py.File(path, "w") as file:
        file["rectify_map"] = np.zeros((3, 4, 2))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: rectify_map must be \(12, 16, 2\)"):
        module(tmp_path / "map")
    path.unlink()
    with pytest.raises(EventDataError, match=r"events.h5: rectify_map.h5 is missing beside it; --data.rectify false"):
        module(tmp_path / "map")
    assert recordings(tmp_path / "map", rectify=False)


def test_missing_sequences_and_folders(made, tmp_path, monkeypatch):
    write_drive(tmp_path, "zurich_city_01_a", made)
    with pytest.raises(EventDataError, match=r"no files of \['thun_00_a'\] .*it has \['zurich_city_01_a'\]"):
        module(tmp_path)
    with pytest.raises(EventDataError, match="no such folder"):
        module(tmp_path / "nowhere")
    monkeypatch.setenv("STLLR_DATA", str(tmp_path / "nothing"))
    with pytest.raises(DownloadError, match=r"(?s)By hand.*--data.path FOLDER.*events/left/events.h5"):
        DSECDataModule().prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": ["zurich_city_02_c"]}, r"\['zurich_city_02_c'\] are for training or validation, and for the test"),
        ({"val": []}, r"name at least one sequence of \['val'\]"),
        ({"val": ["zurich_city_01_a"]}, r"\['zurich_city_01_a'\] are for training and for validation"),
        ({"window_us": 0}, "window_us must be at least 1"),
        ({"window_us": 1000, "pictures": True}, "leave out window_us or pictures"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DSECDataModule("somewhere", **options)


def test_the_sequences_are_those_with_public_flow():
    names = [*dsec.TRAIN, *dsec.VAL, *dsec.TEST]
    assert len(names) == len(set(names)) == 18
