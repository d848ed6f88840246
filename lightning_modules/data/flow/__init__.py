"""Data for optical flow: recordings cut into windows, loaded as parallel lanes."""

from .datamodule import FlowDataModule
from .dsec import DSECDataModule
from .lanes import LaneDataset, LaneSampler
from .mvsec import MVSECDataModule
from .recording import (
    EventColumns,
    FlowRecording,
    WindowData,
    WindowedEvents,
    windows_between,
    windows_by_count,
    windows_by_time,
)
from .rot_disk import RotDiskDataModule
from .simulated import SimulatedFlowDataModule
from .simulator import SimulationSettings

__all__ = [
    "DSECDataModule",
    "EventColumns",
    "FlowDataModule",
    "FlowRecording",
    "LaneDataset",
    "LaneSampler",
    "MVSECDataModule",
    "RotDiskDataModule",
    "SimulatedFlowDataModule",
    "SimulationSettings",
    "WindowData",
    "WindowedEvents",
    "windows_between",
    "windows_by_count",
    "windows_by_time",
]
