"""Callbacks: what happens in a network while it trains, and what a resumed run needs."""

from lightning_modules.callbacks.attachment import AttachmentReport
from lightning_modules.callbacks.firing_rates import FiringRates
from lightning_modules.callbacks.flow_pictures import FlowPictures
from lightning_modules.callbacks.flow_table import FlowTable
from lightning_modules.callbacks.manual_options import ManualOptions
from lightning_modules.callbacks.measurements import History, PeakMemory, Throughput
from lightning_modules.callbacks.norms import EdgeNorms
from lightning_modules.callbacks.one_order import OneOrder
from lightning_modules.callbacks.pictures import SequencePictures
from lightning_modules.callbacks.resumable import ResumeRandomness

__all__ = [
    "AttachmentReport",
    "EdgeNorms",
    "FiringRates",
    "FlowPictures",
    "FlowTable",
    "History",
    "ManualOptions",
    "OneOrder",
    "PeakMemory",
    "ResumeRandomness",
    "SequencePictures",
    "Throughput",
]
