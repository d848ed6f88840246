"""The embedded data for optical flow: simulated recordings with exact flow at every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .datamodule import FlowDataModule
from .simulator import SIMULATOR_VERSION, SimulationSettings, simulated_recordings
from .windows import FlowRecording


class SimulatedFlowDataModule(FlowDataModule):
    """Moving textures seen by a simulated event camera, made on this machine and cached on disk once.

    A recording shows a background and some layers before it; each is translated, rotated, zoomed or all of it, at a
    speed that changes smoothly. Recordings of the three parts have motions, textures and (if ``settings.pictures``)
    pictures of their own. Windows lie between grey pictures.

    Args:
        settings: What recordings look like; the defaults if None.
        num_train: Recordings to train on.
        num_val: Recordings for validation.
        num_test: Recordings for the test.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        **kwargs: See `FlowDataModule`.
    """

    def __init__(
        self,
        settings: SimulationSettings | None = None,
        num_train: int = 48,
        num_val: int = 8,
        num_test: int = 8,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings = settings or SimulationSettings()
        self.numbers = {"train": num_train, "val": num_val, "test": num_test}
        for part, number in self.numbers.items():
            if number < 1:
                raise ValueError(f"num_{part} must be at least 1, got {number}")
        self.cache_dir = cache_dir

    @property
    def dataset_name(self) -> str:
        """Name with the version of the simulator; settings other than the defaults are named."""
        changed = "" if self.settings == SimulationSettings() else f", {self.settings}"
        return f"SimulatedFlow v{SIMULATOR_VERSION} (moving textures{changed})"

    @property
    def split_name(self) -> str:
        """Sizes of the parts."""
        sizes = "/".join(str(number) for number in self.numbers.values())
        return f"{sizes} recordings train/val/test, textures and motions disjoint"

    def prepare_data(self) -> None:
        """Fills the cache (one process does, for all)."""
        self.load_recordings()

    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """Recordings from the cache."""
        return {
            part: simulated_recordings(self.settings, part, number, self.cache_dir)
            for part, number in self.numbers.items()
        }
