from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_modules.data import (
    EventDataError,
    EventDigitsDataModule,
    EventFrameDataModule,
    NMNISTSubsetDataModule,
    make_events,
    read_nmnist_subset,
    write_nmnist_subset,
)
from tests.lightning_modules.data.packing import pack

REAL_FILE = Path(__file__).parents[3].parent / "shared" / "data" / "nmnist_small.npz"


@pytest.fixture
def subset_file(tmp_path, random_recordings):
    path = tmp_path / "subset.npz"
    write_nmnist_subset(path, random_recordings(110), n_train=100)
    return path


def subset(path, **kwargs):
    return NMNISTSubsetDataModule(path, train_size=80, val_size=10, test_size=30, **kwargs)


@pytest.fixture
def digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")

    def make(**kwargs):
        return EventDigitsDataModule(num_samples=60, **{"num_steps": 4, "batch_size": 8, **kwargs})

    return make


def indices(module):
    return {part: set(module.dataset(part).indices.tolist()) for part in ("train", "val", "test")}


def assert_disjoint_and_stratified(module, labels, sizes):
    parts = indices(module)
    assert [len(parts[part]) for part in ("train", "val", "test")] == list(sizes)
    assert len(set.union(*parts.values())) == sum(sizes)
    for part in parts.values():
        wanted = np.bincount(labels, minlength=10) * len(part) / len(labels)
        assert np.abs(np.bincount(labels[sorted(part)], minlength=10) - wanted).max() < 3


def test_digits_batches(digits):
    module = digits(downsample=2)
    module.prepare_data()
    module.setup()
    frames, lengths, labels = next(iter(module.train_dataloader()))
    assert frames.shape == (8, 4, *module.frame_shape) == (8, 4, 2, 17, 17)
    assert frames.dtype == torch.float32 and lengths.tolist() == [4] * 8
    assert labels.dtype == lengths.dtype == torch.int64
    assert sum(len(batch[2]) for batch in module.test_dataloader()) == 12
    for loaded in (module.val_dataloader(), module.predict_dataloader()):
        assert next(iter(loaded))[0].shape[1:] == (4, 2, 17, 17)


def test_digits_split(digits):
    module = digits()
    module.setup()
    assert_disjoint_and_stratified(module, module.load_events().labels, (42, 6, 12))


def test_digits_report_names_data_and_split(digits):
    module = digits()
    module.setup()
    report = module.report()
    assert report["dataset"].startswith("EventDigits v1") and "first 60" in report["dataset"]
    assert report["split"] == "42/6/12 train/val/test, stratified, split seed 0"
    assert report["steps"] == (4, 4) and report["step_us"] == 75_000 and report["frame_shape"] == (2, 34, 34)
    assert 3000 < report["events_per_recording"] < 5000


def test_two_modules_give_the_same_batches(digits):
    first, second, other = digits(seed=3), digits(seed=3), digits(seed=4)
    for module in (first, second, other):
        module.setup()
    batches = [next(iter(module.train_dataloader())) for module in (first, second, other)]
    assert torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], batches[2][0])
    assert indices(first) == indices(other), "the split has a seed of its own"


def test_seed_follows_seed_everything(digits, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert digits().seed == 7 and digits(seed=2).seed == 2
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert digits().seed == 0


def test_only_training_samples_are_augmented(digits):
    plain, augmented = digits(), digits(max_shift=3, event_drop=0.2)
    for module in (plain, augmented):
        module.setup()
    for part, equal in (("train", False), ("val", True), ("test", True)):
        assert torch.equal(plain.dataset(part)[0][0], augmented.dataset(part)[0][0]) == equal


def test_frames_are_binned_once(digits, monkeypatch):
    module = digits()
    module.setup("fit")
    monkeypatch.setattr("lightning_modules.data.datamodule.bin_events", None)
    module.setup("test")
    list(module.test_dataloader())


def test_trainer_runs_on_it(digits):
    class Linear(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2 * 17 * 17, 10)
            self.seen = []

        def training_step(self, batch, batch_idx):
            frames, lengths, labels = batch
            self.seen.append(labels.tolist())
            return torch.nn.functional.cross_entropy(self.layer(frames.sum(1).flatten(1)), labels)

        def test_step(self, batch, batch_idx):
            assert batch[0].shape[1:] == (4, 2, 17, 17)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    model, module = Linear(), digits(downsample=2, num_workers=2)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, module)
    trainer.test(model, module, verbose=False)
    batches = len(model.seen) // 2
    assert sorted(sum(model.seen[:batches], [])) == sorted(sum(model.seen[batches:], []))
    assert model.seen[:batches] != model.seen[batches:]


def test_variable_lengths(subset_file):
    module = subset(subset_file, num_steps=None, bin_us=10_000, batch_size=16)
    module.setup()
    frames, lengths, _ = next(iter(module.test_dataloader()))
    assert lengths.max() == frames.shape[1] and lengths.unique().numel() > 1
    for row, length in zip(frames, lengths, strict=True):
        assert row[length - 1].sum() > 0 and row[length:].sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"clip": 0}, "clip"),
        ({"seed": -1}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"max_shift": -2}, "max_shift"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave something"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EventDigitsDataModule(**arguments)


def test_loaders_before_setup_say_so(digits):
    with pytest.raises(RuntimeError, match=r"EventDigitsDataModule.setup\(\)"):
        digits().train_dataloader()


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        EventFrameDataModule()


def test_subset_file_round_trip(subset_file, random_recordings):
    packed, n_train = read_nmnist_subset(subset_file)
    assert n_train == 100 and len(packed) == 110
    for i in (0, 57, 109):
        np.testing.assert_array_equal(packed.recording(i), random_recordings(110).recording(i))


