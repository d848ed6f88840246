"""Smooth motions of a plane: translation, rotation, zoom and shear, known in closed form at any time."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MotionKind = Literal["translation", "rotation", "zoom", "affine"]
KINDS: tuple[MotionKind, ...] = get_args(MotionKind)

_PERIODS = (10.0, 30.0)  # windows


@dataclass(frozen=True)
class Course:
    """A number over time: ``start + drift * t`` and a swing about it. Time is counted in windows.

    Attributes:
        start: Value at time 0.
        drift: Change per window.
        swing: Amplitude of the swing.
        frequency: Its frequency in radians per window.
        phase: Its phase at time 0.
    """

    start: float = 0.0
    drift: float = 0.0
    swing: float = 0.0
    frequency: float = 1.0
    phase: float = 0.0

    def __call__(self, t: Array) -> Array:
        """Values at some times."""
        swing = np.sin(self.frequency * t + self.phase) - np.sin(self.phase)
        value: Array = self.start + self.drift * t + self.swing * swing
        return value


@dataclass(frozen=True)
class Motion:
    """Where a plane's points appear: ``p = scale * rotation * shear * q + position``, from the picture's middle.

    Attributes:
        x: Position, pixels to the right.
        y: Position, pixels down.
        angle: Rotation in radians, from x to y.
        zoom: Logarithm of the scale.
        shear: How far a point moves in x for each pixel that it lies in y.
    """

    x: Course = field(default_factory=Course)
    y: Course = field(default_factory=Course)
    angle: Course = field(default_factory=Course)
    zoom: Course = field(default_factory=Course)
    shear: Course = field(default_factory=Course)

    def pose(self, t: npt.ArrayLike) -> tuple[Array, Array]:
        """Matrices [n, 2, 2] and positions [n, 2] at n times."""
        t = np.atleast_1d(np.asarray(t, np.float64))
        cosine, sine, shear = np.cos(self.angle(t)), np.sin(self.angle(t)), self.shear(t)
        rows = [[cosine, cosine * shear - sine], [sine, sine * shear + cosine]]
        matrix = np.moveaxis(np.array(rows) * np.exp(self.zoom(t)), -1, 0)
        return matrix, np.stack((self.x(t), self.y(t)), axis=-1)

    def at(self, t: float) -> tuple[Array, Array, Array]:
        """Matrix, its inverse and position at one time. Remembered: every epoch asks for the edges of windows."""
        return _pose_at(self, t)

    def plane_points(self, t: float, pixels: Array) -> Array:
        """Which points of the plane appear at pixels [..., 2] at a time."""
        _, back, position = self.at(t)
        points: Array = (pixels - position) @ back.T
        return points

    def change(self, start: float, end: float) -> tuple[Array, Array]:
        """Matrix and vector of the displacement: what is at p at the start has moved by ``matrix @ p + vector``."""
        _, back, here = self.at(start)
        after, _, there = self.at(end)
        matrix = after @ back - np.eye(2)
        return matrix, there - here - matrix @ here


@functools.lru_cache(maxsize=1 << 16)
def _pose_at(motion: Motion, t: float) -> tuple[Array, Array, Array]:
    matrix, position = motion.pose(t)
    return matrix[0], np.linalg.inv(matrix[0]), position[0]


def draw_motion(
    random: np.random.Generator, kind: MotionKind, speed: float, radius: float, start: tuple[float, float], stays: bool
) -> Motion:
    """Draws a motion that changes smoothly over time.

    Args:
        random: Source of the draw.
        kind: What moves. With "rotation" and "zoom" there is a slow translation too; "affine" has everything.
        speed: Largest speed in pixels per window that translation makes; the largest that the others make, each by
            itself, at the distance ``radius`` from the plane's origin.
        radius: See ``speed``.
        start: Position at time 0.
        stays: Swings about the start only, and does not drift away.
    """
    translation = speed * {"translation": 1.0, "rotation": 0.3, "zoom": 0.3, "affine": 0.6}[kind]
    turn = speed / radius * {"translation": 0.0, "rotation": 1.0, "zoom": 0.0, "affine": 0.5}[kind]
    zoom = speed / radius * {"translation": 0.0, "rotation": 0.0, "zoom": 1.0, "affine": 0.4}[kind]
    shear = speed / radius * {"translation": 0.0, "rotation": 0.0, "zoom": 0.0, "affine": 0.3}[kind]
    x, y = _draw_position(random, translation, start, stays)
    angle = _draw_course(random, turn, start=random.uniform(-np.pi, np.pi), drifts=True)
    return Motion(x, y, angle, _draw_course(random, zoom), _draw_course(random, shear))


def _draw_position(
    random: np.random.Generator, speed: float, start: tuple[float, float], stays: bool
) -> tuple[Course, Course]:
    speed *= random.uniform(0.4, 1.0)
    drift = 0.0 if stays else random.uniform(0.4, 0.8) * speed
    towards, across = random.uniform(0, 2 * np.pi, 2)
    frequency, phase = 2 * np.pi / random.uniform(*_PERIODS), random.uniform(0, 2 * np.pi)
    swing = (speed - drift) / frequency
    x = Course(start[0], drift * np.cos(towards), swing * np.cos(across), frequency, phase)
    y = Course(start[1], drift * np.sin(towards), swing * np.sin(across), frequency, phase)
    return x, y


def _draw_course(random: np.random.Generator, speed: float, start: float = 0.0, drifts: bool = False) -> Course:
    speed *= random.uniform(0.4, 1.0)
    drift = random.choice([-1, 1]) * random.uniform(0.4, 0.8) * speed if drifts else 0.0
    frequency, phase = 2 * np.pi / random.uniform(*_PERIODS), random.uniform(0, 2 * np.pi)
    return Course(start, drift, (speed - abs(drift)) / frequency, frequency, phase)
