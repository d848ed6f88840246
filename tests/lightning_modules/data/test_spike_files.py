"""Spikes in SHD's HDF5 layout: reading, faults, the packed cache, frames, SHD's and SSC's parts, download."""

import hashlib
import os
import zipfile

import numpy as np
import pytest
import torch

from lightning_modules.data import (
    EventDataError,
    SHDDataModule,
    SpikeFile,
    SSCDataModule,
    spike_cache,
    write_spike_file,
)
from lightning_modules.data import shd as shd_module
from lightning_modules.data.spike_cache import BinnedSpikes
from tests.lightning_modules.small_data import write_heidelberg, write_spikes

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.h5"
    write_spikes(path, 30, 20)
    return path


@pytest.fixture
def folder(tmp_path):
    return write_heidelberg(tmp_path, "shd", 20, ("train", "test"))


def frames_by_hand(path, index, num_steps, step_ms):
    with h5py.File(path) as data:
        times, units = data["spikes/times"][index], data["spikes/units"][index]
    frames = np.zeros((num_steps, 700))
    for time, unit in zip(times.astype(float), units, strict=True):
        step = int(time * 1000 / step_ms + 1e-2)
        if step < num_steps:
            frames[step, unit] += 1
    return frames


def test_the_layout_is_shds(file):
    with h5py.File(file) as data:
        assert h5py.check_vlen_dtype(data["spikes/times"].dtype) == np.float16
        assert h5py.check_vlen_dtype(data["spikes/units"].dtype) == np.uint16
        assert data["labels"].dtype == np.uint16 and data["extra/speaker"].shape == (30,)
        assert [key.decode() for key in data["extra/keys"]][:2] == ["0", "1"]


def test_reading(file):
    spikes = SpikeFile(file, 20)
    assert len(spikes) == 30 and spikes.labels.tolist()[:3] == [0, 1, 2]
    assert spikes.extra["speaker"].tolist()[:4] == [0, 1, 2, 0] and set(spikes.extra) == {"speaker"}
    some = spikes.read(5, 8)
    assert len(some) == 3 and some.offsets.tolist() == [0, 300, 600, 900]
    with h5py.File(file) as data:
        np.testing.assert_array_equal(some.units[300:600], data["spikes/units"][6])
        np.testing.assert_array_equal(some.times[300:600], data["spikes/times"][6].astype(np.float32))


@pytest.mark.parametrize(("num_steps", "step_ms"), [(100, 10.0), (30, 10.0), (7, 150.0)])
def test_frames_count_the_spikes(file, num_steps, step_ms):
    binned = BinnedSpikes(SpikeFile(file, 20), num_steps, step_ms, progress=False)
    frames = shd_module.SpikeFrames(binned, np.arange(30))
    for index in (0, 13, 29):
        got, label = frames[index]
        np.testing.assert_array_equal(got.numpy(), frames_by_hand(file, index, num_steps, step_ms))
        assert label == index % 20
    assert shd_module.SpikeFrames(binned, np.arange(30), clip=1)[0][0].max() == 1


def test_each_its_own_length(tmp_path):
    path = tmp_path / "a.h5"
    write_spike_file(path, [[0.012, 0.3], [], [0.0049]], [[3, 3], [], [699]], [0, 1, 2], list("abc"), {})
    binned = BinnedSpikes(SpikeFile(path, 3), None, 10.0, progress=False)
    frames = [shd_module.SpikeFrames(binned, np.arange(3))[i][0] for i in range(3)]
    assert [len(one) for one in frames] == [31, 1, 1]  # 0.3 is 0.2998 in float16, and still belongs to step 30
    assert [int(one.sum()) for one in frames] == [2, 0, 1] and frames[0][1, 3] == frames[0][30, 3] == 1


