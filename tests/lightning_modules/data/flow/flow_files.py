"""Writes small recordings in the layouts of the public flow data sets. Shares no code with the package."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

T0 = 1_506_117_905.25  # seconds since 1970, as MVSEC has them


@dataclass
class Scene:
    """A made-up recording: events, pictures and true flow at a rate of its own."""

    size: tuple[int, int]
    events: np.ndarray  # [N, 4]: x, y, t, p (-1 or +1)
    picture_times: np.ndarray
    pictures: np.ndarray
    flow_times: np.ndarray
    flow: np.ndarray  # [K, 2, H, W]


def scene(
    size=(12, 16), seconds=1.6, pictures_hz=40, flow_hz=20, flow_from=0.28, count=1600, seed=0, flow=None
) -> Scene:
    random = np.random.default_rng(seed)
    height, width = size
    t = np.sort(random.uniform(0, seconds, count)) + T0
    t[0] = T0
    x, y = random.integers(0, width, count), random.integers(0, height, count)
    events = np.stack((x, y, t, random.choice([-1, 1], count)), axis=1).astype(np.float64)
    picture_times = T0 + 0.013 + np.arange(0, seconds - 0.05, 1 / pictures_hz)
    pictures = random.integers(0, 256, (len(picture_times), height, width)).astype(np.uint8)
    flow_times = T0 + flow_from + np.arange(0, seconds - 0.2 - flow_from, 1 / flow_hz)
    if flow is None:  # smooth in place and time, some of it unknown
        row, column = np.mgrid[0:height, 0:width] / max(size)
        phase = np.arange(len(flow_times))[:, None, None] / 3
        flow = np.stack((2 + 1.5 * np.sin(4 * row + phase), 1.5 * np.cos(3 * column - phase)), axis=1)
        flow = np.where(random.random((len(flow_times), 1, height, width)) < 0.1, 0, flow)
    else:
        flow = np.broadcast_to(np.asarray(flow, float).reshape(1, 2, 1, 1), (len(flow_times), 2, height, width))
    return Scene(size, events, picture_times, pictures, flow_times, np.array(flow, np.float64))


def walked(scene: Scene, start: float, end: float):
    """True flow from start to end, pixel by pixel: follows each through the maps, as published evaluations do."""
    height, width = scene.size
    times = scene.flow_times
    flow, valid = np.zeros((2, height, width)), np.zeros((height, width), bool)
    first = max(i for i, time in enumerate(times) if time <= start + 1e-7)
    for row0 in range(height):
        for column0 in range(width):
            if times[first + 1] - times[first] > end - start + 1e-7:
                steps = [(first, (end - start) / (times[first + 1] - times[first]))]
            else:
                steps, i, now = [], first, start
                while now < end - 1e-7:
                    until = min(end, times[i + 1])
                    steps.append((i, (until - now) / (times[i + 1] - times[i])))
                    now, i = until, i + 1
            x, y, known = float(column0), float(row0), True
            for i, part in steps:
                column, row = round(x), round(y)
                if not (0 <= column < width and 0 <= row < height):
                    known = False
                    break
                u, v = scene.flow[i, :, row, column]
                if not (np.isfinite(u) and np.isfinite(v)) or (u == 0 and v == 0):
                    known = False
                    break
                x, y = x + part * u, y + part * v
            if known:
                flow[:, row0, column0] = x - column0, y - row0
                valid[row0, column0] = True
    return flow, valid


def write_original(folder: Path, name: str, scene: Scene, truth="hdf5", pictures=True, compressed=False) -> Path:
    """The pair of files that MVSEC's makers offer."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_data.hdf5"
    with h5py.File(path, "w") as file:
        left = file.create_group("davis/left")
        left.create_dataset("events", data=scene.events, chunks=(100, 4), compression="gzip")
        if pictures:
            left["image_raw"] = scene.pictures
            left["image_raw_ts"] = scene.picture_times
            before = np.searchsorted(scene.events[:, 2], scene.picture_times) - 1
            left["image_raw_event_inds"] = before
        file["davis/right/events"] = scene.events[:5]
    if truth == "hdf5":
        with h5py.File(folder / f"{name}_gt.hdf5", "w") as file:
            file["davis/left/flow_dist"] = scene.flow
            file["davis/left/flow_dist_ts"] = scene.flow_times
    elif truth == "npz":
        save = np.savez_compressed if compressed else np.savez
        x, y = scene.flow[:, 0], scene.flow[:, 1]
        save(folder / f"{name}_gt_flow_dist.npz", timestamps=scene.flow_times, x_flow_dist=x, y_flow_dist=y)
    return path


