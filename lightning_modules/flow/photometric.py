"""Learning optical flow from grey pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.fields import check_flows, frames_of, mean_where, only_present
from lightning_modules.flow.smoothness import second_order_smoothness
from lightning_modules.flow.warp import warp_picture


class PhotometricLoss(nn.Module):
    """How much the picture at the window's end, brought back along the flow, differs from that at its start.

    At every scale both pictures are reduced to the size of the flow, and the flow to their pixels. The difference d of
    each pixel costs (d^2 + eps^2)^alpha; pixels that come from outside of the picture do not count. The cost is
    averaged over the scales. To it comes the second-order smoothness of each scale's flow, whose weight is halved from
    each scale to the next coarser one.

    Spike-FlowNet and S-TLLR sum over pixels and over the batch, and use a smoothness of 10: with batches of n that is
    ``PhotometricLoss(10 / n, reduction="sum")``. The mean over pixels, in which the weight does not depend on the
    resolution, is the default.

    ``loss(flows, window)`` gives one value per sample, [B].

    Args:
        smoothness: Weight of the smoothness of the finest scale.
        alpha: Exponent of the Charbonnier penalty.
        eps: Where the penalty turns from square to flat, in grey values.
        reduction: "mean" or "sum" over the pixels that count.
    """

    def __init__(
        self,
        smoothness: float = 0.02,
        alpha: float = 0.45,
        eps: float = 1e-3,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if smoothness < 0 or alpha <= 0 or eps <= 0:
            raise ValueError(
                f"PhotometricLoss: smoothness must not be negative, alpha and eps must be positive; got {smoothness}, "
                f"{alpha}, {eps}."
            )
        if reduction not in ("mean", "sum"):
            raise ValueError(f'PhotometricLoss: reduction={reduction!r} is not known; use "mean" or "sum".')
        self.smoothness, self.alpha, self.eps, self.reduction = smoothness, alpha, eps, reduction

    def forward(self, flows: Sequence[Tensor], window: FlowWindow) -> Tensor:
        """The loss of each sample, [B]."""
        flows = check_flows(flows, window, "PhotometricLoss")
        before, after = frames_of(window, "PhotometricLoss")
        height, width = before.shape[-2:]
        total = flows[0].new_zeros(flows[0].shape[0])
        for scale, flow in enumerate(reversed(flows)):
            size = flow.shape[-2:]
            per_pixel = flow.new_tensor((size[1] / width, size[0] / height)).view(2, 1, 1)
            then = functional.interpolate(before, size, mode="area").to(flow.dtype)
            now, inside = warp_picture(functional.interpolate(after, size, mode="area"), flow * per_pixel)
            penalty = ((now - then).square() + self.eps**2) ** self.alpha
            cost = mean_where(penalty, inside) if self.reduction == "mean" else (penalty * inside).flatten(1).sum(1)
            total = total + cost / len(flows) + self.smoothness * 0.5**scale * second_order_smoothness(flow)
        return only_present(total, window)

    def extra_repr(self) -> str:
        """The settings."""
        return f"smoothness={self.smoothness}, alpha={self.alpha}, eps={self.eps}, reduction={self.reduction!r}"
