"""What it costs at one step to make the signal of a hidden layer: each learning signal says so itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stllr_plugin.signals import SIGNALS, LearningSignal, SignalCost

Price = Callable[[Tensor, int], SignalCost]
"""From the layer's spikes [B, n, ...] and the number of classes to what the signal costs."""


def price_of(signal: str) -> Price:
    """What a signal costs.

    Raises:
        ValueError: Nobody has said what it costs; any guess would be wrong in silence.
    """
    priced = {name: kind for name, kind in SIGNALS.items() if kind.cost.__func__ is not LearningSignal.cost.__func__}  # type: ignore[attr-defined]
    if signal not in priced:
        raise ValueError(
            f"What the learning signal {signal!r} costs is not known; known are {', '.join(priced)}. Give its class a "
            "classmethod cost(name, spikes, outputs), from spikes [B, n, ...] and the number of outputs to a "
            "stllr_plugin.signals.SignalCost."
        )

    def price(spikes: Tensor, classes: int) -> SignalCost:
        cost: SignalCost = priced[signal].cost(signal, spikes, classes)
        return cost

    return price
