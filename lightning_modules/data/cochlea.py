"""An artificial cochlea: sound to spikes of many frequency channels, without any chance in it.

Sound passes a bank of gammatone filters, spaced evenly on the ear's scale of frequencies (Glasberg & Moore 1990), whose
envelopes are compressed and adapt, as hair cells do; each channel then drives a leaky integrate-and-fire neuron. It is
like the model behind SHD in its number of channels and in its file format, not in its details: that one follows the
waves of the basilar membrane and has several cells per channel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
"""Changes when the same sound would give other spikes."""

_ENVELOPE_HZ = 2000  # rate at which envelopes are computed; filters are cut off at half of it beside their centre
_STEP_HZ = 1000  # rate of the neurons
_TAIL_S = 0.05  # filters ring on after the end


@dataclass(frozen=True)
class Cochlea:
    """Settings of the model.

    Attributes:
        channels: Number of channels, in order of rising frequency.
        lowest_hz: Centre of the first channel.
        highest_hz: Centre of the last one; must be below half of the sound's sampling rate.
        floor_db: How far below the loudest 10 ms of a recording (taken as the same level in all) sound is too soft to
            be heard by any channel.
        adaptation: Part of the drive that the recent past takes away, from 0 to 1.
        adaptation_ms: How far that past reaches.
        gain: Drive of the neurons by the loudest sounds, in thresholds per millisecond.
        membrane_ms: Time constant of the neurons.
    """

    channels: int = 700
    lowest_hz: float = 80.0
    highest_hz: float = 3800.0
    floor_db: float = 45.0
    adaptation: float = 0.6
    adaptation_ms: float = 60.0
    gain: float = 0.5
    membrane_ms: float = 8.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.channels < 1 or not 0 < self.lowest_hz <= self.highest_hz:
            raise ValueError(
                f"a cochlea needs channels and rising frequencies, got {self.channels} channels from "
                f"{self.lowest_hz} to {self.highest_hz} Hz"
            )
        if min(self.floor_db, self.adaptation_ms, self.gain, self.membrane_ms) <= 0 or not 0 <= self.adaptation <= 1:
            raise ValueError(f"levels and time constants must be positive and adaptation 0 to 1, got {self}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, with the version of the model."""
        return {"version": VERSION, **asdict(self)}

    def centres(self) -> npt.NDArray[np.float64]:
        """Frequencies of the channels in hertz."""
        low, high = (21.4 * np.log10(1 + 0.00437 * hz) for hz in (self.lowest_hz, self.highest_hz))
        spaced: npt.NDArray[np.float64] = (10 ** (np.linspace(low, high, self.channels) / 21.4) - 1) / 0.00437
        return spaced

    def __call__(self, sound: npt.ArrayLike, rate: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint16]]:
        """Turns sound into spikes.

        Args:
            sound: Samples ``[time]``, in any unit: the level of the recording does not matter.
            rate: Samples per second, a multiple of 2000.

        Returns:
            Times in seconds and channels of all spikes, in order of time.
        """
        drive = self.drive(sound, rate)
        fired = _fire(drive, float(np.exp(-1000 / _STEP_HZ / self.membrane_ms)))
        step, channel = np.nonzero(fired)
        return step / _STEP_HZ, channel.astype(np.uint16)

    def drive(self, sound: npt.ArrayLike, rate: int) -> npt.NDArray[np.float64]:
        """What the neurons of the channels receive in each millisecond: ``[milliseconds, channels]``."""
        from scipy.signal import lfilter

        envelope = self.envelopes(sound, rate)
        loudest = envelope.max(initial=0.0)
        if loudest <= 0:
            return np.zeros((envelope.shape[1], self.channels))
        with np.errstate(divide="ignore"):
            level = np.clip(1 + 20 * np.log10(envelope / loudest) / self.floor_db, 0, 1)
        decay = float(np.exp(-1000 / _STEP_HZ / self.adaptation_ms))
        past = lfilter([1 - decay], [1, -decay], level, axis=1)
        # Rounded, so that another order of floating-point sums elsewhere does not change who reaches the threshold.
        drive: npt.NDArray[np.float64] = np.round(self.gain * np.maximum(level - self.adaptation * past, 0), 6).T
        return drive

    def envelopes(self, sound: npt.ArrayLike, rate: int) -> npt.NDArray[np.float64]:
        """Amplitude of the sound in each channel and millisecond: ``[channels, milliseconds]``."""
        from scipy import fft

        sound = np.asarray(sound, np.float64)
        if sound.ndim != 1:
            raise ValueError(f"sound must have one channel, got shape {sound.shape}")
        if rate % _ENVELOPE_HZ or rate <= 2 * self.highest_hz:
            raise ValueError(
                f"the sampling rate must be a multiple of {_ENVELOPE_HZ} and more than twice {self.highest_hz} Hz, "
                f"the highest channel's frequency; got {rate}"
            )
        length = -(-int((len(sound) / rate + _TAIL_S) * _ENVELOPE_HZ) // 128) * 128
        spectrum = fft.rfft(sound, length * rate // _ENVELOPE_HZ)
        bins, response = _bank(self, length, len(spectrum))
        band = fft.ifft(spectrum[bins] * response, axis=1) * (2 * _ENVELOPE_HZ / rate)
        used = int((len(sound) / rate + _TAIL_S) * _STEP_HZ)
        amplitude: npt.NDArray[np.float64] = np.abs(band).reshape(self.channels, -1, _ENVELOPE_HZ // _STEP_HZ).mean(2)
        return amplitude[:, :used]


@lru_cache(maxsize=4)
def _bank(cochlea: Cochlea, length: int, available: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.complex128]]:
    """For each channel, the bins of the spectrum around its centre, and the filter's response to them."""
    width = _ENVELOPE_HZ / length
    centres = cochlea.centres()[:, None]
    bins: npt.NDArray[np.int64] = np.round(centres / width).astype(np.int64) + _fft_order(length)
    bandwidth = 1.019 * 24.7 * (1 + 0.00437 * centres)
    response = np.asarray((1 + 1j * (bins * width - centres) / bandwidth) ** -4, np.complex128)
    outside = (bins <= 0) | (bins >= available)
    response[outside] = 0
    bins[outside] = 0
    return bins, response


def _fft_order(length: int) -> npt.NDArray[np.int64]:
    """Numbers of the bins of a Fourier transform: 0, 1, ..., then the negative ones."""
    order: npt.NDArray[np.int64] = np.fft.ifftshift(np.arange(length) - length // 2)
    return order


def _fire(drive: npt.NDArray[np.float64], decay: float) -> npt.NDArray[np.bool_]:
    """Leaky integrate-and-fire neurons with threshold 1 and reset to 0, one per channel."""
    fired = np.zeros(drive.shape, np.bool_)
    membrane = np.zeros(drive.shape[1])
    for step, current in enumerate(drive):
        membrane *= decay
        membrane += current
        np.greater_equal(membrane, 1.0, out=fired[step])
        membrane[fired[step]] = 0.0
    return fired