def test_subset_split_and_names(subset_file):
    module = subset(subset_file)
    module.prepare_data()
    module.setup()
    assert_disjoint_and_stratified(module, np.arange(110) % 10, (70, 10, 30))
    report = module.report()
    assert report["dataset"] == "N-MNIST, 100+10 subset"
    assert report["split"] == "re-split 80/30 (stratified, split seed 0), 10 of the 80 for validation"


def test_subset_test_samples_do_not_depend_on_the_validation_part(subset_file):
    modules = [NMNISTSubsetDataModule(subset_file, 80, val_size, 30) for val_size in (0, 20)]
    for module in modules:
        module.setup()
    assert indices(modules[0])["test"] == indices(modules[1])["test"]
    assert indices(modules[0])["train"] == indices(modules[1])["train"] | indices(modules[1])["val"]


def test_subset_workers_make_no_difference(subset_file):
    modules = [subset(subset_file, num_workers=workers, max_shift=2, event_drop=0.1) for workers in (0, 2)]
    for module in modules:
        module.setup()
    for ours, theirs in zip(*(module.train_dataloader() for module in modules), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        subset(tmp_path / "nowhere.npz").prepare_data()


def test_directory_instead_of_file(tmp_path):
    with pytest.raises(EventDataError, match="not a file"):
        read_nmnist_subset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"some text", b"\x93NUMPY"])
def test_something_else_than_an_archive(tmp_path, content):
    path = tmp_path / "wrong.npz"
    path.write_bytes(content)
    with pytest.raises(EventDataError, match=r"wrong\.npz: not an \.npz archive"):
        read_nmnist_subset(path)


def test_archive_of_other_arrays(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, frames=np.zeros(3), x=np.zeros(3, np.uint8))
    with pytest.raises(EventDataError, match=r"other\.npz: not an N-MNIST subset: arrays \['y', .*\['frames', 'x'\]"):
        read_nmnist_subset(path)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_file(subset_file, kept):
    data = subset_file.read_bytes()
    subset_file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(EventDataError, match=r"subset\.npz: the archive is cut off or damaged"):
        read_nmnist_subset(subset_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(labels=a["labels"][:-1]), "109 labels need 110 offsets, found 111"),
        (lambda a: a.update(offsets=a["offsets"] + 1), "offsets must run from 0"),
        (lambda a: a["offsets"].__setitem__(5, 0), "offsets fall after recording 4"),
        (lambda a: a.update(x=a["x"][:-1]), "equal length"),
        (lambda a: a["y"].__setitem__(7, 34), "y reaches 34 on a sensor of 34 pixels"),
        (lambda a: a.update(p_bits=a["p_bits"][:-1]), "polarities need"),
        (lambda a: a.update(dt_us=a["dt_us"].astype(np.float32)), "dt_us must be one-dimensional unsigned integers"),
        (lambda a: a.update(dt_us=a["dt_us"].astype(np.int64)), "dt_us must be one-dimensional unsigned integers"),
        (lambda a: a["labels"].__setitem__(3, 10), "recording 3 has 10"),
        (lambda a: a.update(n_train=np.array(111)), "n_train must be one integer from 0 to 110"),
        (lambda a: a.update(labels=np.array([None] * 110)), "allow_pickle"),
    ],
)
def test_inconsistent_file(subset_file, change, message):
    with np.load(subset_file) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(subset_file, **arrays)
    with pytest.raises(EventDataError, match=message) as caught:
        read_nmnist_subset(subset_file)
    assert str(subset_file) in str(caught.value)


def test_too_few_samples_for_the_split(subset_file):
    with pytest.raises(EventDataError, match=r"subset\.npz: 110 samples are too few for train_size 800"):
        NMNISTSubsetDataModule(subset_file).prepare_data()


def test_sizes_out_of_range_are_refused(subset_file):
    with pytest.raises(ValueError, match="val_size must be less than train_size"):
        NMNISTSubsetDataModule(subset_file, train_size=10, val_size=10)


def test_recording_without_events_in_a_file(tmp_path, random_recordings):
    packed = random_recordings(20)
    recordings = [packed.recording(i) for i in range(20)]
    recordings[4] = make_events([], [], [], [])
    write_nmnist_subset(tmp_path / "a.npz", pack(recordings, packed.labels, (34, 34)), 20)
    module = NMNISTSubsetDataModule(tmp_path / "a.npz", train_size=15, val_size=0, test_size=5)
    module.setup()
    assert sum(int(len(frames)) for frames, _, _ in module.train_dataloader()) == 15
    assert list(module.val_dataloader()) == []


@pytest.mark.skipif(not REAL_FILE.exists(), reason="no real recordings beside the project (../shared/data)")
def test_real_recordings():
    module = NMNISTSubsetDataModule(REAL_FILE, num_steps=15, batch_size=50)
    module.prepare_data()
    module.setup()
    report = module.report()
    assert report["dataset"] == "N-MNIST, 1000+100 subset"
    assert (report["train"], report["val"], report["test"]) == (700, 100, 300)
    assert report["split"] == "re-split 800/300 (stratified, split seed 0), 100 of the 800 for validation"
    assert 4000 < report["events_per_recording"] < 4200 and 0.49 < report["on_fraction"] < 0.51
    frames, lengths, _ = next(iter(module.train_dataloader()))
    assert frames.shape == (50, 15, 2, 34, 34) and (lengths == 15).all()
    # Polarities fit their pixels: neighbours in one step share the sign far more often than not.
    on_off = frames[:, :, 1] - frames[:, :, 0]
    assert (on_off.abs().sum() / frames.sum()) > 0.7
