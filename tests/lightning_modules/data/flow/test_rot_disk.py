"""The recording with a gyroscope: its split, its windows, and a true flow that explains its events."""

from pathlib import Path

import numpy as np
import pytest

from lightning_modules.data import EventDataError
from lightning_modules.data.flow import RotDiskDataModule
from lightning_modules.data.flow.rot_disk import read_rot_disk

REAL_FILE = Path(__file__).parents[4].parent / "shared" / "data" / "rot_disk_flow.npz"
real = pytest.mark.skipif(not REAL_FILE.exists(), reason=f"{REAL_FILE} is not here")

SECOND = 1_000_000


@pytest.fixture
def file(tmp_path):
    """Two seconds of random events; the gyroscope says 1 rad/s, then from one second on 2 rad/s."""
    random = np.random.default_rng(0)
    count = 4000
    t = np.sort(random.integers(0, 2 * SECOND, count)).astype(np.uint32)
    t[0], t[-1] = 0, 2 * SECOND
    columns = dict(
        x=random.integers(0, 240, count), y=random.integers(0, 180, count), p=random.integers(0, 2, count), t=t
    )
    times = np.array([1000, 999_999, 1_000_000, 1_999_000])
    raw = np.round(np.array([1, 1, 2, 2]) / (1000 / 32768 * np.pi / 180)).astype(int) + 15
    imu = dict(t=np.repeat(times, 2), code=np.tile([5, 6], 4), raw=np.stack((0 * raw + 99, raw), 1).ravel())
    arrays = {f"IMU_rotDisk_{name}": values for name, values in columns.items()}
    arrays |= {f"IMU_rotDisk_imu_{name}": values for name, values in imu.items()}
    arrays |= {f"TranslatingBarX_{name}": values for name, values in columns.items()}
    arrays |= {f"RotatingBar_{name}": values for name, values in columns.items()}
    path = tmp_path / "disk.npz"
    np.savez(path, **arrays)
    return path


def turned(x, y, centre, angle):
    """Where a point goes, by complex numbers."""
    arm = (x - centre[0]) + 1j * (y - centre[1])
    moved = arm * np.exp(1j * angle) - arm
    return moved.real, moved.imag


def test_flow_is_the_angle_that_the_gyroscope_went(file):
    _, flow = read_rot_disk(file, "IMU_rotDisk")
    y, x = np.mgrid[:180, :240]
    for start, end, angle in ((0.2, 0.6, 0.4), (1.1, 1.2, 0.2), (0.9, 1.1, 0.3), (1.9, 2.0, 0.2)):
        found, valid = flow(start * SECOND, end * SECOND)
        assert valid.all() and found.dtype == np.float32
        # The gyroscope's numbers are whole: 1 rad/s is 1877.1 of its steps.
        np.testing.assert_allclose(found, turned(x, y, (104.5, 92.0), angle), rtol=1e-3, atol=0.03)


def test_flow_of_the_ideal_bars(file):
    _, flow = read_rot_disk(file, "TranslatingBarX")
    np.testing.assert_allclose(flow(SECOND, 1.5 * SECOND)[0][:, 50, 60], [-5, 0])
    _, flow = read_rot_disk(file, "RotatingBar")
    y, x = np.mgrid[:180, :240]
    np.testing.assert_allclose(flow(0, 0.5 * SECOND)[0], turned(x, y, (120, 89), -np.pi / 30), rtol=1e-3, atol=1e-3)


def test_parts_follow_each_other_and_nothing_is_in_two(file):
    data = RotDiskDataModule(file, window_us=100_000, shifts=4, batch_size=2, bins=3)
    data.setup()
    spans = {}
    for part in ("train", "val", "test"):
        edges = [r._recording._recording.windows.edges for r in data.dataset(part).recordings]
        spans[part] = (min(e[0] for e in edges) / SECOND, max(e[-1] for e in edges) / SECOND)
        assert len(edges) == (4 if part == "train" else 1)
    assert spans["train"][0] == 0 and spans["train"][1] <= 0.9 + 1e-6
    assert spans["val"] == pytest.approx((0.9, 1.2)) and spans["test"] == pytest.approx((1.2, 2.0))
    starts = [r._recording._recording.windows.edges[0] for r in data.dataset("train").recordings]
    assert starts == [0, 25_000, 50_000, 75_000]
    batch = next(iter(data.test_dataloader()))
    assert batch.counts.shape == (1, 4, 3, 2, 90, 120) and batch.new_recording.all()
    assert "first 45% train, next 15% validation, last 40% test" in data.split_name
    assert data.report()["test"] == 8


