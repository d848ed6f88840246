"""Scenes from pictures with a dense flow: the picture is pushed to and fro along its flow.

What moves is exactly known, for it is the flow that moves it: the point ``q`` of the picture appears at
``q + s(t) * flow(q)``, where s goes smoothly from 0 to some number and back. Which point appears at a pixel is found by
a fixed point iteration; where it finds none (what comes into view behind something that moves away), the flow counts as
unknown, and so it does where the file does not know it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.data.archive import ArchiveError, read_archive
from lightning_modules.data.events import EventDataError

from .motion import Array
from .recording import grey
from .scenes import FloatArray, Scene
from .simulator import PARTS, SimulationSettings

_LARGEST = 1e3  # files write unknown flow as larger values
_PERIODS = (10.0, 30.0)  # windows for going along the flow and back
_FARTHEST = 4.0  # times the flow
_ITERATIONS, _DAMPED = 6, 6
_FOUND = 0.05  # pixels that a point may be off
_TRIES = 20
_SCENE_STREAM = 4
_AT_ONCE = 64


@dataclass(frozen=True)
class PicturePair:
    """A picture and where its points go.

    Attributes:
        name: What it is called.
        picture: Grey values [H, W] in [0, 1].
        flow: Displacement [2, H, W] in pixels: x (to the right), y (down).
        known: Where the flow is known, [H, W].
    """

    name: str
    picture: FloatArray
    flow: FloatArray
    known: npt.NDArray[np.bool_]


def read_picture_pairs(path: str | Path) -> list[PicturePair]:
    """Reads pictures with dense flow from an ``.npz`` archive.

    A sequence has the arrays ``NAME_frames`` [n, H, W] (uint8 or float in [0, 1]) and ``NAME_flowK`` [H, W, 2] (x, y)
    in pixels per frame, where K is any number or nothing. Files number their frames in different ways, and have y point
    down or up: the frame and the direction are taken that explain the next frame best, and the frame nearest to the
    middle of those that do it about as well. Values above 1000 and such as are not finite are unknown.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no ``.npz`` archive, is damaged, or has no such arrays.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected an .npz archive of pictures with flow)")
    try:
        arrays = read_archive(path)
    except ArchiveError as error:
        raise EventDataError(f"{path}: {error}; expected pictures with flow") from error
    pairs = []
    for key in sorted(arrays):
        match = re.fullmatch(r"(.+)_flow\d*", key)
        if match and f"{match[1]}_frames" in arrays:
            pairs.append(_pair(match[1], arrays[f"{match[1]}_frames"], arrays[key], f"{path}: {match[1]}"))
    if not pairs:
        raise EventDataError(f"{path}: no arrays NAME_frames with NAME_flow; found {sorted(arrays)}")
    return pairs


def split_pairs(pairs: Sequence[PicturePair]) -> dict[str, list[PicturePair]]:
    """Deals sequences out to the parts, always in the same way: some 30 % for the test and 15 % for validation.

    Raises:
        EventDataError: There are less than three.
    """
    if len(pairs) < len(PARTS):
        raise EventDataError(
            f"training, validation and test need a sequence each, found {len(pairs)}: {[pair.name for pair in pairs]}"
        )
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    test, val = max(1, round(0.3 * len(pairs))), max(1, round(0.15 * len(pairs)))
    ends = {"test": (0, test), "val": (test, test + val), "train": (test + val, len(pairs))}
    return {part: [pairs[i] for i in sorted(order[low:high])] for part, (low, high) in ends.items()}


def fingerprint(pairs: Sequence[PicturePair]) -> str:
    """Hash of names and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        digest.update(pair.name.encode())
        for values in (pair.picture, pair.flow, pair.known):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


class PictureScene(Scene):
    """A part of a picture, pushed along its flow: so far ``reach * (1 - cos(frequency * t + phase)) / 2``.

    Args:
        pair: Picture and flow.
        size: Height and width of the part.
        corner: Its first row and column.
        reach: How far it goes at most, in units of the flow.
        frequency: Radians per window.
        phase: Phase at time 0.
    """

    def __init__(
        self,
        pair: PicturePair,
        size: tuple[int, int],
        corner: tuple[int, int],
        reach: float,
        frequency: float,
        phase: float,
    ) -> None:
        self.pair = pair
        self.size = size
        self.corner = corner
        self.reach = reach
        self.frequency = frequency
        self.phase = phase

    def progress(self, times: Array) -> Array:
        """How far along the flow everything is."""
        so_far: Array = self.reach * (1 - np.cos(self.frequency * times + self.phase)) / 2
        return so_far

    def grey(self, times: Array) -> FloatArray:
        """Grey values [n, H, W]."""
        picture = torch.from_numpy(self.pair.picture)[None]
        result = np.empty((len(times), *self.size), np.float32)
        for low in range(0, len(times), _AT_ONCE):
            points, _ = self._points(self.progress(times[low : low + _AT_ONCE]))
            result[low : low + _AT_ONCE] = _sample(picture, points)[0].reshape(-1, *self.size).numpy()
        return result

    def flow(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Displacement [2, H, W] and where it is known."""
        here, there = self.progress(np.array([start, end]))
        points, error = self._points(np.array([here]))
        known = _sample(torch.from_numpy(self.pair.known.astype(np.float32))[None], points, outside="zeros")[0]
        flow = _sample(torch.from_numpy(self.pair.flow), points) * float(there - here)
        valid = (error < _FOUND) & (known > 0.999)
        return flow.reshape(2, *self.size).numpy(), valid.reshape(self.size).numpy()

    def _points(self, progress: Array) -> tuple[Tensor, Tensor]:
        """Which points of the picture appear at the pixels: [n * H * W, 2], and how far off they are [n * H * W]."""
        (height, width), (top, left) = self.size, self.corner
        x, y = torch.arange(width) + float(left), torch.arange(height) + float(top)
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2).repeat(len(progress), 1)
        so_far = torch.from_numpy(progress.astype(np.float32)).repeat_interleave(height * width)[:, None]
        field = torch.from_numpy(self.pair.flow)
        best, error = pixels.clone(), torch.full(pixels.shape[:1], torch.inf)
        points, seeking = pixels, torch.arange(len(pixels))
        for iteration in range(_ITERATIONS + _DAMPED):
            off = points + so_far[seeking] * _sample(field, points).T - pixels[seeking]
            distance = off.norm(dim=-1)
            better = distance < error[seeking]
            error[seeking[better]], best[seeking[better]] = distance[better], points[better]
            left_over = distance > _FOUND / 10
            points, seeking, off = points[left_over], seeking[left_over], off[left_over]
            if not len(seeking):
                break
            points = points - (1.0 if iteration < _ITERATIONS else 0.5) * off
        return best, error


