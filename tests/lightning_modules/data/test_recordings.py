"""The public event-camera sets: found in their real layouts, cut and split as stated; clear errors."""

import os
import pickle
import shutil
import tarfile
import warnings
import zipfile

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_modules.data import (
    CIFAR10DVSDataModule,
    DownloadError,
    DVSGestureDataModule,
    EventDataError,
    NCaltech101DataModule,
    NCARSDataModule,
    NMNISTDataModule,
    frame_cache,
    recordings,
)
from lightning_modules.data.recordings import files_of
from tests.lightning_modules import event_files as files

SETS = {
    "nmnist": (NMNISTDataModule, files.write_nmnist, (15, 2, 34, 34)),
    "ncars": (NCARSDataModule, files.write_ncars, (10, 2, 50, 60)),
    "ncaltech101": (NCaltech101DataModule, files.write_ncaltech101, (10, 2, 45, 60)),
    "cifar10_dvs": (CIFAR10DVSDataModule, files.write_cifar10_dvs, (10, 2, 48, 48)),
    "dvs_gesture": (DVSGestureDataModule, files.write_dvs_gesture, (20, 2, 32, 32)),
    "dvs_gesture_npy": (DVSGestureDataModule, files.write_dvs_gesture_npy, (20, 2, 32, 32)),
}
PARTS = ("train", "val", "test")


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Each set, written once."""
    root, written = tmp_path_factory.mktemp("sets"), {}

    def folder(name):
        if name not in written:
            written[name] = SETS[name][1](root / name)
        return written[name]

    return folder


@pytest.fixture(autouse=True)
def datasets_folder(tmp_path, monkeypatch):
    """Nothing is fetched, and the user's data sets are not looked at."""
    monkeypatch.setenv("STLLR_DATA", str(tmp_path / "datasets"))

    def refuse(*args, **kwargs):
        raise AssertionError("tried to use the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return tmp_path / "datasets"


def make(name, path, **options):
    module = SETS[name][0](path, **options)
    module.progress = False
    module.prepare_data()
    module.setup()
    return module


def members(module):
    return {part: set(module.dataset(part).indices.tolist()) for part in PARTS}


def sources(module, part):
    return set(module._cached.sources[module.dataset(part).indices].tolist())


@pytest.mark.parametrize("name", SETS)
def test_batches_have_the_paper_s_shape(name, originals):
    module = make(name, originals(name), batch_size=2)
    shape = SETS[name][2]
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        frames, lengths, labels = next(iter(loader))
        assert frames.shape == (2, *shape) and frames.dtype == torch.float32
        assert lengths.tolist() == [shape[0]] * 2 and labels.dtype == torch.int64
        assert frames.sum() > 0
    assert module.frame_shape == shape[1:]


@pytest.mark.parametrize("name", SETS)
def test_no_file_is_in_two_parts(name, originals):
    module = make(name, originals(name))
    parts = [sources(module, part) for part in PARTS]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts))


@pytest.mark.parametrize("name", SETS)
def test_every_class_is_there_and_has_its_number(name, originals):
    module = make(name, originals(name))
    labels = np.concatenate([module.dataset(part).labels for part in PARTS])
    assert sorted(set(labels.tolist())) == list(range(module.num_classes))


@pytest.mark.parametrize("name", SETS)
def test_second_run_uses_the_cache(name, originals, monkeypatch):
    first = make(name, originals(name), max_shift=1, batch_size=4)

    def refuse(*args):
        raise AssertionError("read again")

    monkeypatch.setattr(SETS[name][0], "read", refuse)
    second = make(name, originals(name), max_shift=1, batch_size=4, num_workers=2)
    for ours, theirs in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_another_process_maps_the_frames_itself(originals):
    dataset = make("nmnist", originals("nmnist"), max_shift=1).dataset("train")
    content = pickle.dumps(dataset)
    assert len(content) < 20_000 < dataset._frames.numel()
    again = pickle.loads(content)
    for i in (0, 5, 17):
        assert torch.equal(again[i, 2][0], dataset[i, 2][0]) and again[i, 2][1] == dataset[i, 2][1]


