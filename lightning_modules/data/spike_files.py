"""Spikes of sound in the HDF5 layout of the Heidelberg data sets (SHD, SSC).

A file holds ``spikes/times`` (seconds) and ``spikes/units`` (channels), each an array of arrays, one per recording;
``labels``; and ``extra``, with ``speaker`` per recording and the names of the classes in ``keys``. (Cramer, Stradmann,
Schemmel & Zenke, "The Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking Neural Networks", IEEE
Transactions on Neural Networks and Learning Systems 2022.)
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .events import EventDataError

CHANNELS = 700


@dataclass(frozen=True, eq=False)
class SpikeRecordings:
    """Some recordings, in flat arrays.

    Attributes:
        times: Seconds of all spikes, recording after recording, float32.
        units: Their channels.
        offsets: Where each recording starts, and the total at the end: ``[recordings + 1]``.
    """

    times: npt.NDArray[np.float32]
    units: npt.NDArray[np.uint16]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.offsets) - 1


class SpikeFile:
    """An HDF5 file of spikes, read piece by piece: nothing but labels and the like is kept in memory.

    Args:
        path: The file.
        num_classes: Labels must be less than this.
        channels: Units must be less than this.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no HDF5 file, is cut off or damaged, or lacks something. The message names the file.
    """

    def __init__(self, path: str | Path, num_classes: int, channels: int = CHANNELS) -> None:
        self.path = Path(path).expanduser()
        self.num_classes = num_classes
        self.channels = channels
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file (expected spikes in the layout of SHD, .h5)")
        with self._open() as file:
            missing = [name for name in ("spikes/times", "spikes/units", "labels") if name not in file]
            if missing:
                raise EventDataError(
                    f"{self.path}: not in the layout of SHD: {missing} are missing; found {sorted(file)}"
                )
            labels = np.asarray(file["labels"])
            sizes = {name: len(file[name]) for name in ("spikes/times", "spikes/units", "labels")}
            if len(set(sizes.values())) != 1:
                raise EventDataError(f"{self.path}: the arrays differ in their number of recordings: {sizes}")
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise EventDataError(f"{self.path}: labels must be integers, one per recording; found {labels.dtype}")
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise EventDataError(
                    f"{self.path}: labels must be 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}"
                )
            self.labels = labels.astype(np.int64)
            self.extra: dict[str, npt.NDArray[np.int64]] = {}
            """What else there is for each recording, such as its "speaker"."""
            for name, entry in file["extra"].items() if "extra" in file else ():
                if getattr(entry, "shape", None) == labels.shape and entry.dtype.kind in "iu":
                    self.extra[name] = np.asarray(entry).astype(np.int64)

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.labels)

    def read(self, low: int, high: int) -> SpikeRecordings:
        """Reads and checks recordings ``low`` to ``high``.

        Raises:
            EventDataError: They cannot be read, or hold impossible times or channels.
        """
        with self._open() as file:
            times, units = file["spikes/times"][low:high], file["spikes/units"][low:high]
        counts = np.array([len(one) for one in times], dtype=np.int64)
        for i, (count, own) in enumerate(zip(counts, units, strict=True)):
            if count != len(own):
                raise EventDataError(f"{self.path}: recording {low + i} has {count} times and {len(own)} units")
        flat = np.concatenate([np.asarray(one, np.float32) for one in times] or [np.zeros(0, np.float32)])
        channels = np.concatenate([np.asarray(one) for one in units] or [np.zeros(0, np.uint16)])
        offsets = np.concatenate(([0], np.cumsum(counts)))
        for bad, what in (
            (~(np.isfinite(flat) & (flat >= 0)), "a time that is negative or not finite"),
            ((channels < 0) | (channels >= self.channels), f"a unit outside of 0 to {self.channels - 1}"),
        ):
            if bad.any():
                recording = low + int(np.searchsorted(offsets, int(bad.argmax()), side="right")) - 1
                raise EventDataError(f"{self.path}: recording {recording} has {what}")
        return SpikeRecordings(flat, channels.astype(np.uint16), offsets)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        h5py = import_h5py()
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except (OSError, RuntimeError, KeyError) as error:  # a damaged file can fail anywhere
            raise EventDataError(f"{self.path}: no HDF5 file, or cut off or damaged ({error})") from error


def write_spike_file(
    path: str | Path,
    times: Sequence[npt.ArrayLike],
    units: Sequence[npt.ArrayLike],
    labels: npt.ArrayLike,
    keys: Sequence[str],
    extra: Mapping[str, npt.ArrayLike],
) -> None:
    """Writes recordings in SHD's own layout and types; the file is either complete under ``path`` or not there at all.

    Args:
        path: The file.
        times: Seconds of each recording's spikes; kept as float16, as SHD does.
        units: Channels of each recording's spikes.
        labels: Class of each recording.
        keys: Names of the classes.
        extra: Other numbers of each recording; SHD has its "speaker".
    """
    h5py = import_h5py()
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for name, arrays, dtype in (("times", times, np.float16), ("units", units, np.uint16)):
                data = file.create_dataset(f"spikes/{name}", (len(arrays),), dtype=h5py.vlen_dtype(dtype))
                for i, one in enumerate(arrays):
                    data[i] = np.asarray(one, dtype)
            file["labels"] = np.asarray(labels, np.uint16)
            for name, numbers in extra.items():
                file[f"extra/{name}"] = np.asarray(numbers, np.uint16)
            file["extra/keys"] = np.array([key.encode() for key in keys])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def import_h5py() -> Any:
    """The module h5py.

    Raises:
        ImportError: It is not installed; the message says which extra has it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "stllr-plugin[data]"') from error
    return h5py
