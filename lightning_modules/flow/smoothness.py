"""Smoothness of optical flow: what a loss adds where pictures or events say little."""

from __future__ import annotations

from torch import Tensor


def second_order_smoothness(flow: Tensor) -> Tensor:
    """How far the flow [B, 2, h, w] is from changing linearly: [B].

    The mean absolute second differences in x, in y, and twice the mixed one, as in Spike-FlowNet. A flow that changes
    linearly, such as that of a camera that turns or comes closer, costs nothing.
    """
    dx = flow[..., 1:] - flow[..., :-1]
    dy = flow[..., 1:, :] - flow[..., :-1, :]
    dxx = dx[..., 1:] - dx[..., :-1]
    dyy = dy[..., 1:, :] - dy[..., :-1, :]
    dxy = dx[..., 1:, :] - dx[..., :-1, :]
    return _mean(dxx.abs()) + _mean(dyy.abs()) + 2 * _mean(dxy.abs())


def charbonnier_smoothness(flow: Tensor, mask: Tensor | None = None, eps: float = 1e-3) -> Tensor:
    """Differences between neighbouring pixels of the flow [B, 2, h, w]: [B].

    The Charbonnier penalty sqrt(d^2 + eps^2) of each component's difference to the next pixel in x, in y and along both
    diagonals, summed over pixels and components and divided by the four directions.

    Args:
        flow: The flow.
        mask: Only differences between two pixels that are True here count, [B, h, w] bool.
        eps: Where the penalty turns from square to linear.
    """
    pairs = (
        (flow[..., :, 1:], flow[..., :, :-1]),
        (flow[..., 1:, :], flow[..., :-1, :]),
        (flow[..., 1:, 1:], flow[..., :-1, :-1]),
        (flow[..., 1:, :-1], flow[..., :-1, 1:]),
    )
    total = flow.new_zeros(flow.shape[0])
    for direction, (here, there) in enumerate(pairs):
        penalty = ((here - there).square() + eps**2).sqrt()
        if mask is not None:
            penalty = penalty * _both(mask, direction).unsqueeze(1)
        total = total + penalty.flatten(1).sum(1)
    return total / len(pairs)


def _both(mask: Tensor, direction: int) -> Tensor:
    if direction == 0:
        return mask[..., :, 1:] & mask[..., :, :-1]
    if direction == 1:
        return mask[..., 1:, :] & mask[..., :-1, :]
    if direction == 2:
        return mask[..., 1:, 1:] & mask[..., :-1, :-1]
    return mask[..., 1:, :-1] & mask[..., :-1, 1:]


def _mean(values: Tensor) -> Tensor:
    """Mean of each sample; 0 where the flow is too small to have such differences."""
    if values.shape[1:].numel() == 0:
        return values.new_zeros(values.shape[0])
    return values.flatten(1).mean(1)
