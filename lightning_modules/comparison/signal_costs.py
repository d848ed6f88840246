"""What it costs at one step to make the signal of a hidden layer, for each learning signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class SignalCost(NamedTuple):
    """Operations for each sample: numbers, or tensors [B]."""

    additions: Tensor | float
    macs: Tensor | float


Price = Callable[[Tensor, int], SignalCost]
"""From the layer's spikes [B, n, ...] and the number of classes to what the signal costs."""


def _active(spikes: Tensor) -> Tensor:
    return (spikes != 0).flatten(1).sum(1, dtype=torch.float64)


def _neurons(spikes: Tensor) -> int:
    return spikes[0].numel()


def _classifier(spikes: Tensor, classes: int) -> SignalCost:
    """A random one: spikes are read, the error goes back to each neuron."""
    return SignalCost(_active(spikes) * classes, classes * _neurons(spikes))


def _trained_classifier(spikes: Tensor, classes: int) -> SignalCost:
    """It has a gradient as well."""
    return SignalCost(2 * _active(spikes) * classes, classes * _neurons(spikes))


def _square_waves(spikes: Tensor, classes: int) -> SignalCost:
    """Products with -1 and 1 are additions. Of a convolution one average a channel is read, and taught."""
    if spikes.dim() == 2:
        return SignalCost(_active(spikes) * classes + classes * _neurons(spikes), 0)
    channels = spikes.shape[1]
    return SignalCost(_active(spikes) + classes * channels, classes * channels)


PRICES: dict[str, Price] = {
    "bp": lambda spikes, classes: SignalCost(0, 0),  # counted as the products that take it down
    "dfa": lambda spikes, classes: SignalCost(0, classes * _neurons(spikes)),
    "sign_dfa": lambda spikes, classes: SignalCost(classes * _neurons(spikes), 0),
    "drtp": lambda spikes, classes: SignalCost(_neurons(spikes), 0),  # one row of the matrix: that of the class
    "local": _trained_classifier,
    "local_random": _classifier,
    "tess": _square_waves,
}
"""A learning signal of your own gets an entry here before `stllr compare` can count it."""


def price_of(signal: str) -> Price:
    """What a signal costs.

    Raises:
        ValueError: Nobody has said what it costs; any guess would be wrong in silence.
    """
    if signal not in PRICES:
        raise ValueError(
            f"What the learning signal {signal!r} costs is not known; known are {', '.join(PRICES)}. Add an entry to "
            "PRICES of lightning_modules.comparison.signal_costs: from spikes [B, n, ...] and the number of classes to "
            "a SignalCost."
        )
    return PRICES[signal]
