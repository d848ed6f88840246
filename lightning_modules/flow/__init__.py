"""Optical flow: batches, warping, losses, metrics and pictures."""

from lightning_modules.flow.batch import FlowBatch, FlowWindow
from lightning_modules.flow.contrast import ContrastMaximisationLoss
from lightning_modules.flow.metrics import RSAT, AverageEndpointError, FlowOutliers, FlowWarpLoss, flow_metrics
from lightning_modules.flow.photometric import PhotometricLoss
from lightning_modules.flow.pictures import flow_figure
from lightning_modules.flow.supervised import EndpointErrorLoss

__all__ = [
    "RSAT",
    "AverageEndpointError",
    "ContrastMaximisationLoss",
    "EndpointErrorLoss",
    "FlowBatch",
    "FlowOutliers",
    "FlowWarpLoss",
    "FlowWindow",
    "PhotometricLoss",
    "flow_figure",
    "flow_metrics",
]
