"""N-Caltech101: the pictures of Caltech101 before an event camera on a moving platform (Orchard et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .download import RemoteFile
from .readers import read_atis_bin
from .recordings import IncompleteError, Recording, RecordingsDataModule, files_of, folders_within, stratified_parts


class NCaltech101DataModule(RecordingsDataModule):
    """N-Caltech101, 101 classes, in a seeded split by class: the set has none of its own.

    Pictures differ in size; each lies at the upper left of a frame.

    Args:
        path: Folder with ``Caltech101`` (or with Caltech101.zip).
        val_fraction: Part of the training recordings for validation.
        test_fraction: Part of all recordings for the test.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        num_steps: Time steps, which divide 300 ms; what comes later is left out.
        downsample: Side of the square of pixels whose events are summed (4: 180 rows of 240 become 45 of 60).
        **kwargs: See `EventFrameDataModule`.
    """

    num_classes = 101
    set_name = "N-Caltech101"
    folder_name = "ncaltech101"
    layout = "Caltech101 with a folder of .bin files for each of the 101 classes"
    official_count = 8_709
    files = (
        RemoteFile(
            "Caltech101.zip",
            "md5:66201824eabb0239c7ab992480b50ba3",
            (
                "https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
                "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
            ),
            "https://www.garrickorchard.com/datasets/n-caltech101",
        ),
    )
    other_archives = ("N-Caltech101-archive.zip",)

    def __init__(
        self,
        path: str | Path | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        cache_dir: str | Path | None = None,
        num_steps: int | None = 10,
        downsample: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, val_fraction, cache_dir, num_steps=num_steps, downsample=downsample, **kwargs)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
        self.test_fraction = test_fraction

    @property
    def duration_us(self) -> int:
        """Three saccades."""
        return 300_000

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Height and width of the largest recording."""
        return 180, 240

    def find(self, folder: Path) -> list[Recording]:
        """Recordings by class, in the order of the classes' names."""
        for candidate in folders_within(folder, 3):
            # The archive of annotations has folders of the same names.
            if "annotation" not in candidate.name.lower() and (candidate / "Faces_easy").is_dir():
                classes = sorted(path for path in candidate.iterdir() if path.is_dir() and path.name[0] not in "._")
                if len(classes) != self.num_classes:
                    raise IncompleteError(f"{candidate}: {len(classes)} classes instead of {self.num_classes}")
                recordings = []
                for label, inside in enumerate(classes):
                    paths = files_of(inside, ".bin")
                    if not paths:
                        raise IncompleteError(f"{inside}: no recordings of this class")
                    recordings += [Recording(path, label) for path in paths]
                return recordings
        return []

    def read(self, recording: Recording) -> Iterator[tuple[npt.NDArray[np.void], int]]:
        """One file is one sample, moved to the corner of the frame."""
        events = read_atis_bin(recording.path)
        for field in "xy":
            if len(events):
                events[field] -= events[field].min()
        yield events, recording.label

    @property
    def split_rule(self) -> str:
        """Drawn."""
        return f"{self.test_fraction:.0%} test, stratified with split seed {self.split_seed}"

    def split_recordings(self, recordings: Sequence[Recording]) -> Mapping[str, npt.NDArray[np.int64]]:
        """By class."""
        return stratified_parts(recordings, self.test_fraction, self.val_fraction, self.split_seed)
