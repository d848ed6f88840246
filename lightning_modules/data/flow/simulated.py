"""The embedded data for optical flow: simulated recordings with exact flow at every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .datamodule import FlowDataModule
from .picture_pairs import draw_picture_scene, fingerprint, read_picture_pairs, split_pairs
from .recording import FlowRecording
from .simulator import SIMULATOR_VERSION, SceneMaker, SimulationSettings, draw_scene, simulated_recordings


class SimulatedFlowDataModule(FlowDataModule):
    """Moving textures seen by a simulated event camera, made on this machine and cached on disk once.

    A recording shows a background and some layers before it; each is translated, rotated, zoomed or all of it, at a
    speed that changes smoothly. Recordings of the three parts have motions, textures and (if ``settings.pictures``)
    pictures of their own. Windows lie between grey pictures.

    With ``path`` the recordings show pictures with a known dense flow instead, which are pushed along it; each sequence
    belongs to one part (see `lightning_modules.data.flow.picture_pairs`).

    Args:
        settings: What recordings look like; the defaults if None.
        path: An ``.npz`` archive of pictures with dense flow: ``NAME_frames`` [n, H, W], ``NAME_flow`` [H, W, 2].
        num_train: Recordings to train on.
        num_val: Recordings for validation.
        num_test: Recordings for the test.
        cache_dir: Cache directory; default: environment variable ``STLLR_CACHE``, else ``~/.cache/stllr``.
        **kwargs: See `FlowDataModule`.
    """

    def __init__(
        self,
        settings: SimulationSettings | None = None,
        path: str | Path | None = None,
        num_train: int = 48,
        num_val: int = 8,
        num_test: int = 8,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings = settings or SimulationSettings()
        self.path = path
        self.numbers = {"train": num_train, "val": num_val, "test": num_test}
        for part, number in self.numbers.items():
            if number < 1:
                raise ValueError(f"num_{part} must be at least 1, got {number}")
        self.cache_dir = cache_dir

    @property
    def dataset_name(self) -> str:
        """Name with the version of the simulator; settings other than the defaults are named."""
        changed = "" if self.settings == SimulationSettings() else f", {self.settings}"
        shown = "moving textures" if self.path is None else f"pictures of {Path(self.path).name} along their flow"
        return f"SimulatedFlow v{SIMULATOR_VERSION} ({shown}{changed})"

    @property
    def split_name(self) -> str:
        """Sizes of the parts."""
        sizes = "/".join(str(number) for number in self.numbers.values())
        what = "textures and motions" if self.path is None else "sequences"
        return f"{sizes} recordings train/val/test, {what} disjoint"

    def prepare_data(self) -> None:
        """Fills the cache (one process does, for all)."""
        self.load_recordings()

    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """Recordings from the cache."""
        make_scene: SceneMaker = draw_scene
        source: dict[str, Any] | None = None
        if self.path is not None:
            pairs = read_picture_pairs(self.path)
            make_scene = partial(draw_picture_scene, split_pairs(pairs))
            source = {"pictures": fingerprint(pairs)}
        return {
            part: simulated_recordings(self.settings, part, number, self.cache_dir, make_scene, source)
            for part, number in self.numbers.items()
        }