def test_cache_follows_data_and_settings(originals, tmp_path, private_cache):
    folder = shutil.copytree(originals("nmnist"), tmp_path / "copy")
    for options in ({}, {"num_steps": 5}, {"downsample": 2}, {"batch_size": 3, "seed": 5, "clip": 1}):
        make("nmnist", folder, **options)
    assert len(list(private_cache.glob("nmnist*"))) == 3
    files.write(folder / "Train" / "3" / "99999.bin", files.atis_bin(files.random_events(5)))
    make("nmnist", folder)
    assert len(list(private_cache.glob("nmnist*"))) == 4


@pytest.mark.parametrize("keep_date", [False, True])
def test_recording_replaced_by_one_of_the_same_size(originals, tmp_path, keep_date):
    folder = shutil.copytree(originals("nmnist"), tmp_path / "copy")
    before = make("nmnist", folder).dataset("train")
    frames = before._frames.clone()
    path = folder / "Train" / "3" / sorted(p.name for p in (folder / "Train" / "3").iterdir())[0]
    dates, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])  # one event, one column further
    if keep_date:
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert not torch.equal(make("nmnist", folder).dataset("train")._frames, frames)
    path.write_bytes(content)
    assert torch.equal(make("nmnist", folder).dataset("train")._frames, frames)


