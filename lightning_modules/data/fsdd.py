"""Spoken digits as cochleagram spikes derived from the Free Spoken Digit Dataset, in SHD's file format.

The recordings (3000 digits of six speakers at 8 kHz, CC BY-SA 4.0) pass the artificial cochlea of
`lightning_modules.data.cochlea` once; the spikes are written to a file in SHD's HDF5 layout and read from there as SHD
is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .archive import ArchiveError, read_archive
from .cache import cache_root
from .cochlea import Cochlea
from .events import EventDataError
from .lock import locked
from .shd import SpikeAudioDataModule
from .spike_files import SpikeFile, write_spike_file
from .splits import stratified_split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OFFICIAL_TEST_INDICES = 5
"""The official split tests each speaker's recordings 0 to 4 of each digit, and trains on the rest."""

_FIELDS = ("audio", "offsets", "labels", "speaker", "index", "speakers", "fs")
_WAV = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav")


@dataclass(frozen=True, eq=False)
class SpokenDigits:
    """Recordings of spoken digits.

    Attributes:
        audio: Samples of all recordings, one after the other, int16.
        offsets: Where each recording starts, and the total at the end: ``[recordings + 1]``.
        labels: Digit of each.
        speaker: Speaker of each, as a number.
        index: Number of each among its speaker's recordings of its digit.
        speakers: Names of the speakers.
        rate: Samples per second.
    """

    audio: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    speaker: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    speakers: tuple[str, ...]
    rate: int

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.labels)


def read_fsdd(path: str | Path) -> SpokenDigits:
    """Reads the data set: its folder ``recordings`` of .wav files, or one ``.npz`` file with everything.

    Raises:
        FileNotFoundError: There is nothing under this path.
        EventDataError: It is neither, or a file is damaged or does not fit. The message names the file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (expected FSDD: a folder of .wav files, or an .npz)")
    return _read_folder(path) if path.is_dir() else _read_npz(path)


def _read_npz(path: Path) -> SpokenDigits:
    try:
        arrays = read_archive(path)
    except ArchiveError as error:
        raise EventDataError(f"{path}: {error}; expected FSDD") from error
    missing = [name for name in _FIELDS if name not in arrays]
    if missing:
        raise EventDataError(f"{path}: not FSDD: arrays {missing} are missing; found {sorted(arrays)}")
    offsets, labels = arrays["offsets"], arrays["labels"]
    if offsets.shape != (len(labels) + 1,) or offsets[0] != 0 or offsets[-1] != len(arrays["audio"]):
        raise EventDataError(f"{path}: offsets must run from 0 to the number of samples, one more than labels")
    if (np.diff(offsets) < 0).any():
        raise EventDataError(f"{path}: offsets fall")
    speakers = tuple(str(name) for name in arrays["speakers"])
    digits = SpokenDigits(
        audio=arrays["audio"],
        offsets=offsets,
        labels=labels.astype(np.int64),
        speaker=arrays["speaker"].astype(np.int64),
        index=arrays["index"].astype(np.int64),
        speakers=speakers,
        rate=int(arrays["fs"]),
    )
    for name in ("speaker", "index"):
        if getattr(digits, name).shape != labels.shape:
            raise EventDataError(f"{path}: {name} must have one number per recording")
    if len(digits) and not (digits.labels.max() < len(DIGITS) and digits.speaker.max() < len(speakers)):
        raise EventDataError(f"{path}: labels must be 0 to 9 and speakers 0 to {len(speakers) - 1}")
    return digits


def _read_folder(folder: Path) -> SpokenDigits:
    from scipy.io import wavfile

    files = sorted((folder / "recordings" if (folder / "recordings").is_dir() else folder).glob("*.wav"))
    named = [(path, match) for path in files if (match := _WAV.fullmatch(path.name))]
    if not named:
        raise EventDataError(f"{folder}: there are no recordings named DIGIT_SPEAKER_INDEX.wav in it")
    speakers = tuple(sorted({match["speaker"] for _, match in named}))
    sounds, rates = [], set()
    for path, _ in named:
        try:
            rate, sound = wavfile.read(path)
        except Exception as error:  # a damaged file can fail anywhere: in struct, in numpy, in scipy's own checks
            raise EventDataError(f"{path}: no .wav file, or cut off or damaged ({error})") from error
        if sound.ndim != 1 or sound.dtype != np.int16:
            raise EventDataError(f"{path}: expected 16 bits and one channel, found {sound.dtype}{sound.shape}")
        sounds.append(sound)
        rates.add(rate)
    if len(rates) != 1:
        raise EventDataError(f"{folder}: the recordings differ in their sampling rates: {sorted(rates)}")
    return SpokenDigits(
        audio=np.concatenate(sounds),
        offsets=np.concatenate(([0], np.cumsum([len(sound) for sound in sounds]))),
        labels=np.array([int(match["digit"]) for _, match in named]),
        speaker=np.array([speakers.index(match["speaker"]) for _, match in named]),
        index=np.array([int(match["index"]) for _, match in named]),
        speakers=speakers,
        rate=rates.pop(),
    )


def convert_fsdd(
    path: str | Path,
    cochlea: Cochlea | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Turns the recordings into a file of spikes in SHD's layout, once; later calls find it in the cache.

    Beside SHD's own entries the file has ``extra/index`` (see `SpokenDigits`). Speakers are numbered in the order of
    `SpokenDigits.speakers`.

    Args:
        path: As for `read_fsdd`.
        cochlea: The model; the defaults if None.
        cache_dir: Cache directory; default as in `lightning_modules.data.cache.cache_root`.
        progress: Show a progress bar (the 3000 recordings take some minutes).

    Returns:
        Path of the file.
    """
    from rich.progress import track

    cochlea = cochlea or Cochlea()
    digits = read_fsdd(path)
    content = hashlib.blake2b(digest_size=8)
    for array in (digits.audio, digits.offsets, digits.labels, digits.speaker, digits.index):
        content.update(np.ascontiguousarray(array).tobytes())
    key = {"content": content.hexdigest(), "rate": digits.rate, "cochlea": cochlea.to_dict()}
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    target = cache_root(cache_dir) / f"fsdd-{name}.h5"
    if target.exists():
        return target
    with locked(target.parent / f".{target.name}.lock"):
        if not target.exists():
            parts = zip(digits.offsets[:-1], digits.offsets[1:], strict=True)
            sounds = (digits.audio[low:high] for low, high in parts)
            spikes = [
                cochlea(sound, digits.rate)
                for sound in track(sounds, "spikes of FSDD", total=len(digits), disable=not progress)
            ]
            times, units = [one for one, _ in spikes], [one for _, one in spikes]
            write_spike_file(
                target, times, units, digits.labels, DIGITS, {"speaker": digits.speaker, "index": digits.index}
            )
    return target


