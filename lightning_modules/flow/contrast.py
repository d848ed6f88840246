"""Learning optical flow from events alone, by contrast maximisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.fields import check_flows, events_of, only_present, pixels_with_events
from lightning_modules.flow.smoothness import charbonnier_smoothness
from lightning_modules.flow.warp import at_size, move_events, splat


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

    ``loss(flows, window)`` gives one value per sample, [B]. A window without events costs its smoothness only.

    Args:
        smoothness: Weight of the smoothness.
        smooth_events_only: Only neighbours that both have events are kept smooth; elsewhere the flow is free.
        eps: Added to the sum of weights of each pixel before the division. Larger values take weight from pixels that
            an event barely touches.
    """

    def __init__(self, smoothness: float = 1e-3, smooth_events_only: bool = False, eps: float = 1e-9) -> None:
        super().__init__()
        if smoothness < 0 or eps <= 0:
            raise ValueError(
                f"ContrastMaximisationLoss: smoothness must not be negative and eps must be positive; got "
                f"{smoothness}, {eps}."
            )
        self.smoothness, self.smooth_events_only, self.eps = smoothness, smooth_events_only, eps

    def forward(self, flows: Sequence[Tensor], window: FlowWindow) -> Tensor:
        """The loss of each sample, [B]."""
        flows = check_flows(flows, window, "ContrastMaximisationLoss")
        events, mask = events_of(window, "ContrastMaximisationLoss")
        size = (window.counts.shape[-2], window.counts.shape[-1])
        smooth = pixels_with_events(window) if self.smooth_events_only else None
        total = flows[0].new_zeros(flows[0].shape[0])
        for flow in flows:
            flow = at_size(flow, size)
            total = total + sum(mean_times_loss(flow, events, mask, time, self.eps) for time in (1, 0))
            total = total + self.smoothness * charbonnier_smoothness(flow / max(size), smooth)
        return only_present(total / len(flows), window)

    def extra_repr(self) -> str:
        """The settings."""
        return f"smoothness={self.smoothness}, smooth_events_only={self.smooth_events_only}, eps={self.eps}"


def mean_times_loss(
    flow: Tensor, events: Tensor, mask: Tensor, time: float, eps: float = 1e-9, nearest: bool = False
) -> Tensor:
    """The squared images of mean time stamps of events that have moved to one end of the window.

    Args:
        flow: [B, 2, H, W] in pixels per window.
        events: [B, N, 4]: time, x, y, polarity.
        mask: False for events that do not count, [B, N].
        time: 1 for the end, 0 for the start.
        eps: Added to the sum of weights of each pixel before the division.
        nearest: Let each event arrive at one pixel in place of four.

    Returns:
        Sum over pixels and polarities, divided by the number of pixels with an event: [B]. 0 without events.
    """
    weight = mask.to(flow.dtype)
    since = events[..., 0] if time == 1 else 1 - events[..., 0]
    places, size = move_events(events, flow, time), (flow.shape[-2], flow.shape[-1])
    number, times = splat(places, events[..., 3] > 0, (weight, weight * since), size, nearest)
    squares = (times / (number + eps)).square().flatten(1).sum(1)
    reached = (number.detach().sum(1) > 0).flatten(1).sum(1)
    return squares / reached.clamp(min=1)
