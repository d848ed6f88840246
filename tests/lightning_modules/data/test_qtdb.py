"""QTDB electrocardiograms: the file's layout and faults, validation in runs of neighbours, samples that start late."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.data import EventDataError, QTDBDataModule, pad_collate_steps, read_qtdb
from lightning_modules.data.qtdb import validation_runs
from tests.lightning_modules.small_data import write_ecg

REAL_FILE = Path(__file__).parents[3].parent / "shared" / "data" / "qtdb_ecg.npz"


@pytest.fixture
def file(tmp_path):
    return write_ecg(tmp_path / "ecg.npz", recordings=60, steps=90)


def test_batches(file):
    module = QTDBDataModule(file, batch_size=8)
    module.prepare_data()
    module.setup()
    frames, lengths, labels = next(iter(module.train_dataloader()))
    assert frames.shape == (8, 90, 4) and frames.dtype == torch.float32
    assert lengths.tolist() == [90] * 8 and labels.shape == (8, 90) and labels.dtype == torch.int64
    assert set(labels.unique().tolist()) == {-1, 0, 1, 2, 3}
    assert sum(len(batch[0]) for batch in module.test_dataloader()) == 20
    report = module.report()
    assert (report["train"], report["val"], report["test"]) == (48, 12, 20) and report["frame_shape"] == (4,)
    assert report["split"] == (
        "the file's own test part; 12 of its 60 training recordings (runs of 12, split seed 0) for validation"
    )


def test_the_stray_value_is_no_spike(file):
    with np.load(file) as raw:
        assert (raw["train_x"][:, -1, 0] == -1).all()
        arrays = read_qtdb(file)
        assert set(np.unique(arrays["train_x"])) == {0, 1} and (arrays["train_x"][:, -1, 0] == 0).all()
        np.testing.assert_array_equal(arrays["train_x"][:, :-1], raw["train_x"][:, :-1])
        np.testing.assert_array_equal(arrays["train_y"], raw["train_y"])


def test_validation_takes_whole_runs():
    mask = validation_runs(50, 10, 5, seed=1)
    assert mask.sum() == 10 and all(len(set(run)) == 1 for run in mask.reshape(10, 5))
    assert (mask != validation_runs(50, 10, 5, seed=2)).any()
    assert validation_runs(50, 0, 5, 0).sum() == 0
    assert validation_runs(50, 1, 20, 0).sum() in (10, 20)


def test_parts_are_disjoint_and_whole(file):
    module = QTDBDataModule(file, val_fraction=0.2)
    module.setup()
    own = read_qtdb(file)["train_x"]
    found = torch.cat([module.dataset("train").x, module.dataset("val").x]).numpy()
    assert len(found) == len(own) and sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in own)


def test_training_samples_that_start_late(file):
    plain, late = QTDBDataModule(file, batch_size=48), QTDBDataModule(file, batch_size=48, max_skip=30)
    for module in (plain, late):
        module.setup()
    x, lengths, y = next(iter(late.train_dataloader()))
    same_x, _, same_y = next(iter(plain.train_dataloader()))
    assert lengths.min() < 70 and lengths.max() > 80 and lengths.unique().numel() > 5
    for i, length in enumerate(lengths):
        assert torch.equal(x[i, :length], same_x[i, 90 - length :]) and x[i, length:].sum() == 0
        assert torch.equal(y[i, :length], same_y[i, 90 - length :]) and (y[i, length:] == -1).all()
    dataset = late.dataset("train")
    assert torch.equal(dataset[(3, 1)][0], dataset[(3, 1)][0])
    assert len({len(dataset[(3, epoch)][0]) for epoch in range(10)}) > 3
    assert len(late.dataset("val")[0][0]) == len(late.dataset("test")[0][0]) == 90


def test_collation_pads_with_unlabelled_steps():
    frames, lengths, labels = pad_collate_steps(
        [(torch.ones(2, 4), torch.tensor([1, 2])), (torch.ones(3, 4), torch.zeros(3, dtype=torch.int64))]
    )
    assert lengths.tolist() == [2, 3] and frames[0, 2].sum() == 0
    assert labels.tolist() == [[1, 2, -1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("test_y"), r"arrays \['test_y'\] are missing"),
        (lambda a: a.update(train_x=a["train_x"][:, :, :3]), "train_x must have 4 channels, found 3"),
        (lambda a: a.update(train_y=a["train_y"][:, :-1]), "train_y integers"),
        (lambda a: a.update(test_y=a["test_y"] + 4), "test_y must be 0 to 5"),
        (lambda a: a.update(test_x=a["test_x"] * 0.5), "test_x must be integers"),
    ],
)
def test_faults_name_the_file(file, change, message):
    with np.load(file) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(file, **arrays)
    with pytest.raises(EventDataError, match=message) as caught:
        read_qtdb(file)
    assert str(file) in str(caught.value)


def test_files_that_are_none(tmp_path, file):
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        QTDBDataModule(tmp_path / "none.npz").prepare_data()
    with pytest.raises(EventDataError, match="not a file"):
        read_qtdb(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(EventDataError, match="cut off or damaged"):
        read_qtdb(file)


@pytest.mark.parametrize("arguments", [{"val_fraction": 1.0}, {"val_run": 0}, {"max_skip": -1}, {"batch_size": 0}])
def test_arguments_out_of_range(arguments, file):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QTDBDataModule(file, **arguments)
    with pytest.raises(ValueError, match="leaves nothing"):
        QTDBDataModule(file, max_skip=90).setup()


def test_loaders_before_setup(file):
    with pytest.raises(RuntimeError, match=r"QTDBDataModule.setup\(\)"):
        QTDBDataModule(file).train_dataloader()


@pytest.mark.skipif(not REAL_FILE.exists(), reason="no real recordings beside the project (../shared/data)")
def test_real_recordings():
    module = QTDBDataModule(REAL_FILE)
    module.setup()
    report = module.report()
    assert report["train"] + report["val"] == 618 and report["test"] == 141
    frames, labels = module.dataset("test")[0]
    assert frames.shape == (1301, 4) and labels.shape == (1301,) and frames.unique().tolist() == [0, 1]
    labels = module.dataset("test").y
    shares = [float((labels[labels >= 0] == label).float().mean()) for label in range(6)]
    assert max(shares) < 0.36
