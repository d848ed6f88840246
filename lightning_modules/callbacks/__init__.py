"""Callbacks: what happens in a network while it trains, and what a resumed run needs."""

from lightning_modules.callbacks.firing_rates import FiringRates
from lightning_modules.callbacks.manual_options import ManualOptions
from lightning_modules.callbacks.measurements import History, PeakMemory, Throughput

__all__ = ["FiringRates", "History", "ManualOptions", "PeakMemory", "Throughput"]
