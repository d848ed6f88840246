"""N-CARS: cars or background before a driving car, 100 ms each (Sironi et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .download import RemoteFile
from .readers import read_dat
from .recordings import IncompleteError, Recording, RecordingsDataModule, files_of, folders_within, stratified_parts

_CLASSES = ("background", "cars")


class NCARSDataModule(RecordingsDataModule):
    """N-CARS in its own split: 15,422 recordings for training and validation, 8,607 for the test; two classes.

    Recordings are cuts of different size from a larger sensor; each lies at the upper left of a frame.

    Args:
        path: Folder with ``n-cars_train`` and ``n-cars_test`` (or with the archive).
        val_fraction: Part of the training recordings for validation.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        num_steps: Time steps, which divide 100 ms.
        downsample: Side of the square of pixels whose events are summed (2: 100x120 becomes 50x60).
        **kwargs: See `EventFrameDataModule`.
    """

    num_classes = 2
    set_name = "N-CARS"
    folder_name = "ncars"
    layout = "n-cars_train and n-cars_test, in each of them folders background and cars with .dat files"
    official_count = 24_029
    files = (
        RemoteFile(
            "Prophesee_Dataset_n_cars.zip",
            "md5:553ce464d6e5e617b3c21ce27c19368e",
            (
                "https://www.prophesee.ai/resources/Prophesee_Dataset_n_cars.zip",
                "http://www.prophesee.ai/resources/Prophesee_Dataset_n_cars.zip",
            ),
            "https://www.prophesee.ai/2018/03/13/dataset-n-cars/",
            "a form asks for name and address, then offers the file",
        ),
    )
    other_archives = ("n-cars_train.zip", "n-cars_test.zip")

    def __init__(
        self,
        path: str | Path | None = None,
        val_fraction: float = 0.1,
        cache_dir: str | Path | None = None,
        num_steps: int | None = 10,
        downsample: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, val_fraction, cache_dir, num_steps=num_steps, downsample=downsample, **kwargs)

    @property
    def duration_us(self) -> int:
        """All recordings last 100 ms."""
        return 100_000

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width of the largest recording."""
        return 100, 120

    def find(self, folder: Path) -> list[Recording]:
        """Recordings of both parts, by class."""
        parts: dict[str, Path] = {}
        for candidate in folders_within(folder, 5):
            # n-cars_train/cars, and n-cars_train/train/cars as the archives of some years have it
            if (candidate / "cars").is_dir():
                name = f"{candidate.parent.name}/{candidate.name}".lower()
                for part in ("train", "test"):
                    if part in name.rpartition("/")[2] or f"n-cars_{part}" in name:
                        parts.setdefault(part, candidate)
        if not parts:
            return []
        recordings = []
        for part in ("train", "test"):
            if part not in parts:
                raise IncompleteError(f"{folder}: N-CARS' {part} part is missing")
            for label, name in enumerate(_CLASSES):
                inside = parts[part] / name
                paths = files_of(inside, ".dat") if inside.is_dir() else []
                if not paths:
                    raise IncompleteError(f"{inside}: no recordings of this class")
                recordings += [Recording(path, label, part) for path in paths]
        return recordings

    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """One file is one sample."""
        yield read_dat(recording.path), recording.label

    @property
    def split_rule(self) -> str:
        """The set's own, but for the validation part."""
        return f"official test part, validation stratified with split seed {self.split_seed}"

    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """Validation by class from the training part."""
        return stratified_parts(recordings, 0.0, self.val_fraction, self.split_seed)