def draw_picture_scene(
    pairs: dict[str, list[PicturePair]], settings: SimulationSettings, part: str, number: int
) -> PictureScene:
    """Draws a sequence of the part, a place in it and how fast it goes.

    Args:
        pairs: Sequences of every part.
        settings: What recordings look like; of ``kinds``, ``layers`` and ``pictures`` nothing is read.
        part: "train", "val" or "test".
        number: Number of the scene within its part.
    """
    random = np.random.default_rng([settings.seed, _SCENE_STREAM, PARTS.index(part), number])
    pair = pairs[part][number % len(pairs[part])]
    height, width = settings.size
    room = tuple(full - part for full, part in zip(pair.picture.shape, settings.size, strict=True))
    if min(room) < 0:
        raise EventDataError(f"{pair.name}: a picture of {pair.picture.shape} is smaller than {settings.size}")
    for _ in range(_TRIES):
        top, left = (int(random.integers(space + 1)) for space in room)
        speeds = np.hypot(*pair.flow[:, top : top + height, left : left + width])
        largest = max(float(np.quantile(speeds, 0.95)), 1e-3)
        speed = settings.speed * random.uniform(0.4, 1.0)
        frequency = 2 * np.pi / random.uniform(*_PERIODS)
        reach = 2 * speed / (frequency * largest)  # the largest speed is half of reach * frequency * flow
        if reach < _FARTHEST:  # else hardly anything moves here
            break
    reach = min(reach, _FARTHEST)
    return PictureScene(pair, settings.size, (top, left), reach, frequency, random.uniform(0, 2 * np.pi))


def _pair(name: str, frames: npt.NDArray[Any], flow: npt.NDArray[Any], where: str) -> PicturePair:
    if frames.ndim != 3 or flow.shape != (*frames.shape[1:], 2) or len(frames) < 2:
        raise EventDataError(
            f"{where}: expected at least 2 frames [n, H, W] and a flow [H, W, 2], found {frames.shape} and {flow.shape}"
        )
    size = (int(frames.shape[1]), int(frames.shape[2]))
    known = (np.isfinite(flow) & (np.abs(flow) < _LARGEST)).all(axis=-1)
    field = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0).astype(np.float32)
    pictures = [grey(frame, size, where) for frame in frames]
    candidates: list[tuple[float, float, FloatArray, FloatArray]] = []
    for upright in (field, field * np.array([1, -1], np.float32)[:, None, None]):
        for i, (first, then) in enumerate(zip(pictures[:-1], pictures[1:], strict=True)):
            from_middle = abs(i - (len(pictures) - 2) / 2)
            candidates.append((from_middle, _unexplained(first, then, upright, known), first, upright))
    limit = 1.1 * min(error for _, error, _, _ in candidates)
    good = [candidate for candidate in candidates if candidate[1] <= limit]
    _, _, picture, field = min(good, key=lambda candidate: candidate[:2])
    return PicturePair(name, picture, field, known)


def _unexplained(first: FloatArray, then: FloatArray, flow: FloatArray, known: npt.NDArray[np.bool_]) -> float:
    """Mean difference between a picture and the next one, fetched back along the flow."""
    y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in first.shape), indexing="ij")
    points = torch.from_numpy(np.stack((x + flow[0], y + flow[1]), axis=-1)).reshape(-1, 2)
    back = _sample(torch.from_numpy(then)[None], points).reshape(first.shape).numpy()
    return float(np.abs(back - first)[known].mean())


def _sample(picture: Tensor, points: Tensor, outside: str = "border") -> Tensor:
    """Values [C, n] of a picture [C, h, w] at points (x, y) [n, 2]."""
    height, width = picture.shape[-2:]
    grid = points * points.new_tensor([2 / (width - 1), 2 / (height - 1)]) - 1
    sampled = functional.grid_sample(
        picture[None], grid[None, None], mode="bilinear", padding_mode=outside, align_corners=True
    )
    return sampled[0, :, 0]