def test_frames_count_the_events_of_the_file(originals):
    module = make("nmnist", originals("nmnist"), num_steps=31)
    position = 4
    index = int(module.dataset("test").indices[position])
    recording = module._recordings[int(module._cached.sources[index])]
    assert recording.part == "test"
    events = files.random_events(int(recording.path.stem))
    wanted = np.zeros((31, 2, 34, 34))
    np.add.at(wanted, (events["t"] // 10_000, events["p"].astype(int), events["y"], events["x"]), 1)
    frames, label = module.dataset("test")[position]
    np.testing.assert_array_equal(frames.numpy(), wanted)
    assert label == recording.label == int(recording.path.parent.name)


@pytest.mark.parametrize("name", SETS)
def test_names_tell_what_and_how_much(name, originals):
    module = make(name, originals(name))
    report = module.report()
    assert "recordings)" in report["dataset"] or "recordings;" in report["dataset"]
    assert "split seed 0" in report["split"] and "train/val/test samples" in report["split"]
    assert report["train"] == len(module.dataset("train"))


def test_name_of_the_complete_set(originals, monkeypatch):
    monkeypatch.setattr(NMNISTDataModule, "official_count", 40)
    assert make("nmnist", originals("nmnist")).dataset_name == "N-MNIST"


@pytest.mark.parametrize("name", ["ncars", "cifar10_dvs", "ncaltech101"])
def test_test_samples_depend_on_the_split_seed_alone(name, originals):
    folder = originals(name)
    modules = [make(name, folder), make(name, folder, val_fraction=0.3, seed=5), make(name, folder, split_seed=1)]
    first, same, other = (members(module) for module in modules)
    assert first["test"] == same["test"] and first["train"] != same["train"]
    assert first != other and (first["test"] == other["test"]) == (name == "ncars")


@pytest.mark.parametrize("name", SETS)
def test_without_validation_part_the_test_samples_validate_and_the_name_says_so(name, originals):
    options = {"val_users": 0} if name.startswith("dvs") else {"val_fraction": 0}
    module = make(name, originals(name), **options)
    assert members(module)["val"] == members(module)["test"]
    assert "validated on the test samples" in module.split_name


def test_cifar10_dvs_is_split_per_class(originals):
    module = make("cifar10_dvs", originals("cifar10_dvs"))
    assert np.bincount(module.dataset("test").labels).tolist() == [1] * 10
    assert module.split_name == "81/9/10 train/val/test samples, 90/10 per class, split seed 0"


def test_cifar10_dvs_last_tenth_by_number(originals):
    module = make("cifar10_dvs", originals("cifar10_dvs"), test_split="last")
    names = {module._recordings[number].path.stem.rpartition("_")[2] for number in sources(module, "test")}
    assert names == {"9"} and "last 10%" in module.split_name
    with pytest.raises(ValueError, match="test_split"):
        CIFAR10DVSDataModule(test_split="random")


def test_cifar10_dvs_forms_agree(tmp_path):
    modules = [make("cifar10_dvs", files.write_cifar10_dvs(tmp_path / form, 10, form)) for form in ("aedat", "aedat4")]
    for ours, theirs in zip(*(module.test_dataloader() for module in modules), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert (modules[0].dataset("test")[0][0].sum((1, 2, 3)) > 0).all(), "steps follow the recording's own duration"


def test_cifar10_dvs_steps_of_fixed_duration(originals):
    module = make("cifar10_dvs", originals("cifar10_dvs"), num_steps=20, bin_us=100_000)
    assert module.dataset("test")[0][0].shape[0] == 13


def test_numbers_in_names_are_numbers(tmp_path):
    for name in ("c_10.bin", "c_9.bin", "c_100.bin", "._c_1.bin", "c_2.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in files_of(tmp_path, ".bin")] == ["c_9.bin", "c_10.bin", "c_100.bin"]


@pytest.mark.parametrize("name", ["dvs_gesture", "dvs_gesture_npy"])
def test_gestures_are_cut_into_slices(name, originals):
    module = make(name, originals(name))
    counts = np.bincount(module._cached.sources)
    assert set(counts.tolist()) == ({22} if name == "dvs_gesture" else {2}), "3.2 s make two slices of 1.5 s"
    events = files.random_events([24, 4], 120, 128, 128, 3_200_000)
    if name == "dvs_gesture_npy":
        events["t"] = events["t"] // 1000 * 1000
        events["t"] -= events["t"][0]
    else:
        events = files.random_events([24, 5], 120, 128, 128, 3_200_000)
    wanted = np.zeros((2, 20, 2, 32, 32))
    step = events["t"] // 75_000
    kept = events[step < 40]
    step = step[step < 40]
    np.add.at(wanted, (step // 20, step % 20, kept["p"].astype(int), kept["y"] // 4, kept["x"] // 4), 1)
    found = [frames.numpy() for frames, label in module.dataset("test") if label == 4]
    np.testing.assert_array_equal(np.stack(found), wanted)


@pytest.mark.parametrize("name", ["dvs_gesture", "dvs_gesture_npy"])
def test_uncut_test_recordings(name, tmp_path):
    folder = SETS[name][1](tmp_path, users=(1, 2), shorten_us=100_000)
    module = make(name, folder, uncut_test=True, batch_size=11, val_users=1)
    frames, lengths, labels = next(iter(module.test_dataloader()))
    assert sorted(labels.tolist()) == list(range(11)) and lengths.max() == frames.shape[1] <= 43
    assert lengths.min() > 20 and lengths.unique().numel() > 1
    for row, length in zip(frames, lengths, strict=True):
        assert row[length - 1].sum() > 0 and row[length:].sum() == 0
    assert next(iter(module.train_dataloader()))[0].shape[1] == 20
    assert "uncut" in module.dataset_name and "slices" in make(name, folder, val_users=1).dataset_name


def test_short_gesture_makes_one_slice(tmp_path):
    module = make("dvs_gesture", files.write_dvs_gesture(tmp_path, gesture_us=700_000))
    assert len(module.dataset("test")) == 11
    assert module.dataset("test")[0][0].shape == (20, 2, 32, 32)


def test_people_are_in_one_part(originals):
    module = make("dvs_gesture_npy", originals("dvs_gesture_npy"), val_users=2)
    people = {part: {module._recordings[number].group for number in sources(module, part)} for part in PARTS}
    assert people["test"] == {"user24"} and len(people["val"]) == 2 and not people["val"] & people["train"]
    other = make("dvs_gesture_npy", originals("dvs_gesture_npy"), val_users=2, split_seed=3)
    assert members(other)["val"] != members(module)["val"] and members(other)["test"] == members(module)["test"]


@pytest.mark.parametrize("uncut", [False, True])
def test_a_trainer_trains_and_tests_on_lists_of_trials(originals, uncut, tmp_path):
    class Linear(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2 * 32 * 32, 11)

        def training_step(self, batch, batch_idx):
            frames, lengths, labels = batch
            return torch.nn.functional.cross_entropy(self.layer(frames.sum(1).flatten(1)), labels)

        def test_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    model, module = Linear(), DVSGestureDataModule(originals("dvs_gesture"), uncut_test=uncut, num_workers=2)
    module.progress = False
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, module)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    stored = torch.load(checkpoint, weights_only=True)["DVSGestureDataModule"]
    assert stored == {"dataset": module.dataset_name, "split": module.split_name}
    (parameters,) = tmp_path.rglob("hparams.yaml")
    assert "3 people for validation" in " ".join(parameters.read_text().split())
    trainer.test(model, module, ckpt_path=checkpoint, verbose=False, weights_only=True)
    other = DVSGestureDataModule(originals("dvs_gesture"), uncut_test=uncut, val_users=1)
    with pytest.warns(UserWarning, match="another split"):
        trainer.test(model, other, ckpt_path=checkpoint, verbose=False, weights_only=True)


# What goes wrong.


@pytest.mark.parametrize("name", SETS)
def test_wrong_folder_says_what_was_expected_and_found(name, tmp_path):
    (tmp_path / "holiday pictures").mkdir()
    with pytest.raises(EventDataError) as caught:
        make(name, tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text and "holiday pictures" in text
    assert SETS[name][0].layout in text and "By hand" in text and "--data.path" in text


@pytest.mark.parametrize("name", SETS)
def test_folder_that_is_none(name, tmp_path):
    with pytest.raises(EventDataError, match="nowhere: no such folder"):
        make(name, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(EventDataError, match="file: a file, not a folder"):
        make(name, tmp_path / "file")


@pytest.mark.parametrize("name", ["nmnist", "ncars", "ncaltech101", "cifar10_dvs", "dvs_gesture", "dvs_gesture_npy"])
def test_cut_recording_is_named_and_the_cache_is_not_there(name, originals, tmp_path, private_cache):
    folder = shutil.copytree(originals(name), tmp_path / "copy")
    *_, victim = sorted(path for path in folder.rglob("*") if path.suffix in (".bin", ".dat", ".aedat", ".npy"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-3])
    with pytest.raises(EventDataError, match=victim.name) as caught:
        make(name, folder)
    assert str(victim) in str(caught.value)
    assert not list(private_cache.rglob("index.npz"))
    victim.write_bytes(content)
    make(name, folder)


def remove_folder(folder, name):
    shutil.rmtree(folder / name)


def remove_file(folder, name):
    (folder / name).unlink()


def empty(folder, name):
    (folder / name).write_text("\n")


@pytest.mark.parametrize(
    ("name", "damage", "what", "message"),
    [
        ("nmnist", remove_folder, "Test", "N-MNIST's test part is missing"),
        ("nmnist", remove_folder, "Train/7", "Train/7: no recordings"),
        ("ncars", remove_folder, "n-cars_test", "N-CARS' test part is missing"),
        ("ncars", remove_folder, "n-cars_train/background", "n-cars_train/background: no recordings"),
        ("ncaltech101", remove_folder, "Caltech101/class_050", "100 classes instead of 101"),
        ("cifar10_dvs", remove_folder, "frog", "recordings of frog are missing"),
        ("dvs_gesture", remove_file, "trials_to_test.txt", "trials_to_test.txt: missing"),
        ("dvs_gesture", empty, "trials_to_train.txt", "trials_to_train.txt: it lists no"),
        ("dvs_gesture", remove_file, "user02_led.aedat", "user02_led.aedat: missing, but trials_to_train.txt lists"),
        ("dvs_gesture", remove_file, "user24_led_labels.csv", "user24_led_labels.csv: missing"),
        ("dvs_gesture", empty, "user24_led_labels.csv", "user24_led_labels.csv: expected the columns class,start"),
        ("dvs_gesture_npy", remove_folder, "ibmGestureTest", "ibmGestureTest with the test part is missing"),
    ],
)
def test_missing_parts_are_named(name, damage, what, message, originals, tmp_path):
    folder = shutil.copytree(originals(name), tmp_path / "copy")
    damage(folder, what)
    with pytest.raises(EventDataError, match=message):
        make(name, folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1,2", "line 2: expected three whole numbers"),
        ("1,5,x", "line 2: expected three whole numbers"),
        ("12,5,9", "line 2: class 12, expected 1 to 11"),
        ("", "no gestures"),
    ],
)
def test_wrong_labels_are_named_with_their_line(lines, message, originals, tmp_path):
    folder = shutil.copytree(originals("dvs_gesture"), tmp_path / "copy")
    (folder / "user01_led_labels.csv").write_text(f"class,startTime_usec,endTime_usec\n{lines}\n")
    with pytest.raises(EventDataError, match=rf"user01_led_labels\.csv.*{message}"):
        make("dvs_gesture", folder)


def test_gesture_that_ends_before_it_begins_is_left_out(originals, tmp_path):
    folder = shutil.copytree(originals("dvs_gesture"), tmp_path / "copy")
    table = folder / "user24_led_labels.csv"
    header, first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([header, "1,9,3", *rest]))
    with pytest.warns(UserWarning, match=r"user24_led_labels\.csv, line 2"):
        module = make("dvs_gesture", folder)
    assert 0 not in module.dataset("test").labels


def test_changed_labels_make_another_cache(originals, tmp_path):
    folder = shutil.copytree(originals("dvs_gesture"), tmp_path / "copy")
    make("dvs_gesture", folder)
    table = folder / "user24_led_labels.csv"
    table.write_text(table.read_text().replace("\n1,", "\n9,"))
    assert 0 not in make("dvs_gesture", folder).dataset("test").labels


def test_arrays_of_other_kinds_are_named(originals, tmp_path):
    folder = shutil.copytree(originals("dvs_gesture_npy"), tmp_path / "copy")
    path = folder / "ibmGestureTrain" / "user01_led" / "3.npy"
    np.save(path, np.zeros((4, 3)))
    with pytest.raises(EventDataError, match=r"3\.npy: expected columns"):
        make("dvs_gesture_npy", folder)
    path.rename(path.with_name("eleven.npy"))
    with pytest.raises(EventDataError, match=r"eleven\.npy: its name"):
        make("dvs_gesture_npy", folder)


def test_recording_of_another_sensor_is_named_and_strays_are_dropped(originals, tmp_path):
    folder = shutil.copytree(originals("nmnist"), tmp_path / "copy")
    path = folder / "Test" / "0" / "00000.bin"
    events = files.random_events(0, 500)
    events["x"][7] = 40
    path.write_bytes(files.atis_bin(events))
    module = make("nmnist", folder)
    assert module.dataset("test")[0][0].sum() == 499
    path.write_bytes(files.atis_bin(files.random_events(0, 500, 100, 100)))
    with pytest.raises(EventDataError, match=r"00000\.bin: \d+ of 500 events lie outside .*N-MNIST"):
        make("nmnist", folder, num_steps=3)


def test_full_disk_names_the_cache(originals, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frame_cache, "write_archive", full)
    with pytest.raises(frame_cache.CacheError, match="no room on the disk"):
        make("nmnist", originals("nmnist"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nmnist", {"val_fraction": 1.0}, "val_fraction"),
        ("ncaltech101", {"test_fraction": 0.0}, "test_fraction"),
        ("dvs_gesture", {"val_users": -1}, "val_users"),
        ("dvs_gesture", {"slice_us": 0}, "slice_us"),
        ("dvs_gesture", {"bin_us": 10}, "slice_us"),
        ("cifar10_dvs", {"size": (0, 1)}, "size"),
    ],
)
def test_arguments_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        SETS[name][0](**options)


def test_more_validation_people_than_there_are(originals):
    with pytest.raises(EventDataError, match="val_users is 4, but only 4"):
        make("dvs_gesture", originals("dvs_gesture"), val_users=4)


# Archives and downloads.


def zipped(folder, archive):
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, path.relative_to(folder.parent))
    return archive


@pytest.fixture
def offered(monkeypatch, tmp_path):
    """A source that offers archives: name to file."""
    shelf = {}

    def fetch(file, folder, progress=True):
        if file.name not in shelf:
            raise DownloadError(f"{file.name} could not be fetched")
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(shelf[file.name], folder / file.name)

    monkeypatch.setattr(recordings, "fetch", fetch)
    monkeypatch.setattr(recordings, "verify", lambda *args: None)
    return shelf


def test_what_is_not_there_is_fetched_and_unpacked(originals, tmp_path, offered, datasets_folder):
    for name in ("Train", "Test"):
        offered[f"{name}.zip"] = zipped(originals("nmnist") / name, tmp_path / f"{name}.zip")
    module = make("nmnist", None)
    assert len(module.dataset("test")) == 10 and (datasets_folder / "nmnist" / "Train" / "Train" / "0").is_dir()
    offered.clear()
    make("nmnist", None, num_steps=4)


def test_half_fetched_set_is_completed(originals, tmp_path, offered, datasets_folder):
    offered["Train.zip"] = zipped(originals("nmnist") / "Train", tmp_path / "Train.zip")
    with pytest.raises(DownloadError, match=r"Test\.zip"):
        make("nmnist", None)
    offered["Test.zip"] = zipped(originals("nmnist") / "Test", tmp_path / "Test.zip")
    assert len(make("nmnist", None).dataset("test")) == 10


def test_archives_of_classes(originals, tmp_path, offered):
    for name in files.CIFAR10:
        offered[f"{name}.zip"] = zipped(originals("cifar10_dvs") / name, tmp_path / f"{name}.zip")
    assert len(make("cifar10_dvs", None).dataset("test")) == 10


def test_archive_in_the_given_folder_with_archives_in_it(originals, tmp_path, offered):
    inner = tmp_path / "Prophesee_Dataset_n_cars"
    inner.mkdir()
    for part in ("train", "test"):
        zipped(originals("ncars") / f"n-cars_{part}", inner / f"n-cars_{part}.zip")
    given = tmp_path / "given"
    given.mkdir()
    zipped(inner, given / "Prophesee_Dataset_n_cars.zip")
    assert make("ncars", given).report()["test"] == 6


def test_original_archive_of_dvs_gesture_in_the_given_folder(originals, tmp_path, offered):
    given = tmp_path / "given"
    given.mkdir()
    with tarfile.open(given / "DvsGesture.tar.gz", "w:gz") as out:
        out.add(originals("dvs_gesture"), "DvsGesture")
    assert "original" in make("dvs_gesture", given).dataset_name


def test_known_archive_is_checked_before_it_is_unpacked(tmp_path):
    (tmp_path / "Train.zip").write_bytes(b"PK not really")
    with pytest.raises(EventDataError, match=r"Train\.zip: cut off, damaged or another file"):
        make("nmnist", tmp_path)


def test_given_folder_is_never_filled_from_the_network(tmp_path, offered, originals):
    offered["Train.zip"] = offered["Test.zip"] = tmp_path / "none"
    with pytest.raises(EventDataError, match="N-MNIST is not here"):
        make("nmnist", tmp_path)


def test_layout_of_other_years(originals, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(originals("ncars") / f"n-cars_{part}", tmp_path / f"n-cars_{part}" / part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make("ncars", tmp_path).report()["test"] == 6


def test_annotations_beside_ncaltech101_are_not_taken_for_it(originals, tmp_path):
    (tmp_path / "Caltech101").symlink_to(originals("ncaltech101") / "Caltech101")
    shutil.copytree(originals("ncaltech101") / "Caltech101", tmp_path / "Annotations_Caltech101")
    assert {path.path.parts[-3] for path in NCaltech101DataModule().find(tmp_path)} == {"Caltech101"}
