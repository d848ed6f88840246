"""What losses, metrics and pictures need of a window, and what they say where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.flow.batch import FlowWindow

Mask = Literal["valid", "events", "both"]


def check_flows(flows: Sequence[Tensor], window: FlowWindow, user: str) -> list[Tensor]:
    """The flows of all scales, at least in float32.

    Raises:
        ValueError: They are no flows of this window.
    """
    if isinstance(flows, Tensor):
        flows = [flows]
    batch, (height, width) = len(window.present), window.counts.shape[-2:]
    for flow in flows:
        wrong = flow.ndim != 4 or flow.shape[0] != batch or flow.shape[1] != 2
        if wrong or flow.shape[2] > height or flow.shape[3] > width:
            raise ValueError(
                f"{user}: flows are [batch {batch}, 2, up to {height}, up to {width}] for these windows, got "
                f"{list(flow.shape)}. Give the network's outputs as a list, one flow per scale."
            )
    if not flows:
        raise ValueError(f"{user}: the network gave no flow.")
    return [flow.to(torch.promote_types(flow.dtype, torch.float32)) for flow in flows]


def events_of(window: FlowWindow, user: str) -> tuple[Tensor, Tensor]:
    """The single events [B, N, 4] and which of them are no padding [B, N].

    Raises:
        ValueError: The window comes without single events.
    """
    if window.events is None:
        raise ValueError(
            f"{user} needs the single events, and these windows have none. Set events=True on the data module."
        )
    mask = window.event_mask
    if mask is None:
        mask = torch.ones_like(window.events[..., 0], dtype=torch.bool)
    return window.events, mask & window.present.unsqueeze(1)


def frames_of(window: FlowWindow, user: str) -> tuple[Tensor, Tensor]:
    """The grey pictures at both ends of the window, [B, 1, H, W] each.

    Raises:
        ValueError: The window comes without pictures.
    """
    if window.before is None or window.after is None:
        raise ValueError(
            f"{user} needs the grey pictures at both ends of each window, and these windows have none. For MVSEC set "
            'pictures=True and cut="pictures" on the data module. Where recordings have no pictures, take '
            "ContrastMaximisationLoss, which needs events alone."
        )
    return window.before, window.after


def true_flow(window: FlowWindow, user: str, mask: Mask = "valid") -> tuple[Tensor, Tensor]:
    """The true flow [B, 2, H, W], 0 where it does not count, and where it counts [B, H, W].

    Args:
        window: The window.
        user: Who asks, for the message.
        mask: Which pixels count: those whose true flow is known ("valid"), those with an event and a finite true flow
            ("events"), or those with an event whose true flow is known ("both").

    Raises:
        ValueError: The window comes without true flow.
    """
    if window.flow is None:
        raise ValueError(
            f"{user} needs the true flow, and these windows have none. Use recordings with true flow, or a loss and "
            "metrics that need none: ContrastMaximisationLoss, PhotometricLoss, FlowWarpLoss, RSAT."
        )
    counted = window.flow.isfinite().all(1) & window.present.view(-1, 1, 1)
    if mask != "events" and window.valid is not None:
        counted = counted & window.valid
    if mask != "valid":
        counted = counted & pixels_with_events(window)
    return window.flow.where(counted.unsqueeze(1), 0), counted


def pixels_with_events(window: FlowWindow) -> Tensor:
    """Where the window has at least one event: [B, H, W] bool."""
    return (window.counts != 0).flatten(1, 2).any(1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sample's values [B, ...] where the mask is True; 0 where that is nowhere."""
    total = (values * mask).flatten(1).sum(1)
    return total / mask.flatten(1).sum(1).clamp(min=1)


def only_present(values: Tensor, window: FlowWindow) -> Tensor:
    """The values [B], and 0 without a gradient for samples whose recording is over."""
    return values.where(window.present, 0)
