"""Data for optical flow: recordings cut into windows, loaded as parallel lanes."""

from .datamodule import FlowDataModule
from .lanes import LaneDataset, LaneSampler
from .rot_disk import RotDiskDataModule
from .simulated import SimulatedFlowDataModule
from .simulator import SimulationSettings
from .windows import (
    EventColumns,
    FlowRecording,
    WindowData,
    WindowedEvents,
    windows_between,
    windows_by_count,
    windows_by_time,
)

__all__ = [
    "EventColumns",
    "FlowDataModule",
    "FlowRecording",
    "LaneDataset",
    "LaneSampler",
    "RotDiskDataModule",
    "SimulatedFlowDataModule",
    "SimulationSettings",
    "WindowData",
    "WindowedEvents",
    "windows_between",
    "windows_by_count",
    "windows_by_time",
]
