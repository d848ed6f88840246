"""Learning optical flow from true flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.fields import Mask, check_flows, mean_where, only_present, true_flow
from lightning_modules.flow.warp import at_size


class EndpointErrorLoss(nn.Module):
    """The distance between predicted and true flow in pixels per window.

    The flow of every scale is brought to the full resolution, so that the true flow is used only where it is known.
    The distance is averaged over the pixels that count, and over the scales.

    ``loss(flows, window)`` gives one value per sample, [B]; 0 for windows in which no pixel counts.

    Args:
        mask: Which pixels count: those whose true flow is known ("valid"), those with an event and a finite true flow
            ("events"), or those with an event whose true flow is known ("both").
    """

    def __init__(self, mask: Mask = "valid") -> None:
        super().__init__()
        if mask not in ("valid", "events", "both"):
            raise ValueError(f'EndpointErrorLoss: mask={mask!r} is not known; use "valid", "events" or "both".')
        self.mask: Mask = mask

    def forward(self, flows: Sequence[Tensor], window: FlowWindow) -> Tensor:
        """The loss of each sample, [B]."""
        flows = check_flows(flows, window, "EndpointErrorLoss")
        truth, counted = true_flow(window, "EndpointErrorLoss", self.mask)
        size = (truth.shape[-2], truth.shape[-1])
        total = flows[0].new_zeros(flows[0].shape[0])
        for flow in flows:
            # The norm's own derivative at 0 is 0; that of a written-out root would be no number.
            error = torch.linalg.vector_norm(at_size(flow, size) - truth, dim=1)
            total = total + mean_where(error, counted)
        return only_present(total / len(flows), window)

    def extra_repr(self) -> str:
        """The settings."""
        return f"mask={self.mask!r}"