def test_an_interrupted_cache_goes_on(file, private_cache, monkeypatch):
    monkeypatch.setattr(spike_cache, "PORTION", 8)
    reading, read = [], SpikeFile.read

    def stop_at_the_third(self, low, high):
        if len(reading) == 2:
            raise KeyboardInterrupt
        reading.append(low)
        return read(self, low, high)

    monkeypatch.setattr(SpikeFile, "read", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)
    (made,) = [path for path in private_cache.iterdir() if path.is_dir()]
    assert len(list(made.glob("portion-*.npy"))) == 2
    monkeypatch.setattr(SpikeFile, "read", lambda self, low, high: (reading.append(low), read(self, low, high))[1])
    binned = BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)
    assert reading == [0, 8, 16, 24]
    frames = shd_module.SpikeFrames(binned, np.arange(30))
    np.testing.assert_array_equal(frames[29][0].numpy(), frames_by_hand(file, 29, 100, 10.0))
    monkeypatch.setattr(SpikeFile, "read", None)
    BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)  # complete: the file is not read again


def test_a_damaged_cache_is_built_again(file, private_cache):
    BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)
    (portion,) = private_cache.rglob("portion-*.npy")
    whole = portion.read_bytes()
    portion.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"portion-00000\.npy is damaged and will be built again"):
        BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)
    assert portion.read_bytes() == whole


def test_the_cache_knows_its_settings_and_its_file(file, private_cache):
    for num_steps, step_ms in ((100, 10.0), (50, 10.0), (100, 20.0)):
        BinnedSpikes(SpikeFile(file, 20), num_steps, step_ms, progress=False)
    write_spikes(file, 30, 20, seed=5)
    BinnedSpikes(SpikeFile(file, 20), 100, 10.0, progress=False)
    assert len(list(private_cache.glob("some-*"))) == 4


def test_a_cache_that_cannot_be_written_says_so(file, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    with pytest.raises(OSError, match="the cache of spikes could not be written.*STLLR_CACHE"):
        BinnedSpikes(SpikeFile(file, 20), 100, 10.0, cache_dir=blocked, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("labels"), r"not in the layout of SHD: \['labels'\] are missing"),
        (lambda f: f["labels"].write_direct(np.full(30, 20, np.uint16)), "labels must be 0 to 19"),
        (lambda f: f["spikes/units"].__setitem__(3, np.full(300, 700, np.uint16)), "recording 3 has a unit outside"),
        (lambda f: f["spikes/times"].__setitem__(4, np.full(300, np.nan, np.float16)), "recording 4 has a time that"),
        (lambda f: f["spikes/times"].__setitem__(5, np.zeros(3, np.float16)), "recording 5 has 3 times and 300 units"),
    ],
)
def test_faults_name_the_file(file, change, message):
    with h5py.File(file, "r+") as data:
        change(data)
    with pytest.raises(EventDataError, match=message) as caught:
        SpikeFile(file, 20).read(0, 30)
    assert str(file) in str(caught.value)


