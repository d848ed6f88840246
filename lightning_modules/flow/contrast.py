"""Learning optical flow from events alone, by contrast maximisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.fields import check_flows, events_of, only_present, pixels_with_events
from lightning_modules.flow.smoothness import charbonnier_smoothness
from lightning_modules.flow.warp import at_size, move_events, splat

Weighting = Literal["pixels", "events"]


class ContrastMaximisationLoss(nn.Module):
    """How blurred the events are after each has moved with the flow at its pixel.

    The right flow brings all events of an edge to the place where the edge is at the chosen time. They are moved
    forward to the window's end and backward to its start. In each direction and for each polarity an image holds, at
    every pixel, the mean of the time stamps of the events that arrive there with their bilinear weights; times run from
    0 at the end of the window that is left to 1 at the end that is aimed at. The loss is the sum of squares of
    these means over pixels and polarities, divided by the number of pixels that an event reaches (Hagenaars et al.,
    2021: without this division, flow that drives events out of the picture is rewarded), and summed over the two
    directions. The flow of every scale is brought to the full resolution, and the scales are averaged.

    To it comes the Charbonnier smoothness of the flow in units of the picture's longer side, summed over pixels.

    **The published loss has a trap at zero flow.** Events lie at whole pixels. Any flow that moves them by a fraction
    of a pixel, in whichever direction, spreads each over four pixels and so reaches more of them, with smaller means:
    the loss falls without anything having become sharper, and near zero it falls faster in wrong directions than in the
    right one. ``weighting="events"`` with ``shift_grid=True`` is free of it: along the true flow it has one minimum,
    without a step at zero (figures in docs/optical_flow.md).

    ``loss(flows, window)`` gives one value per sample, [B]. A window without events costs its smoothness only.

    Args:
        smoothness: Weight of the smoothness.
        smooth_events_only: Only neighbours that both have events are kept smooth; elsewhere the flow is free.
        eps: Added to the sum of weights of each pixel before the division. Larger values take weight from pixels that
            an event barely touches.
        weighting: "pixels": each reached pixel counts once, as published. "events": it counts as much as the events
            that arrive there weigh, and the sum is divided by their total weight. Minimising it maximises how much the
            times of the events that arrive at one place vary, so that a sharp edge gathers events of all times.
        shift_grid: The images' pixels begin at a random fraction of a pixel, drawn for each sample, direction and call
            while the module is in training mode; the mean over four shifts by half a pixel otherwise.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        smoothness: float = 1e-3,
        smooth_events_only: bool = False,
        eps: float = 1e-9,
        weighting: Weighting = "pixels",
        shift_grid: bool = False,
    ) -> None:
        super().__init__()
        if weighting not in get_args(Weighting):
            raise ValueError(
                f"ContrastMaximisationLoss: weighting must be one of {', '.join(get_args(Weighting))}, got "
                f"{weighting!r}."
            )
        if smoothness < 0 or eps <= 0:
            raise ValueError(
                f"ContrastMaximisationLoss: smoothness must not be negative and eps must be positive; got "
                f"{smoothness}, {eps}."
            )
        self.smoothness, self.smooth_events_only, self.eps = smoothness, smooth_events_only, eps
        self.weighting: Weighting = weighting
        self.shift_grid = shift_grid

    def forward(self, flows: Sequence[Tensor], window: FlowWindow) -> Tensor:
        """The loss of each sample, [B]."""
        flows = check_flows(flows, window, "ContrastMaximisationLoss")
        events, mask = events_of(window, "ContrastMaximisationLoss")
        size = (window.counts.shape[-2], window.counts.shape[-1])
        smooth = pixels_with_events(window) if self.smooth_events_only else None
        total = flows[0].new_zeros(flows[0].shape[0])
        for flow in flows:
            flow = at_size(flow, size)
            for time in (1, 0):
                shifts = self._shifts(flow)
                for shift in shifts:
                    value = mean_times_loss(flow, events, mask, time, self.eps, weighting=self.weighting, shift=shift)
                    total = total + value / len(shifts)
            total = total + self.smoothness * charbonnier_smoothness(flow / max(size), smooth)
        return only_present(total / len(flows), window)

    def _shifts(self, flow: Tensor) -> list[Tensor | None]:
        """Where the images' grid begins: shifts [B, 1, 2] or [2] to be averaged."""
        if not self.shift_grid:
            return [None]
        if self.training:
            return [torch.rand(flow.shape[0], 1, 2, device=flow.device, dtype=flow.dtype)]
        return list(flow.new_tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]]))

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"smoothness={self.smoothness}, smooth_events_only={self.smooth_events_only}, eps={self.eps}, "
            f"weighting={self.weighting!r}, shift_grid={self.shift_grid}"
        )


def mean_times_loss(
    flow: Tensor,
    events: Tensor,
    mask: Tensor,
    time: float,
    eps: float = 1e-9,
    nearest: bool = False,
    weighting: Weighting = "pixels",
    shift: Tensor | None = None,
) -> Tensor:
    """The squared images of mean time stamps of events that have moved to one end of the window.

    Args:
        flow: [B, 2, H, W] in pixels per window.
        events: [B, N, 4]: time, x, y, polarity.
        mask: False for events that do not count, [B, N].
        time: 1 for the end, 0 for the start.
        eps: Added to the sum of weights of each pixel before the division.
        nearest: Let each event arrive at one pixel in place of four.
        weighting: See `ContrastMaximisationLoss`.
        shift: Added to the places of all events, [2] or [B, 1, 2] pixels.

    Returns:
        Sum over pixels and polarities, divided by the number of pixels with an event, or the mean over events: [B].
        0 without events.
    """
    weight = mask.to(flow.dtype)
    since = events[..., 0] if time == 1 else 1 - events[..., 0]
    places, size = move_events(events, flow, time), (flow.shape[-2], flow.shape[-1])
    if shift is not None:
        places = places + shift
    number, times = splat(places, events[..., 3] > 0, (weight, weight * since), size, nearest)
    means = times / (number + eps)
    if weighting == "events":
        total = number.flatten(1).sum(1)
        return (means * times).flatten(1).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
    squares = means.square().flatten(1).sum(1)
    reached = (number.detach().sum(1) > 0).flatten(1).sum(1)
    return squares / reached.clamp(min=1)
