"""DSEC: driving with event cameras of 640 x 480 pixels, true flow ten times a second (Gehrig et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .dsec_files import SENSOR, DSECEvents, DSECFiles, DSECFlow, FlowRun, find_dsec
from .dsec_pictures import DSECPictures
from .recording import FlowRecording
from .sequences import SequencesDataModule
from .stored import CutAtTimes, StoredRecording
from .views import Downsampled, PartOfPicture

TRAIN = (
    *("zurich_city_01_a", "zurich_city_02_a", "zurich_city_02_d", "zurich_city_02_e", "zurich_city_03_a"),
    *("zurich_city_05_a", "zurich_city_06_a", "zurich_city_08_a", "zurich_city_09_a", "zurich_city_10_a"),
    *("zurich_city_11_a", "zurich_city_11_b"),
)
VAL = ("zurich_city_02_c", "zurich_city_10_b")
TEST = ("thun_00_a", "zurich_city_05_b", "zurich_city_07_a", "zurich_city_11_c")
"""The 18 sequences with public true flow. The makers' test part has none; who splits these chooses. So do we."""

_PAGE = "https://dsec.ifi.uzh.ch/dsec-datasets/download/"
_LAYOUT = """\
FOLDER holds, in any subfolders, a folder for every sequence with
    events/left/events.h5, events/left/rectify_map.h5
    flow/forward/*.png, flow/forward_timestamps.txt
    for a photometric loss: images/left/rectified/*.png, images/timestamps.txt, calibration/cam_to_cam.yaml
(as the archives NAME_events_left.zip, NAME_optical_flow_forward_event.zip, NAME_images_rectified_left.zip have it;
events and flow may lie in different folders NAME)"""
_STEPS = f"""\
By hand (the makers give no checksums, and the events of all sequences are 125 GB):
  - {_PAGE} lists the archives of each sequence; take events left, optical flow forward event with its time stamps
  - unpack them and pass the folder: --data.path FOLDER
{_LAYOUT}"""