def write_single(folder: Path, name: str, scene: Scene, pictures=True, crop=None, **compression) -> Path:
    """Everything in one file; perhaps the middle alone, as tudelft's files have it."""
    import h5py

    height, width = crop or scene.size
    top, left = (scene.size[0] - height) // 2, (scene.size[1] - width) // 2
    x, y, t, p = scene.events.T
    x, y = x - left, y - top
    kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    kept[0] = True if crop is None else kept[0]
    part = (..., slice(top, top + height), slice(left, left + width))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.attrs["t0"], file.attrs["duration"] = t[0], t[-1] - t[0]
        for column, values, kind in (("xs", x, "i2"), ("ys", y, "i2"), ("ts", t, "f8"), ("ps", p > 0, "?")):
            file.create_dataset(f"events/{column}", data=values[kept].astype(kind), chunks=(256,), **compression)
        if pictures:
            for i, (time, picture) in enumerate(zip(scene.picture_times, scene.pictures, strict=True)):
                file.create_dataset(f"images/image{i:09d}", data=picture[part]).attrs["timestamp"] = time
        low, high = (scene.flow_times[0], scene.flow_times[-1]) if len(scene.flow_times) else (np.inf, -np.inf)
        covered = scene.picture_times[(scene.picture_times >= low) & (scene.picture_times <= high)]
        for every in (1, 4):
            times = covered[::every]
            for i, (start, end) in enumerate(zip(times[:-1], times[1:], strict=True)):
                flow, _ = walked(scene, start, end)
                map_ = file.create_dataset(f"flow_dt{every}/{i:09d}", data=flow[part].astype(np.float32))
                map_.attrs["timestamp"] = end
    return path


def png16(picture: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel: [H, W, 3]."""
    height, width, _ = picture.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class Drive:
    """A made-up DSEC sequence."""

    size: tuple[int, int]
    offset: int
    events: np.ndarray  # [N, 4]: x, y, t (microseconds from 0), p (0 or 1)
    rectify: np.ndarray  # [H, W, 2]
    intervals: np.ndarray  # [K, 2]: from, to
    flow: np.ndarray  # [K, H, W, 3] uint16


def drive(size=(12, 16), intervals=5, count=2000, seed=0, offset=49_599_200_523) -> Drive:
    random = np.random.default_rng(seed)
    height, width = size
    t = np.sort(random.integers(0, 100_000 * (intervals + 1), count))
    x, y = random.integers(0, width, count), random.integers(0, height, count)
    events = np.stack((x, y, t, random.integers(0, 2, count)), axis=1)
    row, column = np.mgrid[0:height, 0:width]
    rectify = np.stack((column + 1.3, row - 0.4), axis=-1).astype(np.float32)
    edges = offset + 40_000 + 100_000 * np.arange(intervals + 1)
    flow = random.integers(0, 65_536, (intervals, height, width, 3)).astype(np.uint16)
    flow[..., 2] = random.random(flow.shape[:3]) < 0.8
    return Drive(size, offset, events, rectify, np.stack((edges[:-1], edges[1:]), axis=1), flow)


def write_drive(folder: Path, name: str, drive: Drive, flow=True, **compression) -> Path:
    """A sequence as DSEC's archives unpack."""
    import h5py

    events = folder / name / "events" / "left"
    events.mkdir(parents=True)
    with h5py.File(events / "events.h5", "w") as file:
        for column, values, kind in zip("xytp", drive.events.T, ("u2", "u2", "u4", "u1"), strict=True):
            file.create_dataset(f"events/{column}", data=values.astype(kind), chunks=(100,), **compression)
        milliseconds = np.arange(drive.events[-1, 2] // 1000 + 1)
        file["ms_to_idx"] = np.searchsorted(drive.events[:, 2], milliseconds * 1000).astype(np.uint64)
        file["t_offset"] = drive.offset
    with h5py.File(events / "rectify_map.h5", "w") as file:
        file["rectify_map"] = drive.rectify
    if flow:
        maps = folder / name / "flow" / "forward"
        maps.mkdir(parents=True)
        lines = [f"{start}, {end}" for start, end in drive.intervals]
        (maps.parent / "forward_timestamps.txt").write_text("\n".join(["# from_timestamp_us, to_timestamp_us", *lines]))
        for i, levels in enumerate(drive.flow):
            (maps / f"{2 * i + 2:06d}.png").write_bytes(png16(levels))
    return events / "events.h5"


def png8(picture: np.ndarray) -> bytes:
    """A PNG of grey levels or colours: [H, W] or [H, W, 3]."""
    height, width = picture.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if picture.ndim == 2 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_pictures(folder: Path, name: str, times: np.ndarray, pictures: np.ndarray, calibration: str = "") -> Path:
    """Pictures beside a sequence of DSEC."""
    rectified = folder / name / "images" / "left" / "rectified"
    rectified.mkdir(parents=True)
    (rectified.parents[1] / "timestamps.txt").write_text("\n".join(str(int(time)) for time in times))
    for i, picture in enumerate(pictures):
        (rectified / f"{i:06d}.png").write_bytes(png8(picture))
    if calibration:
        (folder / name / "calibration").mkdir()
        (folder / name / "calibration" / "cam_to_cam.yaml").write_text(calibration)
    return rectified
