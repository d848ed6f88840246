"""How good optical flow is: against true flow, and by how sharp it makes the picture of the events.

``metric.update(flow, window)`` takes the flow [B, 2, H, W] of every sample, in pixels per window. Samples whose
recording is over do not count, nor do windows in which nothing can be measured; where nothing was counted, the result
is NaN.

A result is the mean over windows of what each window gives, as in the published evaluations, in which a window with
few counted pixels weighs as much as any other.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.contrast import mean_times_loss
from lightning_modules.flow.fields import Mask, check_flows, events_of, true_flow
from lightning_modules.flow.warp import at_size, move_events, splat

Average = Literal["windows", "pixels"]


class _Mean(Metric):
    """A weighted mean over windows."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, settings: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A MetricCollection lets metrics share one state if states of the same names held the same values after the
        # first update; with other settings that would be chance. So the settings are part of the names.
        self._total, self._count = f"total_{settings}".replace(".", "_"), f"count_{settings}".replace(".", "_")
        self.add_state(self._total, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state(self._count, torch.tensor(0.0), dist_reduce_fx="sum")

    def _add(self, values: Tensor, weights: Tensor) -> None:
        """Count each sample's value [B] with its weight [B]; weight 0 leaves it out."""
        counted = torch.where(weights > 0, values * weights, 0)
        setattr(self, self._total, getattr(self, self._total) + counted.sum())
        setattr(self, self._count, getattr(self, self._count) + weights.sum())

    def compute(self) -> Tensor:
        """The mean; NaN where nothing was counted."""
        total: Tensor = getattr(self, self._total)
        count: Tensor = getattr(self, self._count)
        return total / count


class _AgainstTruth(_Mean):
    """A mean over the pixels whose flow is compared with the true one."""

    def __init__(self, settings: str, mask: Mask, average: Average, **kwargs: Any) -> None:
        if mask not in ("valid", "events", "both"):
            raise ValueError(f'{type(self).__name__}: mask={mask!r} is not known; use "valid", "events" or "both".')
        if average not in ("windows", "pixels"):
            raise ValueError(f'{type(self).__name__}: average={average!r} is not known; use "windows" or "pixels".')
        super().__init__(f"{settings}_{mask}_{average}", **kwargs)
        self.mask, self.average = mask, average

    def update(self, flow: Tensor, window: FlowWindow) -> None:
        """Count the windows of a batch."""
        name = type(self).__name__
        (flow,) = check_flows([flow.detach()], window, name)
        truth, counted = true_flow(window, name, self.mask)
        values = self.per_pixel(at_size(flow, (truth.shape[-2], truth.shape[-1])), truth)
        pixels = counted.flatten(1).sum(1)
        means = torch.where(counted, values, 0).flatten(1).sum(1) / pixels.clamp(min=1)
        self._add(means, (pixels > 0).to(means.dtype) if self.average == "windows" else pixels.to(means.dtype))

    def per_pixel(self, flow: Tensor, truth: Tensor) -> Tensor:
        """What is averaged, [B, H, W]."""
        raise NotImplementedError


class AverageEndpointError(_AgainstTruth):
    """AEE: the distance between predicted and true flow, in pixels per window.

    Args:
        mask: Which pixels count: those whose true flow is known ("valid"), those with an event and a finite true flow
            ("events"), or those with an event whose true flow is known ("both", as MVSEC is evaluated).
        average: Mean over "windows" of each window's mean, or over all "pixels" alike.
        zero_flow: Measure flow that is zero everywhere in place of the given one: the baseline of every report.
        **kwargs: Arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(
        self, mask: Mask = "valid", average: Average = "windows", zero_flow: bool = False, **kwargs: Any
    ) -> None:
        super().__init__("zero" if zero_flow else "aee", mask, average, **kwargs)
        self.zero_flow = zero_flow

    def per_pixel(self, flow: Tensor, truth: Tensor) -> Tensor:
        """The distance."""
        error: Tensor = torch.linalg.vector_norm(truth if self.zero_flow else flow - truth, dim=1)
        return error


class FlowOutliers(_AgainstTruth):
    """Percentage of pixels whose endpoint error is larger than ``pixels``.

    Args:
        pixels: The largest error that is no outlier, in pixels per window.
        relative: If given, an outlier's error is also larger than this share of the true flow's length. 3 pixels and
            0.05 are KITTI's "Fl". (Some published code takes 5 % of the predicted length.)
        mask: Which pixels count, as in `AverageEndpointError`.
        average: Mean over "windows" or over "pixels", as there.
        **kwargs: Arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(
        self,
        pixels: float = 3.0,
        relative: float | None = None,
        mask: Mask = "valid",
        average: Average = "windows",
        **kwargs: Any,
    ) -> None:
        if pixels < 0 or (relative is not None and relative < 0):
            raise ValueError(f"FlowOutliers: pixels={pixels} and relative={relative} must not be negative.")
        super().__init__(f"outliers_{pixels}_{relative}", mask, average, **kwargs)
        self.pixels, self.relative = pixels, relative

    def per_pixel(self, flow: Tensor, truth: Tensor) -> Tensor:
        """100 for an outlier, else 0."""
        error: Tensor = torch.linalg.vector_norm(flow - truth, dim=1)
        outlier = error > self.pixels
        if self.relative is not None:
            outlier = outlier & (error > self.relative * torch.linalg.vector_norm(truth, dim=1))
        return outlier.to(flow.dtype) * 100


class FlowWarpLoss(_Mean):
    """FWL: how much sharper the flow makes the picture of the events; above 1 it does, and larger is better.

    The variance over pixels of the number of events that have moved to the window's end, divided by that of the events
    where they were (Stoffregen et al., 2020). It needs no true flow, and depends on the number of events in a window.

    Args:
        nearest: Each event arrives at the nearest pixel, as in the evaluation of Hagenaars et al. (2021). If False at
            the four around it, whose blur lowers the value of any flow that is no whole number of pixels.
        **kwargs: Arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(self, nearest: bool = True, **kwargs: Any) -> None:
        super().__init__(f"fwl_{nearest}", **kwargs)
        self.nearest = nearest

    def update(self, flow: Tensor, window: FlowWindow) -> None:
        """Count the windows of a batch."""
        flow, events, mask = _warped_inputs(flow, window, "FlowWarpLoss")
        size = (flow.shape[-2], flow.shape[-1])
        channel, weight = torch.zeros_like(mask), mask.to(flow.dtype)
        moved, still = (
            splat(places, channel, (weight,), size, self.nearest)[0][:, 0].flatten(1).var(1)
            for places in (move_events(events, flow, 1), events[..., 1:3])
        )
        self._add(moved / torch.where(still > 0, still, 1), (still > 0).to(moved.dtype))


class RSAT(_Mean):
    """RSAT: how much lower the flow makes the squared mean time stamps of the events; below 1 it does, lower is better.

    The ratio of the contrast maximisation loss, forward only, with the flow and without any (Hagenaars et al., 2021).
    It needs no true flow, and depends on the number of events in a window.

    Args:
        nearest: As in `FlowWarpLoss`.
        **kwargs: Arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(self, nearest: bool = True, **kwargs: Any) -> None:
        super().__init__(f"rsat_{nearest}", **kwargs)
        self.nearest = nearest

    def update(self, flow: Tensor, window: FlowWindow) -> None:
        """Count the windows of a batch."""
        flow, events, mask = _warped_inputs(flow, window, "RSAT")
        moved, still = (
            mean_times_loss(one, events, mask, time=1, nearest=self.nearest) for one in (flow, torch.zeros_like(flow))
        )
        self._add(moved / torch.where(still > 0, still, 1), (still > 0).to(moved.dtype))


def flow_metrics(
    mask: Mask = "valid", truth: bool = True, events: bool = True, prefix: str = "", **kwargs: Any
) -> MetricCollection:
    """All metrics that the data allow, with zero flow's error beside them.

    Args:
        mask: Which pixels count against true flow, as in `AverageEndpointError`.
        truth: Whether the windows have true flow.
        events: Whether they have single events.
        prefix: Put before each name.
        **kwargs: Arguments of ``torchmetrics.Metric``, for each of them.

    Returns:
        ``aee``, ``aee_zero``, ``outliers_1px``, ``outliers_2px``, ``outliers_3px`` and ``outliers_kitti`` from true
        flow; ``fwl`` and ``rsat`` from events.
    """
    metrics: dict[str, Metric] = {}
    if truth:
        metrics["aee"] = AverageEndpointError(mask, **kwargs)
        metrics["aee_zero"] = AverageEndpointError(mask, zero_flow=True, **kwargs)
        for pixels in (1, 2, 3):
            metrics[f"outliers_{pixels}px"] = FlowOutliers(pixels, mask=mask, **kwargs)
        metrics["outliers_kitti"] = FlowOutliers(3, 0.05, mask, **kwargs)
    if events:
        metrics |= {"fwl": FlowWarpLoss(**kwargs), "rsat": RSAT(**kwargs)}
    return MetricCollection(dict(metrics), prefix=prefix)


def _warped_inputs(flow: Tensor, window: FlowWindow, user: str) -> tuple[Tensor, Tensor, Tensor]:
    (flow,) = check_flows([flow.detach()], window, user)
    events, mask = events_of(window, user)
    return at_size(flow, (window.counts.shape[-2], window.counts.shape[-1])), events, mask
