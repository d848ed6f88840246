"""DSEC's pictures as the event camera would have seen them.

They come from a second camera, 1440 x 1080 pixels, some centimetres beside the event camera. What is far away lies in
both at places that a rotation and the cameras' focal lengths relate; ``calibration/cam_to_cam.yaml`` has them. What is
near is off by the parallax, which a photometric loss does not see: it is the same in both pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

from .dsec_files import SENSOR, DSECFiles
from .png import read_grey_png

SAME_TIME = 1000.0
"""Microseconds by which the time stamp of a picture may differ from that of a window's edge."""

_FOLDERS = ("images/left/rectified", "images_rectified_left", "images/left")
_TIMES = ("images/timestamps.txt", "image_timestamps.txt", "images/left/timestamps.txt")
_CALIBRATION = ("calibration/cam_to_cam.yaml", "cam_to_cam.yaml")


class DSECPictures:
    """Grey pictures at given times, mapped onto the rectified event camera.

    Pictures that have the event camera's size already are taken to be mapped.

    Args:
        files: The sequence.
        edges: Times in microseconds.
        size: Rows and columns of the event camera.

    Raises:
        EventDataError: There are no pictures, none at one of these times, or no calibration. The message names the
            files.
    """

    def __init__(self, files: DSECFiles, edges: npt.NDArray[np.float64], size: tuple[int, int] = SENSOR) -> None:
        folder, stamps = files.first(_FOLDERS), files.first(_TIMES)
        if folder is None or stamps is None:
            missing = _FOLDERS[0] if folder is None else _TIMES[0]
            raise EventDataError(
                f"{files.folders[0]}: {files.name} has no {missing}, and a photometric loss needs pictures: train on "
                "events alone (a contrast loss) with --data.pictures false"
            )
        paths = sorted(folder.glob("*.png"))
        times = _read_times(stamps)
        if len(paths) != len(times):
            raise EventDataError(f"{stamps}: {len(times)} time stamps, but {len(paths)} pictures (*.png) in {folder}")
        nearest = np.array([int(np.abs(times - edge).argmin()) for edge in edges]) if len(times) else np.zeros(0, int)
        apart = np.abs(times[nearest] - edges) if len(times) else np.full(1, np.inf)
        if (apart > SAME_TIME).any():
            raise EventDataError(
                f"{stamps}: no picture at {edges[int(apart.argmax())]:.0f} us, where a window begins or ends; the "
                f"nearest is {apart.max():.0f} us away"
            )
        self.size = size
        self.paths = [paths[i] for i in nearest]
        self._calibration = files.first(_CALIBRATION)
        self._places: npt.NDArray[np.float64] | None = None
        if self._calibration is None and read_grey_png(self.paths[0]).shape != size:
            raise EventDataError(
                f"{files.folders[0]}: {files.name} has pictures of {read_grey_png(self.paths[0]).shape}, which "
                f"calibration/cam_to_cam.yaml would map onto the events ({size}), but that is missing"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the map, which each process makes for itself."""
        return {**self.__dict__, "_places": None}

    def __call__(self, edge: int) -> npt.NDArray[np.float32]:
        """The picture at one of the times, [H, W] in [0, 1]."""
        picture = read_grey_png(self.paths[edge])
        if picture.shape == self.size:
            return picture
        from scipy.ndimage import gaussian_filter, map_coordinates

        if self._places is None:
            assert self._calibration is not None
            self._places = picture_places(read_calibration(self._calibration), self.size)
        # Every second pixel or so is looked at: what is finer would flicker.
        smooth = gaussian_filter(picture, 0.4 * picture.shape[1] / self.size[1])
        mapped = map_coordinates(smooth, self._places[::-1], order=1, mode="nearest")
        return np.asarray(mapped, np.float32)


def picture_places(calibration: Mapping[str, Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Where in the picture each pixel of the rectified event camera looks: [2, H, W], x before y, for far points."""
    cameras, relations = calibration["intrinsics"], calibration["extrinsics"]
    events, picture = (_camera(cameras[name]["camera_matrix"]) for name in ("camRect0", "camRect1"))
    rotations = (relations["R_rect0"], np.asarray(relations["T_10"])[:3, :3], relations["R_rect1"])
    to_events, to_picture, to_rectified = (np.asarray(one, np.float64) for one in rotations)
    homography = picture @ to_rectified @ to_picture @ to_events.T @ np.linalg.inv(events)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float64)
    x, y, depth = np.tensordot(homography, np.stack((columns, rows, np.ones(size))), axes=1)
    return np.stack((x / depth, y / depth))


def read_calibration(path: Path) -> Mapping[str, Any]:
    """Reads ``cam_to_cam.yaml``.

    Raises:
        EventDataError: Something is missing; the message names the file.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        calibration: Mapping[str, Any] = yaml.safe_load(path.read_text())
        for group, names in (("intrinsics", ("camRect0", "camRect1")), ("extrinsics", ("T_10", "R_rect0", "R_rect1"))):
            for name in names:
                calibration[group][name]
        return calibration
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise EventDataError(f"{path}: no calibration of DSEC's cameras ({type(error).__name__}: {error})") from error


def _camera(values: Any) -> npt.NDArray[np.float64]:
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def _read_times(path: Path) -> npt.NDArray[np.float64]:
    try:
        lines = path.read_text().splitlines()
        times = np.array(
            [int(line) for line in lines if line.strip() and not line.lstrip().startswith("#")], np.float64
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise EventDataError(f"{path}: expected a time stamp in microseconds in each line ({error})") from error
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if wrong.size:
        i = int(wrong[0])
        raise EventDataError(f"{path}: time stamps run backwards: {times[i + 1]:.0f} follows {times[i]:.0f}")
    return times