class FSDDDataModule(SpikeAudioDataModule):
    """Cochleagram spikes derived from FSDD (not SHD): ten spoken digits, 700 channels.

    Two splits. "official" tests recordings 0 to 4 of each speaker and digit (300) and trains on the others: all
    speakers are known. "speakers" tests speakers that are never heard in training, which is much harder. Validation
    recordings come from the training recordings, stratified by class; with ``val_speakers`` they are those of whole
    speakers.

    Args:
        path: The data set: its folder of .wav files, or one ``.npz`` file (see `read_fsdd`).
        split: "official" or "speakers".
        test_speakers: Names of the speakers left out of training, for "speakers".
        val_speakers: Names of speakers whose recordings are for validation.
        cochlea: Settings of the artificial cochlea; the defaults if None.
        **kwargs: See `SpikeAudioDataModule`.
    """

    num_classes = len(DIGITS)

    def __init__(
        self,
        path: str | Path,
        split: Literal["official", "speakers"] = "official",
        test_speakers: Sequence[str] = ("theo", "yweweler"),
        val_speakers: Sequence[str] = (),
        cochlea: Cochlea | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if split not in ("official", "speakers"):
            raise ValueError(f'split={split!r} is not known; use "official" or "speakers".')
        if split == "speakers" and not test_speakers:
            raise ValueError('split="speakers" needs test_speakers.')
        self.path = path
        self.split_kind = split
        self.test_speakers = tuple(test_speakers)
        self.val_speakers = tuple(val_speakers)
        self.cochlea = cochlea or Cochlea()
        self.channels = self.cochlea.channels
        self._speakers: tuple[str, ...] = ()

    @property
    def dataset_name(self) -> str:
        """What the spikes are."""
        changed = "" if self.cochlea == Cochlea() else f", {self.cochlea}"
        return f"cochleagram spikes derived from FSDD{changed}"

    @property
    def split_name(self) -> str:
        """Which recordings are tested, and where the validation recordings come from."""
        test = (
            "the official test part (recordings 0 to 4 of each speaker and digit)"
            if self.split_kind == "official"
            else f"speakers {' and '.join(self.test_speakers)} left out for the test"
        )
        val, train = len(self.dataset("val")), len(self.dataset("train"))
        how = (
            f"all of {' and '.join(self.val_speakers)}"
            if self.val_speakers
            else f"stratified, split seed {self.split_seed}"
        )
        return f"{test}; {val} of the other {train + val} ({how}) for validation"

    def files(self) -> Mapping[str, Path]:
        """One file with all recordings, made at the first call."""
        self._speakers = read_fsdd(self.path).speakers
        return {"all": convert_fsdd(self.path, self.cochlea, self.cache_dir, self.progress)}

    def split(self, files: Mapping[str, SpikeFile]) -> Mapping[str, tuple[str, npt.NDArray[np.int64]]]:
        """By recording number or by speaker."""
        file = files["all"]
        speaker, index = file.extra["speaker"], file.extra["index"]
        if self.split_kind == "official":
            tested = index < OFFICIAL_TEST_INDICES
        else:
            tested = np.isin(speaker, self._numbers(self.test_speakers))
        rest = np.flatnonzero(~tested)
        if self.val_speakers:
            held_out = np.isin(speaker[rest], self._numbers(self.val_speakers))
            train, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        else:
            size = round(len(rest) * self.val_fraction)
            strata = file.labels[rest] * len(self._speakers) + speaker[rest]
            train, val = stratified_split(strata, (len(rest) - size, size), self.split_seed)
        parts = {"train": rest[train], "val": rest[val], "test": np.flatnonzero(tested)}
        return {part: ("all", indices) for part, indices in parts.items()}

    def _numbers(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self._speakers]
        if unknown:
            raise EventDataError(f"{self.path}: there are no speakers {unknown}; it has {list(self._speakers)}")
        return [self._speakers.index(name) for name in names]
