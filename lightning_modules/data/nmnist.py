"""N-MNIST: the digits of MNIST, recorded with an event camera on a moving platform (Orchard et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .download import RemoteFile
from .nmnist_subset import DURATION_US, SENSOR_SIZE
from .readers import read_atis_bin
from .recordings import IncompleteError, Recording, RecordingsDataModule, files_of, folders_within, stratified_parts

_PAGE = "https://www.garrickorchard.com/datasets/n-mnist"
_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/{}/file_downloaded"


class NMNISTDataModule(RecordingsDataModule):
    """N-MNIST in its own split: 60,000 recordings for training and validation, 10,000 for the test.

    Args:
        path: Folder with ``Train`` and ``Test`` (or with Train.zip and Test.zip).
        val_fraction: Part of the training recordings for validation.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        num_steps: Time steps, which divide 310 ms.
        **kwargs: See `EventFrameDataModule`.
    """

    set_name = "N-MNIST"
    folder_name = "nmnist"
    layout = "Train/0 ... Train/9 and Test/0 ... Test/9 with .bin files"
    official_count = 70_000
    files = (
        RemoteFile(
            "Train.zip",
            "md5:20959b8e626244a1b502305a9e6e2031",
            (_MENDELEY.format("39c25547-014b-4137-a934-9d29fa53c7a0"),),
            _PAGE,
        ),
        RemoteFile(
            "Test.zip",
            "md5:69ca8762b2fe404d9b9bad1103e97832",
            (_MENDELEY.format("05a4d654-7e03-4c15-bdfa-9bb2bcbea494"),),
            _PAGE,
        ),
    )

    def __init__(
        self,
        path: str | Path | None = None,
        val_fraction: float = 0.1,
        cache_dir: str | Path | None = None,
        num_steps: int | None = 15,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, val_fraction, cache_dir, num_steps=num_steps, **kwargs)

    @property
    def duration_us(self) -> int:
        """Time in which the three saccades take place."""
        return DURATION_US

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width."""
        return SENSOR_SIZE

    def find(self, folder: Path) -> list[Recording]:
        """Recordings of both parts, by class."""
        parts: dict[str, Path] = {}
        for candidate in folders_within(folder, 3):
            if candidate.name.lower() in ("train", "test") and (candidate / "0").is_dir():
                parts.setdefault(candidate.name.lower(), candidate)
        if not parts:
            return []
        recordings = []
        for part in ("train", "test"):
            if part not in parts:
                raise IncompleteError(f"{folder}: N-MNIST's {part} part is missing")
            for label in range(10):
                digit = parts[part] / str(label)
                paths = files_of(digit, ".bin") if digit.is_dir() else []
                if not paths:
                    raise IncompleteError(f"{digit}: no recordings of this digit")
                recordings += [Recording(path, label, part) for path in paths]
        return recordings

    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """One file is one sample."""
        yield read_atis_bin(recording.path), recording.label

    @property
    def split_rule(self) -> str:
        """The set's own, but for the validation part."""
        return f"official test part, validation stratified with split seed {self.split_seed}"

    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """Validation by class from the training part."""
        return stratified_parts(recordings, 0.0, self.val_fraction, self.split_seed)
