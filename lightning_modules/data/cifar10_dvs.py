"""CIFAR10-DVS: pictures of CIFAR-10, moved before an event camera (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .download import RemoteFile
from .readers import read_aedat4, read_dvs128_aedat2
from .recordings import (
    IncompleteError,
    Recording,
    RecordingsDataModule,
    files_of,
    folders_within,
    stratified_parts,
    validation_from,
)

_PAGE = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
_ARCHIVES = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}
"""Number at figshare and MD5 of each class's archive."""


class CIFAR10DVSDataModule(RecordingsDataModule):
    """CIFAR10-DVS, 1,000 recordings of each of ten classes. It has no official split; results must name theirs.

    Steps divide each recording's own duration equally (they last 1.2 to 1.4 s).

    Args:
        path: Folder with a folder for each class (or with the ten archives), AEDAT 2 or AEDAT 4.
        val_fraction: Part of the training recordings for validation.
        test_split: "seeded": a tenth of each class, drawn with ``split_seed``. "last": the last tenth of each class by
            number, as in the published S-TLLR code.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        num_steps: Time steps.
        size: Height and width of a frame, onto which the 128x128 pixels are scaled.
        **kwargs: See `EventFrameDataModule`.
    """

    set_name = "CIFAR10-DVS"
    folder_name = "cifar10_dvs"
    layout = "folders airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck with .aedat or .aedat4 files"
    official_count = 10_000
    files = tuple(
        RemoteFile(
            f"{name}.zip",
            f"md5:{md5}",
            (f"https://ndownloader.figshare.com/files/{number}", f"https://api.figshare.com/v2/file/download/{number}"),
            _PAGE,
        )
        for name, (number, md5) in _ARCHIVES.items()
    )
    other_archives = ("CIFAR10DVS.zip",)

    def __init__(
        self,
        path: str | Path | None = None,
        val_fraction: float = 0.1,
        test_split: Literal["seeded", "last"] = "seeded",
        cache_dir: str | Path | None = None,
        num_steps: int | None = 10,
        size: Sequence[int] | None = (48, 48),
        **kwargs: Any,
    ) -> None:
        super().__init__(path, val_fraction, cache_dir, num_steps=num_steps, size=size, **kwargs)
        if test_split not in ("seeded", "last"):
            raise ValueError(f'test_split={test_split!r} is not known; use "seeded" or "last"')
        self.test_split = test_split
        if self.binning.bin_us is None:
            self.binning = replace(self.binning, own_duration=True)

    @property
    def duration_us(self) -> int:
        """Nominal duration; steps follow each recording's own."""
        return 1_300_000

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width."""
        return 128, 128

    def find(self, folder: Path) -> list[Recording]:
        """Recordings by class, each class in the order of its numbers."""
        classes: dict[str, list[Path]] = {}
        for candidate in folders_within(folder, 4):
            name = candidate.name.lower()
            if name in _ARCHIVES and name not in classes:
                paths = files_of(candidate, ".aedat") or files_of(candidate, ".aedat4")
                if paths:
                    classes[name] = paths
        if not classes:
            return []
        missing = [name for name in _ARCHIVES if name not in classes]
        if missing:
            raise IncompleteError(f"{folder}: recordings of {', '.join(missing)} are missing")
        return [Recording(path, label) for label, name in enumerate(_ARCHIVES) for path in classes[name]]

    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """One file is one sample; its times begin with its first event."""
        reader = read_aedat4 if recording.path.suffix == ".aedat4" else read_dvs128_aedat2
        events = reader(recording.path)
        if len(events):
            events["t"] -= events["t"].min()
        yield events, recording.label

    @property
    def split_rule(self) -> str:
        """Drawn or by number."""
        if self.test_split == "last":
            return "the last 10% of each class by number for the test"
        return f"90/10 per class, split seed {self.split_seed}"

    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """By class."""
        if self.test_split == "seeded":
            return stratified_parts(recordings, 0.1, self.val_fraction, self.split_seed)
        labels = np.array([recording.label for recording in recordings])
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        test = np.concatenate([numbers[len(numbers) - round(len(numbers) / 10) :] for numbers in members])
        training = np.setdiff1d(np.arange(len(labels)), test)
        return {**validation_from(training, labels, self.val_fraction, self.split_seed), "test": test}
