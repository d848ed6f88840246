"""Event recordings of simulated scenes, with grey pictures and exact flow.

Everything about recording ``i`` of a part follows from the seed, the part and ``i``, whatever else is simulated; the
sensor follows from the seed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.archive import Arrays
from lightning_modules.data.cache import cached_arrays
from lightning_modules.data.event_camera import CameraSettings, EventCamera
from lightning_modules.data.events import EventDataError
from lightning_modules.data.packed import PackedEvents

from .motion import KINDS, MotionKind, draw_motion
from .recording import EventColumns, FlowRecording, WindowedEvents, windows_between
from .scenes import Layer, LayeredScene, Outline, Scene
from .textures import noise_texture, picture_texture

SIMULATOR_VERSION = 1
"""Part of every cache key: raise it with any change that alters events or pictures."""

PARTS = ("train", "val", "test")
_CAMERA_STREAM, _SCENE_STREAM, _TEXTURE_STREAM, _EVENT_STREAM = range(4)
_SIMULATED_AT_ONCE = 8
_DARK = 0.1  # added to grey values before the logarithm


@dataclass(frozen=True)
class SimulationSettings:
    """What simulated recordings look like.

    Attributes:
        seed: Seed of the sensor, the scenes and the events.
        size: Height and width in pixels.
        windows: Windows of each recording.
        window_us: Duration of a window in microseconds.
        steps: Simulated steps of a window. A pixel fires once in a step at most.
        speed: Largest speed in pixels per window, roughly: of translation, and at half the picture's height from the
            middle of rotation and zoom.
        kinds: Kinds of motion that recordings and their layers have.
        layers: Most layers before the background.
        pictures: Half of the textures are parts of scikit-image's pictures, others for training than for validation and
            for test. False: all are noise.
        camera: The sensor's thresholds and noise.
    """

    seed: int = 0
    size: tuple[int, int] = (64, 64)
    windows: int = 20
    window_us: int = 50_000
    steps: int = 20
    speed: float = 4.0
    kinds: tuple[MotionKind, ...] = KINDS
    layers: int = 2
    pictures: bool = True
    camera: CameraSettings = field(default_factory=partial(CameraSettings, threshold=0.2))

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("windows", "window_us", "steps", "speed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if len(self.size) != 2 or min(self.size) < 4:
            raise ValueError(f"size must be a height and a width of at least 4 pixels, got {self.size}")
        for name in ("seed", "layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {self.kinds}")
        if self.window_us % self.steps:
            raise ValueError(f"window_us ({self.window_us}) must be a multiple of steps ({self.steps})")

    @property
    def step_us(self) -> int:
        """Duration of a simulated step."""
        return self.window_us // self.steps


SceneMaker = Callable[[SimulationSettings, str, int], Scene]


def draw_scene(settings: SimulationSettings, part: str, number: int) -> LayeredScene:
    """Draws a background and layers before it, with motions and textures of their own.

    Args:
        settings: What recordings look like.
        part: "train", "val" or "test".
        number: Number of the scene within its part.
    """
    key = [settings.seed, _SCENE_STREAM, PARTS.index(part), number]
    random = np.random.default_rng(key)
    height, width = settings.size
    kind = settings.kinds[int(random.integers(len(settings.kinds)))]
    radius = height / 2

    def layer(place: int, kind: MotionKind, side: int, start: tuple[float, float], outline: Outline | None) -> Layer:
        # Textures have random numbers of their own, so that motions can be had without making them.
        seed = [settings.seed, _TEXTURE_STREAM, PARTS.index(part), number, place]
        texture = partial(_texture, seed, side, part, settings.pictures)
        motion = draw_motion(random, kind, settings.speed, radius, start, stays=outline is not None)
        return Layer(motion, texture, outline)

    side = 3 * max(height, width)
    centre = (random.uniform(-0.25, 0.25) * width, random.uniform(-0.25, 0.25) * height)
    layers = [layer(0, kind, side, centre, None)]
    for place in range(1, int(random.integers(settings.layers + 1)) + 1):
        kind = settings.kinds[int(random.integers(len(settings.kinds)))]
        amplitudes, phases = random.uniform(0, 0.15, 4), random.uniform(0, 2 * np.pi, 4)
        outline = Outline(min(height, width) * random.uniform(0.12, 0.25), np.stack((amplitudes, phases), axis=-1))
        start = (random.uniform(-0.35, 0.35) * width, random.uniform(-0.35, 0.35) * height)
        layers.append(layer(place, kind, int(2 * outline.reach) + 4, start, outline))
    return LayeredScene(settings.size, layers)


def _texture(seed: Sequence[int], side: int, part: str, pictures: bool) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    if pictures and random.random() < 0.5:
        return picture_texture(random, side, part)
    return noise_texture(random, side)


def simulate(settings: SimulationSettings, scenes: Sequence[Scene], part: str, first: int = 0) -> Arrays:
    """Films scenes with the simulated event camera.

    Args:
        settings: What recordings look like.
        scenes: The scenes.
        part: "train", "val" or "test".
        first: Number of the first scene within its part.

    Returns:
        The arrays of `PackedEvents` (a recording's label is its number), and ``frames`` [recordings, windows + 1, H, W]
        uint8, the grey pictures at the windows' edges.
    """
    height, width = settings.size
    camera = EventCamera(settings.camera, height * width, [settings.seed, _CAMERA_STREAM])
    times = np.arange(settings.windows * settings.steps + 1) / settings.steps
    buffer = np.empty((min(len(scenes), _SIMULATED_AT_ONCE), len(times), height, width), np.float32)
    chunks: list[PackedEvents] = []
    polarities, frames = [], []
    for low in range(0, len(scenes), _SIMULATED_AT_ONCE):
        some = scenes[low : low + _SIMULATED_AT_ONCE]
        levels = buffer[: len(some)]
        for level, scene in zip(levels, some, strict=True):
            level[:] = scene.grey(times)
        frames.append(np.round(levels[:, :: settings.steps] * 255).astype(np.uint8))
        levels += np.float32(_DARK)
        levels = np.log(levels, out=levels).reshape(len(some), len(times), -1)
        seeds = ([settings.seed, _EVENT_STREAM, PARTS.index(part), first + low + i] for i in range(len(some)))
        seen = camera.observe(levels, settings.step_us, [np.random.default_rng(seed) for seed in seeds])
        offsets = np.concatenate(([0], np.cumsum(seen.counts)))
        x, y = seen.pixel % width, seen.pixel // width
        numbers = first + low + np.arange(len(some))
        chunks.append(PackedEvents.from_columns(x, y, seen.t, seen.p, offsets, numbers, settings.size))
        polarities.append(seen.p)
    # Joined as they are packed: all events of many recordings as int64 would need gigabytes.
    starts = np.cumsum([0, *(len(chunk.x) for chunk in chunks)])
    packed = PackedEvents(
        x=np.concatenate([chunk.x for chunk in chunks]),
        y=np.concatenate([chunk.y for chunk in chunks]),
        dt_us=np.concatenate([chunk.dt_us for chunk in chunks]),
        p_bits=np.packbits(np.concatenate(polarities)),
        offsets=np.concatenate(
            ([0], *(chunk.offsets[1:] + start for chunk, start in zip(chunks, starts, strict=False)))
        ),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        sensor_size=settings.size,
    )
    return {**packed.to_arrays(), "frames": np.concatenate(frames)}


def simulated_recordings(
    settings: SimulationSettings,
    part: str,
    count: int,
    cache_dir: str | Path | None = None,
    make_scene: SceneMaker = draw_scene,
    source: dict[str, Any] | None = None,
) -> list[FlowRecording]:
    """Recordings from the cache, or simulated and put there.

    Args:
        settings: What recordings look like.
        part: "train", "val" or "test".
        count: Number of recordings.
        cache_dir: Cache directory; default as in `lightning_modules.data.cache.cache_root`.
        make_scene: Makes the scene of a part and number.
        source: What the scenes depend on besides the settings, as plain values; needed with another ``make_scene``, for
            the cache.
    """
    if make_scene is not draw_scene and source is None:
        raise ValueError("source must say what the scenes of another make_scene depend on, or the cache mixes them up")
    if count < 1:
        raise ValueError(f"part {part!r} needs at least 1 recording, got {count}")
    scenes = [make_scene(settings, part, number) for number in range(count)]
    key = {
        "simulator": SIMULATOR_VERSION,
        "settings": dataclasses.asdict(settings),
        "part": part,
        "count": count,
        "source": source,
    }

    def check(arrays: Arrays, name: str) -> PackedEvents:
        packed = PackedEvents.from_arrays(arrays, settings.size, name)
        expected = (count, settings.windows + 1, *settings.size)
        found = arrays["frames"].shape if "frames" in arrays else None
        if len(packed) != count or found != expected:
            raise EventDataError(f"{name}: expected frames {expected}, found {found}, and {len(packed)} recordings")
        return packed

    arrays = cached_arrays("simulated-flow", key, lambda: simulate(settings, scenes, part), cache_dir, check)
    packed = check(arrays, "simulated recordings")
    recordings: list[FlowRecording] = []
    for number, scene in enumerate(scenes):
        rows = slice(int(packed.offsets[number]), int(packed.offsets[number + 1]))
        name = f"{part} {number}"
        edges = settings.window_us * np.arange(settings.windows + 1)
        t, p = packed.times(number, number + 1), packed.polarities(number, number + 1)
        events = EventColumns(packed.x[rows], packed.y[rows], t, p)
        recordings.append(
            WindowedEvents(
                name,
                settings.size,
                events,
                windows_between(events.t, edges, name),
                frames=arrays["frames"][number],
                flow=_SceneFlow(scene, settings.window_us),
            )
        )
    return recordings


@dataclass(frozen=True)
class _SceneFlow:
    """True flow of a scene, asked for in microseconds."""

    scene: Scene
    window_us: int

    def __call__(self, start: float, end: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        return self.scene.flow(start / self.window_us, end / self.window_us)
