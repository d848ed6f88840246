"""Small data in each set's real layout, and the options that make a YAML file use them."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import yaml

from lightning_modules.data import write_qtdb, write_spike_file


def write_spikes(path, recordings, classes, seed=0, spikes=300, **extra):
    """Random spikes in SHD's layout; each class has its own channels."""
    random = np.random.default_rng(seed)
    labels = np.arange(recordings) % classes
    times = [np.sort(random.uniform(0, 1.0, spikes)) for _ in labels]
    units = [(random.integers(0, 60, spikes) + label * 640 // classes) for label in labels]
    keys = [str(name) for name in range(classes)]
    write_spike_file(path, times, units, labels, keys, {"speaker": np.arange(recordings) % 3, **extra})


def write_heidelberg(folder, prefix, classes, parts):
    for seed, part in enumerate(parts):
        write_spikes(folder / f"{prefix}_{part}.h5", 40, classes, seed)
    return folder


def write_ecg(path, recordings=24, steps=1301, seed=0):
    """Spikes of four channels, a stray -1 in each sequence's last step, and stretches without labels."""
    random = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", recordings), ("test", recordings // 3)):
        labels = np.tile((np.arange(steps) // 25 % 6).astype(np.int8), (count, 1))
        x = (random.random((count, steps, 4)) < 0.05 + 0.1 * (labels[..., None] % 4 == np.arange(4))).astype(np.int8)
        x[:, -1, 0] = -1
        labels[:, 19:40] = -1
        arrays |= {f"{part}_x": x, f"{part}_y": labels}
    write_qtdb(path, arrays)
    return path


def write_speech(path, per_digit=8, speakers=("ada", "bob", "cyd"), rate=8000, seed=0):
    """Short tones, as one archive with the arrays of the speech data."""
    random = np.random.default_rng(seed)
    names = [(digit, who, n) for digit in range(10) for who in range(len(speakers)) for n in range(per_digit)]
    time = np.arange(rate // 10) / rate
    sounds = [
        (8000 * np.sin(2 * np.pi * (300 + 250 * digit + 20 * who) * time) + random.normal(0, 50, len(time)))
        for digit, who, _ in names
    ]
    digit, who, n = np.array(names).T
    np.savez(
        path,
        audio=np.concatenate(sounds).astype(np.int16),
        offsets=np.concatenate(([0], np.cumsum([len(sound) for sound in sounds]))),
        labels=digit.astype(np.uint8),
        speaker=who.astype(np.uint8),
        index=n.astype(np.uint8),
        speakers=np.array(speakers),
        fs=np.array(rate),
    )
    return path


def write_cifar(root, name, monkeypatch, images=20):
    """torchvision's files with few images; torchvision is told their checksums."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    classes = 10 if name == "CIFAR10" else 100
    key = "labels" if name == "CIFAR10" else "fine_labels"

    def put(file, entry):
        content = pickle.dumps(entry)
        (folder / file).write_bytes(content)
        return hashlib.md5(content).hexdigest()

    for attribute in ("train_list", "test_list"):
        files = []
        for file, _ in getattr(kind, attribute):
            data = random.integers(0, 256, (images, 3072), dtype=np.uint8)
            labels = [int(label) for label in random.permutation(np.arange(images) % classes)]
            files.append([file, put(file, {"data": data, key: labels})])
        monkeypatch.setattr(kind, attribute, files)
    names = {kind.meta["key"]: [str(number) for number in range(classes)]}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": put(kind.meta["filename"], names)})
    return root


def small_simulation(folder, monkeypatch):
    monkeypatch.setenv("STLLR_CACHE", str(folder / "cache"))
    sizes = [f"--data.num_{part}=3" for part in ("train", "val", "test")]
    return ["--data.settings.windows=6", *sizes]


def small_disk(folder, monkeypatch):
    """Two seconds of random events in the recording's layout; the gyroscope says about 1 rad/s."""
    random, count = np.random.default_rng(0), 4000
    times = np.linspace(0, 2_000_000, 21).astype(np.uint32)
    arrays = {
        "x": random.integers(0, 240, count),
        "y": random.integers(0, 180, count),
        "p": random.integers(0, 2, count),
        "t": np.sort(random.integers(0, 2_000_000, count)).astype(np.uint32),
        "imu_t": times,
        "imu_code": np.full(len(times), 6),
        "imu_raw": np.full(len(times), 1892),
    }
    path = folder / "disk.npz"
    np.savez(path, **{f"IMU_rotDisk_{column}": values for column, values in arrays.items()})
    return [f"--data.path={path}", "--data.shifts=2", "--model.network.init_args.base_channels=2"]


def small_mvsec(folder, monkeypatch):
    """Two of its sequences at full resolution, a second long."""
    from tests.lightning_modules.data.flow.flow_files import scene, write_original

    made = scene((260, 346), seconds=1.0, count=30_000, flow=(2.0, -1.0))
    for name in ("outdoor_day2", "indoor_flying1"):
        write_original(folder / name, name, made)
    whole = "{outdoor_day2: [null, null], indoor_flying1: [null, null]}"
    options = [f"--data.path={folder}", "--data.test=[indoor_flying1]", f"--data.ranges={whole}", "--data.section=2"]
    return [*options, "--model.network.init_args.base_channels=1"]


def small_dsec(folder, monkeypatch):
    """Three of its sequences at full resolution, half a second long."""
    from tests.lightning_modules.data.flow.flow_files import drive, write_drive

    made = drive((480, 640), intervals=2, count=30_000)
    names = {"train": "zurich_city_01_a", "val": "zurich_city_02_c", "test": "thun_00_a"}
    for name in names.values():
        write_drive(folder, name, made)
    parts = [f"--data.{part}=[{name}]" for part, name in names.items()]
    return [f"--data.path={folder}", *parts, "--data.bins=2", "--model.network.init_args.base_channels=1"]


FLOW = {
    "SimulatedFlowDataModule": small_simulation,
    "RotDiskDataModule": small_disk,
    "MVSECDataModule": small_mvsec,
    "DSECDataModule": small_dsec,
}


def options_for(config, folder, monkeypatch):
    """Makes small data for a YAML file; returns the options that point to them, or None for another data module."""
    name = yaml.safe_load(Path(config).read_text())["data"]["class_path"]
    small = ["--data.batch_size=4", "--data.num_workers=0"]
    if name == "QTDBDataModule":
        return [f"--data.path={write_ecg(folder / 'ecg.npz')}", *small]
    if name == "SHDDataModule":
        return [f"--data.path={write_heidelberg(folder, 'shd', 20, ('train', 'test'))}", *small]
    if name == "SSCDataModule":
        return [f"--data.path={write_heidelberg(folder, 'ssc', 35, ('train', 'valid', 'test'))}", *small]
    if name == "FSDDDataModule":
        return [f"--data.path={write_speech(folder / 'speech.npz', per_digit=7, speakers=('ada', 'bob'))}", *small]
    if name in ("CIFAR10DataModule", "CIFAR100DataModule"):
        root = write_cifar(folder, name.removesuffix("DataModule"), monkeypatch)
        return [f"--data.path={root}", "--data.val_size=8", "--model.network.init_args.width=0.1", *small]
    if name in FLOW:
        return [*small, "--data.batch_size=1", *FLOW[name](folder, monkeypatch)]
    return None