def test_lower_resolution_and_part_of_the_picture(file):
    _, flow = read_rot_disk(file, "IMU_rotDisk")
    whole, _ = flow(1.2 * SECOND, 1.3 * SECOND)
    data = RotDiskDataModule(file, window_us=100_000, downsample=2, size=(88, 112))
    data.setup()
    window = data.dataset("test").recordings[0].read(0)
    assert window.flow.shape == (2, 88, 112) and data.report()["resolution"] == (88, 112)
    # A pixel of 2x2 in row 10, column 20 of the part lies in rows 22 and 23, columns 48 and 49 of the sensor.
    np.testing.assert_allclose(window.flow[:, 10, 20], whole[:, 22:24, 48:50].mean((1, 2)) / 2, rtol=1e-3)


def test_mirrored_test(file):
    data = RotDiskDataModule(file, window_us=100_000, mirrored_test=True, batch_size=2)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch.names == ["IMU_rotDisk test", "IMU_rotDisk test mirrored"] and "mirror image" in data.split_name
    assert batch.counts[0].flip(-1).equal(batch.counts[1])
    assert batch.flow[0, :, 0].flip(-1).equal(-batch.flow[1, :, 0])
    assert batch.flow[0, :, 1].flip(-1).equal(batch.flow[1, :, 1])


def test_windows_by_count(file):
    data = RotDiskDataModule(file, window_events=100, shifts=2, downsample=1)
    data.setup()
    for recording in (data.dataset("test").recordings[0], *data.dataset("train").recordings):
        counts = [len(recording.read(i).x) for i in range(recording.num_windows)]
        assert len(counts) > 10 and all(abs(count - 100) <= 5 for count in counts)
    one, other = (r.windows.rows[0] for r in data.dataset("train").recordings)
    assert abs(other - one - 50) <= 3
    assert "windows of 100 events" in data.dataset_name


def test_bad_files_and_arguments(tmp_path, file):
    with pytest.raises(FileNotFoundError, match="no such file"):
        RotDiskDataModule(tmp_path / "nowhere.npz").prepare_data()
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(EventDataError, match="expected the recording IMU_rotDisk"):
        RotDiskDataModule(tmp_path / "text.npz").prepare_data()
    with pytest.raises(EventDataError, match="array TranslatingBarY_x is missing"):
        RotDiskDataModule(file, "TranslatingBarY").prepare_data()
    with np.load(file) as arrays:
        broken = dict(arrays)
    broken["IMU_rotDisk_t"] = broken["IMU_rotDisk_t"][::-1]
    np.savez(tmp_path / "backwards.npz", **broken)
    with pytest.raises(EventDataError, match="time stamps run backwards"):
        RotDiskDataModule(tmp_path / "backwards.npz").prepare_data()
    broken |= {"IMU_rotDisk_t": broken["IMU_rotDisk_t"][::-1], "IMU_rotDisk_imu_code": np.zeros(8, int)}
    np.savez(tmp_path / "still.npz", **broken)
    with pytest.raises(EventDataError, match=r"no values of the gyroscope about the optical axis \(code 6\)"):
        RotDiskDataModule(tmp_path / "still.npz").prepare_data()
    with pytest.raises(EventDataError, match="less than one window of 1.5e\\+06; take a shorter one"):
        RotDiskDataModule(file, window_us=1_500_000).prepare_data()
    with pytest.raises(ValueError, match="recording must be one of"):
        RotDiskDataModule(file, "Disk")
    with pytest.raises(ValueError, match="0 < val_fraction < train_fraction < 1"):
        RotDiskDataModule(file, val_fraction=0.7)


@real
def test_the_true_flow_explains_the_real_events():
    data = RotDiskDataModule(REAL_FILE)
    data.setup()
    recording = data.dataset("test").recordings[0]

    def sharpness(scale):
        total = 0.0
        for index in range(2):
            window = recording.read(index)
            u, v = scale * window.flow[:, window.y, window.x]
            x, y = np.round(window.x - u * window.t).astype(int), np.round(window.y - v * window.t).astype(int)
            inside = (x >= 0) & (x < 120) & (y >= 0) & (y < 90)
            total += np.bincount(y[inside] * 120 + x[inside], minlength=120 * 90).var()
        return total

    scales = [-1, 0, 0.5, 1, 1.5, 2]
    assert scales[int(np.argmax([sharpness(scale) for scale in scales]))] == 1
    assert sharpness(1) > 1.5 * sharpness(0)


@real
@pytest.mark.parametrize("name", ["RotatingBar", "TranslatingBarX", "TranslatingBarY"])
def test_the_true_flow_takes_ideal_bars_from_window_to_window(name):
    events, flow = read_rot_disk(REAL_FILE, name)
    moments = np.unique(events.t)
    for early, late in ((moments[3], moments[13]), (moments[40], moments[47])):
        before, after = events.t == early, events.t == late
        moved, _ = flow(float(early), float(late))
        x, y = events.x[before], events.y[before]
        x, y = x + moved[0][y, x], y + moved[1][y, x]
        distance = np.hypot(x[:, None] - events.x[after], y[:, None] - events.y[after]).min(axis=1)
        assert distance.max() < 1.5
