"""Scenes whose grey value and motion are known at every pixel and time, for simulated recordings.

Time is counted in windows, pixels from the picture's middle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .motion import Array, Motion

FloatArray = npt.NDArray[np.float32]


class Scene(ABC):
    """What a camera sees.

    Attributes:
        size: Height and width in pixels.
    """

    size: tuple[int, int]

    @abstractmethod
    def grey(self, times: Array) -> FloatArray:
        """Grey values [n, H, W] in [0, 1] at n ascending times."""

    @abstractmethod
    def flow(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Displacement [2, H, W] from start to end of what a pixel shows at the start, and where it is known [H, W]."""


@dataclass(frozen=True)
class Outline:
    """A star-shaped area about the origin: a circle whose radius varies smoothly with the direction.

    Attributes:
        radius: Mean radius in pixels.
        waves: Relative amplitude and phase [n, 2] of one wave round the circle, two waves, ...
    """

    radius: float
    waves: npt.NDArray[np.float64]

    def inside(self, points: Array) -> Array:
        """Distance [...] of points [..., 2] to the border, along the radius; positive inside."""
        direction = np.arctan2(points[..., 1], points[..., 0])
        radius = np.ones_like(direction)
        for number, (amplitude, phase) in enumerate(self.waves, start=1):
            radius += amplitude * np.cos(number * direction + phase)
        distance: Array = self.radius * radius - np.hypot(points[..., 0], points[..., 1])
        return distance

    @property
    def reach(self) -> float:
        """A distance from the origin that no point of the area exceeds."""
        return float(self.radius * (1 + np.abs(self.waves[:, 0]).sum()))


class Layer:
    """A textured plane that moves, all of it or what lies within an outline.

    Args:
        motion: How it moves.
        texture: Makes the texture [side, side], whose middle is the plane's origin. Called when grey values are asked
            for. Beyond its border it is mirrored.
        outline: What of the plane there is; None: everything.
    """

    def __init__(self, motion: Motion, texture: Callable[[], FloatArray], outline: Outline | None = None) -> None:
        self.motion = motion
        self.outline = outline
        self._make_texture = texture

    def seen(self, times: Array, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Grey values and opacity [n, H, W] at n times; None: opaque."""
        matrix, position = self.motion.pose(times)
        back = np.linalg.inv(matrix)
        texels = self._texels()
        side = texels.shape[-1]
        # grid_sample counts from -1, the middle of the first texel, to 1, the middle of the last one.
        back, shift = (2 / (side - 1) * back), -2 / (side - 1) * (back @ position[..., None])[..., 0]
        height, width = size
        x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
        grid = torch.empty(len(times), height, width, 2)
        for axis in (0, 1):
            along_x = back[:, axis, 0, None] * x
            along_y = back[:, axis, 1, None] * y + shift[:, axis, None]
            torch.add(_float32(along_x)[:, None], _float32(along_y)[..., None], out=grid[..., axis])
        picture = texels.expand(len(times), -1, -1, -1)
        mode = "reflection" if self.outline is None else "zeros"
        sampled = functional.grid_sample(picture, grid, mode="bilinear", padding_mode=mode, align_corners=True)
        return sampled[:, 0], None if self.outline is None else sampled[:, 1]

    def covers(self, time: float, pixels: Array) -> npt.NDArray[np.bool_]:
        """Which of the pixels [..., 2] show this layer, if nothing lies before it."""
        if self.outline is None:
            return np.ones(pixels.shape[:-1], np.bool_)
        points = self.motion.plane_points(time, pixels)
        covered = np.hypot(points[..., 0], points[..., 1]) < self.outline.reach  # few are left for what takes time
        covered[covered] = self.outline.inside(points[covered]) > 0
        return np.asarray(covered)

    def box(self, time: float, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns beyond which nothing of the layer can be seen at a time."""
        if self.outline is None:
            return slice(0, size[0]), slice(0, size[1])
        matrix, _, position = self.motion.at(time)
        reach = self.outline.reach * float(np.linalg.norm(matrix))  # at least the largest stretch in any direction
        middle = position[::-1] + (np.array(size) - 1) / 2
        first, last = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int) + 1
        rows, columns = (slice(max(int(low), 0), max(int(high), 0)) for low, high in zip(first, last, strict=True))
        return rows, columns

    def _texels(self) -> torch.Tensor:
        """Texture and, with an outline, opacity: [1, channels, side, side]. Not kept: a scene is filmed once."""
        texture = np.ascontiguousarray(self._make_texture())
        side = len(texture)
        if self.outline is None:
            return torch.from_numpy(texture)[None, None]
        if self.outline.reach > (side - 3) / 2:
            raise ValueError(f"an outline that reaches {self.outline.reach:.1f} px needs a larger texture than {side}")
        opacity = np.clip(self.outline.inside(_pixels((side, side))) + 0.5, 0, 1).astype(np.float32)
        return torch.from_numpy(np.stack((texture, opacity)))[None]


class LayeredScene(Scene):
    """Layers before a background; who lies before whom never changes.

    Flow is known everywhere. Where a layer covers a pixel at the window's end, the flow is that of what is hidden then.

    Args:
        size: Height and width in pixels.
        layers: The layers, the background (without an outline) first.
    """

    def __init__(self, size: tuple[int, int], layers: Sequence[Layer]) -> None:
        if not layers or layers[0].outline is not None:
            raise ValueError("the first layer is the background and has no outline")
        self.size = size
        self.layers = list(layers)

    def grey(self, times: Array) -> FloatArray:
        """Grey values [n, H, W]."""
        picture, _ = self.layers[0].seen(times, self.size)
        for layer in self.layers[1:]:
            grey, opacity = layer.seen(times, self.size)
            assert opacity is not None
            picture = picture + opacity * (grey - picture)
        result: FloatArray = picture.clamp(0, 1).numpy()
        return result

    def flow(self, start: float, end: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Displacement [2, H, W] and where it is known: everywhere."""
        pixels = _pixels(self.size)
        flow = np.empty((2, *self.size), np.float32)
        for layer in self.layers:
            matrix, vector = layer.motion.change(start, end)
            box = layer.box(start, self.size)
            there = pixels[box]
            shown = layer.covers(start, there)
            for axis in (0, 1):
                moved = matrix[axis, 0] * there[..., 0] + (matrix[axis, 1] * there[..., 1] + vector[axis])
                np.copyto(flow[axis][box], moved, where=shown, casting="same_kind")
        return flow, np.ones(self.size, np.bool_)


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


@lru_cache(maxsize=64)
def _pixels(size: tuple[int, int]) -> Array:
    """Coordinates (x, y) of all pixels from the middle, [H, W, 2]."""
    height, width = size
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    pixels = np.stack((x, y), axis=-1)
    pixels.setflags(write=False)
    return pixels
