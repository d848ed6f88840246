"""Moving pictures and events along optical flow, and drawing events into pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def at_size(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """The flow [B, 2, h, w] at every pixel of a picture of the size (H, W); its values stay what they are."""
    if flow.shape[-2:] == size:
        return flow
    return functional.interpolate(flow, size, mode="bilinear", align_corners=False)


def warp_picture(picture: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """What a picture shows at the pixels where the flow leads to.

    Args:
        picture: [B, C, h, w].
        flow: [B, 2, h, w] in pixels of this picture.

    Returns:
        The picture at position + flow [B, C, h, w], interpolated, and where that lies inside of it [B, 1, h, w] bool.
    """
    height, width = picture.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype).unsqueeze(1) + flow[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    # Far away counts as just outside: the product with a huge coordinate would be no number.
    x, y = x.clamp(-2, width + 1), y.clamp(-2, height + 1)
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    warped = functional.grid_sample(picture.to(flow.dtype), grid, align_corners=True)
    return warped, inside.unsqueeze(1)


def flow_at_events(flow: Tensor, events: Tensor) -> Tensor:
    """The flow [B, 2, H, W] at the pixel of every event: [B, N, 2]."""
    height, width = flow.shape[-2:]
    column = events[..., 1].round().clamp(0, width - 1).long()
    row = events[..., 2].round().clamp(0, height - 1).long()
    index = (row * width + column).unsqueeze(1).expand(-1, 2, -1)
    return flow.flatten(2).gather(2, index).transpose(1, 2)


def move_events(events: Tensor, flow: Tensor, time: float) -> Tensor:
    """Where the events would be at a time in [0, 1] of the window, each going with the flow at its own pixel.

    Args:
        events: [B, N, 4]: time, x, y, polarity.
        flow: [B, 2, H, W] in pixels per window.
        time: 1 moves them forward to the end of the window, 0 backward to its start.

    Returns:
        Positions [B, N, 2]: x, y.
    """
    return events[..., 1:3] + (time - events[..., :1]) * flow_at_events(flow, events)


def splat(
    positions: Tensor, channel: Tensor, values: tuple[Tensor, ...], size: tuple[int, int], nearest: bool = False
) -> list[Tensor]:
    """Draw points into pictures; what falls outside is lost.

    Args:
        positions: x and y of the points, [B, N, 2].
        channel: Which of two channels each point is drawn into, [B, N].
        values: What is drawn, each [B, N]; one picture is made of each.
        size: Height and width of the pictures.
        nearest: Draw into the nearest pixel in place of the four around the point with bilinear weights.

    Returns:
        For each of the ``values`` the sums per pixel, [B, 2, H, W].
    """
    height, width = size
    if nearest:
        positions = positions.round()
    corner = positions.detach().floor()
    right, down = (positions - corner).unbind(-1)
    # Far away counts as just outside: no integer holds any float.
    column0, row0 = corner[..., 0].clamp(-2, width + 1).long(), corner[..., 1].clamp(-2, height + 1).long()
    lanes = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
    first = (lanes * 2 + channel.long()) * (height * width)
    cells = positions.shape[0] * 2 * height * width
    pictures = [value.new_zeros(cells) for value in values]
    for dx, dy in ((0, 0),) if nearest else ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = column0 + dx, row0 + dy
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight = (right if dx else 1 - right) * (down if dy else 1 - down) * inside
        index = torch.where(inside, first + row * width + column, 0).flatten()
        pictures = [
            picture.scatter_add(0, index, (weight * value).flatten())
            for picture, value in zip(pictures, values, strict=True)
        ]
    return [picture.view(-1, 2, height, width) for picture in pictures]
