"""CIFAR through torchvision's own files: direct encoding, augmentation, validation part, faults."""

import pytest
import torch

from lightning_modules.data import CIFAR10DataModule, CIFAR100DataModule, EventDataError
from tests.lightning_modules.small_data import write_cifar

pytest.importorskip("torchvision", reason="torchvision is not installed")

MODULES = {"CIFAR10": CIFAR10DataModule, "CIFAR100": CIFAR100DataModule}
IMAGES = {"CIFAR10": 100, "CIFAR100": 20}  # five training files and one


@pytest.mark.parametrize("name", MODULES)
def test_batches(name, tmp_path, monkeypatch):
    root = write_cifar(tmp_path, name, monkeypatch)
    module = MODULES[name](root, val_size=8, batch_size=4)
    module.prepare_data()
    module.setup()
    frames, lengths, labels = next(iter(module.train_dataloader()))
    assert frames.shape == (4, 6, 3, 32, 32) and frames.dtype == torch.float32
    assert lengths.tolist() == [6] * 4 and labels.dtype == torch.int64 and labels.max() < module.num_classes
    assert all(torch.equal(frames[:, 0], frames[:, t]) for t in range(6))
    sizes = [len(module.dataset(part)) for part in ("train", "val", "test")]
    assert sizes == [IMAGES[name] - 8, 8, 20]
    assert "direct encoding" in module.report()["dataset"] and "8 of the" in module.report()["split"]


def test_images_come_as_they_are_in_evaluation(tmp_path, monkeypatch):
    from torchvision import datasets

    root = write_cifar(tmp_path, "CIFAR10", monkeypatch)
    module = CIFAR10DataModule(root, val_size=0)
    module.setup()
    raw = datasets.CIFAR10(str(root), train=False)
    image, label = module.dataset("test")[3]
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in CIFAR10DataModule.normalise)
    expected = torch.from_numpy(raw.data[3]).permute(2, 0, 1) / 255
    torch.testing.assert_close(image * deviation + mean, expected, atol=1e-6, rtol=0)
    assert label == raw.targets[3]


def test_augmentation_shifts_and_mirrors_by_seed_and_epoch(tmp_path, monkeypatch):
    root = write_cifar(tmp_path, "CIFAR10", monkeypatch)
    plain, varied = CIFAR10DataModule(root, val_size=0, augment=False), CIFAR10DataModule(root, val_size=0)
    for module in (plain, varied):
        module.setup()
    original, dataset = plain.dataset("train")[5][0], varied.dataset("train")
    assert torch.equal(dataset[(5, 2)][0], dataset[(5, 2)][0])
    versions = [dataset[(5, epoch)][0] for epoch in range(12)]
    assert len({version.numpy().tobytes() for version in versions}) > 8
    inner = original[:, 8:24, 8:24]
    for version in versions:  # the middle of the image is still there, somewhere, perhaps mirrored
        windows = version.unfold(1, 16, 1).unfold(2, 16, 1)
        assert any(
            bool((windows == candidate[:, None, None]).all(-1).all(-1).all(0).any())
            for candidate in (inner, inner.flip(2))
        )


def test_the_folder_itself_will_do(tmp_path, monkeypatch):
    root = write_cifar(tmp_path, "CIFAR100", monkeypatch)
    module = CIFAR100DataModule(root / "cifar-100-python", val_size=0)
    module.setup()
    assert len(module.dataset("train")) == 20


def test_missing_and_damaged_files(tmp_path, monkeypatch):
    with pytest.raises(EventDataError, match=r"CIFAR10 is not there.*cifar-10-batches-py"):
        CIFAR10DataModule(tmp_path).setup()
    root = write_cifar(tmp_path, "CIFAR10", monkeypatch)
    file = root / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EventDataError, match="cut off or damaged") as caught:
        CIFAR10DataModule(root).setup()
    assert str(root) in str(caught.value)


def test_arguments_out_of_range(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        CIFAR10DataModule(num_steps=0)
    root = write_cifar(tmp_path, "CIFAR10", monkeypatch)
    with pytest.raises(ValueError, match="leaves nothing of 100 images"):
        CIFAR10DataModule(root, val_size=100).setup()