class DSECDataModule(SequencesDataModule):
    """DSEC's left event camera; windows are the intervals of true flow (100 ms), flow in pixels per window.

    Files are read where they lie, window by window. Where the maps of a sequence have a gap, a recording ends and the
    next one begins.

    Args:
        path: Folder with the sequences. Left out: ``dsec`` in ``STLLR_DATA``, else in the cache directory. They are not
            fetched; the error says how to get them.
        train: Training sequences. None: only the test part is there, and only `test` and `predict` run.
        val: Validation sequences.
        test: Test sequences.
        window_us: Windows of this duration over the whole sequence in place of the intervals of true flow, for training
            on events alone or for sequences without true flow.
        rectify: Move events to where they would lie in the rectified picture, as true flow and pictures do.
        downsample: Side of the squares of pixels that become one; flow is then in these larger pixels.
        middle: Height and width of the part from the middle that is validated and tested on; None: everything.
        pictures: Give grey pictures, for a photometric loss; not with ``window_us``. See `dsec_pictures`.
        bins: Time steps of a window.
        crop: Height and width of the part, at a random place, that training shows; None: everything.
        **kwargs: See `FlowDataModule`.
    """

    set_name = "DSEC"
    folder_name = "dsec"
    layout = _LAYOUT
    steps = _STEPS

    def __init__(
        self,
        path: str | Path | None = None,
        train: Sequence[str] | None = TRAIN,
        val: Sequence[str] = VAL,
        test: Sequence[str] = TEST,
        window_us: int | None = None,
        rectify: bool = True,
        downsample: int = 1,
        middle: tuple[int, int] | None = None,
        pictures: bool = False,
        bins: int = 10,
        crop: tuple[int, int] | None = (288, 384),
        **kwargs: Any,
    ) -> None:
        training = {} if train is None else {"train": train, "val": val}
        super().__init__(path, {**training, "test": test}, bins=bins, crop=crop, **kwargs)
        for name, value in (("window_us", window_us), ("downsample", downsample)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if pictures and window_us is not None:
            raise ValueError("pictures lie at the ends of the intervals of true flow: leave out window_us or pictures")
        twice = sorted(set(train or ()) & set(val if train is not None else ()))
        if twice:
            raise ValueError(f"sequences {twice} are for training and for validation; take different ones")
        self._found: dict[str, DSECFiles] = {}
        self.window_us = window_us
        self.rectify = rectify
        self.downsample = downsample
        self.middle = middle
        self.pictures = pictures

    @property
    def dataset_name(self) -> str:
        """What the recordings are and how they are cut."""
        windows = "intervals of true flow" if self.window_us is None else f"windows of {self.window_us / 1000:g} ms"
        scale = f", squares of {self.downsample} pixels" if self.downsample > 1 else ""
        return f"DSEC, {windows}{'' if self.rectify else ', not rectified'}{scale}"

    @property
    def split_name(self) -> str:
        """Which sequences train, validate and test."""
        return "; ".join(f"{part} {', '.join(names)}" for part, names in self.sequences.items())

    def prepare_data(self) -> None:
        """Looks for the files, so that what is missing shows before training begins."""
        self._files()

    def load_recordings(self) -> Mapping[str, Sequence[FlowRecording]]:
        """The sequences; nothing but time stamps is read here."""
        files = self._files()
        return {
            part: [one for name in names for one in self._recordings(files[name], part)]
            for part, names in self.sequences.items()
        }

    def _files(self) -> dict[str, DSECFiles]:
        if self._found:  # opening them again would read thousands of time stamps again
            return self._found
        folder = self.folder()
        files = {name: find_dsec(folder, name) for part in self.sequences.values() for name in part}
        missing = [name for name, found in files.items() if found is None]
        if missing:
            raise self.incomplete(missing, sorted({path.parents[2].name for path in folder.rglob("left/events.h5")}))
        self._found = {name: found for name, found in files.items() if found is not None}
        return self._found

    def _recordings(self, files: DSECFiles, part: str) -> list[FlowRecording]:
        events_path, map_path = files.events, files.rectify_map
        assert events_path is not None
        if self.rectify and map_path is None:
            raise EventDataError(
                f"{events_path}: rectify_map.h5 is missing beside it; --data.rectify false takes the events as recorded"
            )
        store = DSECEvents(events_path, map_path if self.rectify else None, SENSOR)
        runs = files.flow_runs()
        if self.window_us is not None:
            whole = int((store.end - store.start) // self.window_us)
            runs = [FlowRun(np.asarray(store.start + self.window_us * np.arange(whole + 1), np.float64), [])]
        elif not runs:
            raise EventDataError(
                f"{events_path}: {files.name} has no true flow (flow/forward); "
                "--data.window_us 100000 cuts windows without it"
            )
        else:
            runs = [run for run in (_within(run, store.start, store.end) for run in runs) if run.paths]
            if not runs:
                raise EventDataError(
                    f"{events_path}: no interval of true flow lies within the time of the events, {store.start:.0f} to "
                    f"{store.end:.0f} us; do these files belong together?"
                )
        return [
            self._recording(files, store, run, f"{files.name} part {i}" if len(runs) > 1 else files.name, part)
            for i, run in enumerate(runs)
        ]

    def _recording(self, files: DSECFiles, store: DSECEvents, run: FlowRun, name: str, part: str) -> FlowRecording:
        picture: Callable[[int], npt.NDArray[Any]] | None = None
        if self.pictures:
            picture = DSECPictures(files, run.edges, SENSOR)
        flow = DSECFlow(run.edges, run.paths, SENSOR) if run.paths else None
        cut = CutAtTimes(store, run.edges, str(store.path))
        recording: FlowRecording = StoredRecording(
            name, SENSOR, store, cut, picture, flow, drop_outside=self.rectify, path=str(store.path)
        )
        if self.downsample > 1:
            recording = Downsampled(recording, self.downsample)
        if self.middle is not None and part != "train":
            recording = PartOfPicture(recording, (self.middle[0], self.middle[1]))
        return recording


def _within(run: FlowRun, start: float, end: float) -> FlowRun:
    """The maps of a run that begin and end within a time; the first map of many sequences begins before the events."""
    kept = np.flatnonzero((run.edges[:-1] >= start - 1000) & (run.edges[1:] <= end + 1000))
    if not len(kept):
        return FlowRun(run.edges[:0], [])
    return FlowRun(run.edges[kept[0] : kept[-1] + 2], run.paths[kept[0] : kept[-1] + 1])