def test_files_that_are_none(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        SpikeFile(tmp_path / "nowhere.h5", 20)
    content = file.read_bytes()
    for damaged in (b"text", content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(EventDataError, match="no HDF5 file, or cut off or damaged") as caught:
            SpikeFile(file, 20).read(0, 30)
        assert str(file) in str(caught.value)


def test_a_file_appears_when_it_is_complete(tmp_path):
    with pytest.raises(ValueError):
        write_spike_file(tmp_path / "a.h5", [[0.1]], [["no number"]], [0], ["a"], {})
    assert list(tmp_path.glob("*a.h5*")) == []


def test_shd_parts(folder):
    module = SHDDataModule(folder, batch_size=8, val_fraction=0.5, progress=False)
    module.prepare_data()
    module.setup()
    frames, lengths, labels = next(iter(module.train_dataloader()))
    assert frames.shape == (8, 100, 700) and lengths.tolist() == [100] * 8 and labels.max() < 20
    train, val, test = (module.dataset(part) for part in ("train", "val", "test"))
    assert sorted([*train.indices, *val.indices]) == list(range(40)) and len(test) == 40
    assert sorted(val.labels) == list(range(20))
    assert not torch.equal(train[0][0], test[int(train.indices[0])][0])
    assert module.report()["split"].startswith("the official test part; 20 of the 40 training recordings")


def test_spikes_replaced_by_as_many(folder):
    """In the middle of a file of the same size."""

    def first():
        module = SHDDataModule(folder, progress=False)
        module.setup()
        return module.dataset("test")[20][0]

    before, path = first(), folder / "shd_test.h5"
    size = path.stat().st_size
    with h5py.File(path, "r+") as file:
        file["spikes/units"][20] = file["spikes/units"][20][::-1]
    assert path.stat().st_size == size
    assert not torch.equal(first(), before)


def test_shd_as_published_validates_on_the_test_part(folder):
    module = SHDDataModule(folder, val_fraction=0, progress=False)
    module.setup()
    assert len(module.dataset("train")) == 40 and module.report()["split"].endswith("are the validation recordings too")
    assert torch.equal(module.dataset("val")[3][0], module.dataset("test")[3][0])


def test_ssc_has_a_validation_part(tmp_path):
    module = SSCDataModule(write_heidelberg(tmp_path, "ssc", 35, ("train", "valid", "test")), progress=False)
    module.setup()
    assert [len(module.dataset(part)) for part in ("train", "val", "test")] == [40, 40, 40]
    assert not torch.equal(module.dataset("train")[0][0], module.dataset("val")[0][0])
    assert module.num_classes == 35


def test_workers_and_augmentation(folder):
    options = {"batch_size": 20, "max_shift": 5, "event_drop": 0.2, "progress": False}
    modules = [SHDDataModule(folder, num_workers=workers, **options) for workers in (0, 2)]
    plain = SHDDataModule(folder, batch_size=20, progress=False)
    for module in (*modules, plain):
        module.setup()
    for ours, theirs in zip(*(module.train_dataloader() for module in modules), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    changed, original = modules[0].dataset("train"), plain.dataset("train")
    assert 0.7 < float(changed[0][0].sum() / original[0][0].sum()) < 0.9
    shifts = {int(np.argmax(np.correlate(changed[0, e][0].sum(0), original[0][0].sum(0), "full"))) for e in range(8)}
    assert len(shifts) > 3 and all(abs(shift - 699) <= 5 for shift in shifts)
    assert torch.equal(modules[0].dataset("test")[0][0], plain.dataset("test")[0][0])


def test_missing_files_and_wrong_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no such folder.*SHD's files"):
        SHDDataModule(tmp_path / "none").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"\['ssc_train.h5', .*are not in this folder; it has \['shd_test.h5'"):
        SSCDataModule(folder).prepare_data()


def test_download(tmp_path, monkeypatch):
    """The archives' own layout: a .zip with the .h5 file in it."""
    source = write_heidelberg(tmp_path / "source", "shd", 20, ("train", "test"))
    checksums = dict(shd_module._FILES)
    for part in ("train", "test"):
        archive = source / f"shd_{part}.h5.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.write(source / f"shd_{part}.h5", f"shd_{part}.h5")
        checksums[f"shd_{part}"] = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    monkeypatch.setattr(shd_module, "_FILES", checksums)
    monkeypatch.setattr(shd_module, "_MIRRORS", ("file:///nowhere/", f"{source.as_uri()}/"))
    monkeypatch.setenv("STLLR_DATA", str(tmp_path / "data"))
    module = SHDDataModule(progress=False)
    module.prepare_data()
    module.setup()
    assert len(module.dataset("test")) == 40
    for archive in (tmp_path / "data").rglob("*.zip"):
        os.remove(archive)
    SHDDataModule(progress=False).prepare_data()  # what is unpacked is not fetched again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"step_ms": 0.0}, "step_ms"),
        ({"clip": 0}, "clip"),
        ({"event_drop": 1.0}, "event_drop"),
        ({"val_fraction": -0.1}, "val_fraction"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SHDDataModule("anywhere", **arguments)
