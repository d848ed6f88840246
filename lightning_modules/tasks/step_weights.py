"""Which time steps of which samples carry a loss, and which are read for the prediction."""

from __future__ import annotations

import torch
from torch import Tensor


def step_weights(lengths: Tensor, num_steps: int, last: int | None = None) -> Tensor:
    """Weights that average over the last steps of every sample, padding excluded.

    Sample ``b`` has ``n = min(last, lengths[b])`` steps that count: those that end at its own last step
    ``lengths[b] - 1``. Each of them has weight ``1 / n``, every other step 0, so that every sample weighs the same
    however long it is.

    Args:
        lengths: Number of valid time steps of each sample, shape [B].
        num_steps: Number of time steps T of the padded batch.
        last: How many steps count, from each sample's own end; None for all valid steps.

    Returns:
        Weights of shape [T, B], float32, on the device of ``lengths``; each column sums to 1.

    Raises:
        ValueError: If a length is outside 1..T or ``last`` is below 1.
    """
    if last is not None and last < 1:
        raise ValueError(f"At least one time step must be supervised, got last={last}.")
    if lengths.numel() and (int(lengths.min()) < 1 or int(lengths.max()) > num_steps):
        raise ValueError(
            f"Lengths must lie in 1..{num_steps} (the padded number of time steps), "
            f"got {int(lengths.min())}..{int(lengths.max())}."
        )
    lengths = lengths.long()
    counted = lengths if last is None else lengths.clamp(max=last)
    step = torch.arange(num_steps, device=lengths.device).unsqueeze(1)
    inside = (step < lengths) & (step >= lengths - counted)
    return inside / counted.to(torch.float32)


def valid_steps(lengths: Tensor, num_steps: int) -> Tensor:
    """Mask of the steps that belong to the samples, shape [T, B]; False is padding."""
    return torch.arange(num_steps, device=lengths.device).unsqueeze(1) < lengths
