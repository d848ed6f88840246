"""PyTorch Lightning modules around :mod:`stllr_plugin`: tasks, networks, data and the ``stllr`` command.

The names below load on first use, so that ``stllr --help`` does not wait for Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_modules.moved import find_moved

if TYPE_CHECKING:
    from lightning_modules.callbacks import (
        AttachmentReport,
        EdgeNorms,
        FiringRates,
        FlowPictures,
        FlowTable,
        History,
        PeakMemory,
        SequencePictures,
        Throughput,
    )
    from lightning_modules.memory import PeakMemoryMeter, measure_peak_memory
    from lightning_modules.networks import (
        FSFN,
        RecurrentSNN,
        SpikingConvNet,
        SpikingFireNet,
        SpikingMLP,
        SpikingResNet,
        SpikingVGG,
        TimescaleSNN,
    )
    from lightning_modules.tasks.base import SpikingTask
    from lightning_modules.tasks.classification import SpikingClassifier
    from lightning_modules.tasks.optical_flow import OpticalFlowEstimator
    from lightning_modules.tasks.resumable import ResumableLoader
    from lightning_modules.tasks.step_classification import SpikingStepClassifier

find_moved()

_HOMES = {
    "AttachmentReport": "callbacks",
    "EdgeNorms": "callbacks",
    "FSFN": "networks",
    "FiringRates": "callbacks",
    "FlowPictures": "callbacks",
    "FlowTable": "callbacks",
    "History": "callbacks",
    "OpticalFlowEstimator": "tasks.optical_flow",
    "PeakMemory": "callbacks",
    "PeakMemoryMeter": "memory",
    "RecurrentSNN": "networks",
    "ResumableLoader": "tasks.resumable",
    "SequencePictures": "callbacks",
    "SpikingClassifier": "tasks.classification",
    "SpikingConvNet": "networks",
    "SpikingFireNet": "networks",
    "SpikingMLP": "networks",
    "SpikingResNet": "networks",
    "SpikingStepClassifier": "tasks.step_classification",
    "SpikingTask": "tasks.base",
    "SpikingVGG": "networks",
    "Throughput": "callbacks",
    "TimescaleSNN": "networks",
    "measure_peak_memory": "memory",
}

__all__ = [
    "AttachmentReport",
    "EdgeNorms",
    "FSFN",
    "FiringRates",
    "FlowPictures",
    "FlowTable",
    "History",
    "OpticalFlowEstimator",
    "PeakMemory",
    "PeakMemoryMeter",
    "RecurrentSNN",
    "ResumableLoader",
    "SequencePictures",
    "SpikingClassifier",
    "SpikingConvNet",
    "SpikingFireNet",
    "SpikingMLP",
    "SpikingResNet",
    "SpikingStepClassifier",
    "SpikingTask",
    "SpikingVGG",
    "Throughput",
    "TimescaleSNN",
    "measure_peak_memory",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
