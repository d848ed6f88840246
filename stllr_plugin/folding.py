"""Sums over consecutive time steps, which turn many weight-gradient products into one.

For steps 0 .. K-1, with p[t] what the causal term multiplies the trace with,

    sum_t p[t] tr_x[t]^T  =  sum_t G[t] x[t]^T  +  lambda G[0] tr_x[-1]^T,      G[t] = p[t] + lambda G[t+1],

since tr_x[t] = lambda tr_x[t-1] + x[t] is a sum over past inputs: the decay is moved from the inputs to the factors.

Loops go over the steps, since one step's values fit into a processor's cache, and those of many often do not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LARGE = 2**15  # values in a step, from which on it pays to go step by step


def fold(factor: Tensor, decay: float) -> Tensor:
    """``G[t] = factor[t] + decay * G[t+1]`` for a factor [K, ...]; a new tensor unless the decay is 0."""
    if decay == 0.0 or factor.shape[0] == 1:
        return factor
    folded = torch.empty_like(factor)
    steps, sources = folded.unbind(0), factor.unbind(0)
    steps[-1].copy_(sources[-1])
    for t in range(len(steps) - 2, -1, -1):
        torch.add(sources[t], steps[t + 1], alpha=decay, out=steps[t])
    return folded


def last_trace(before: Tensor | None, x: Tensor, decay: float) -> Tensor:
    """tr_x at the end of inputs [K, ...], before which it was ``before``."""
    num_steps = x.shape[0]
    if decay == 0.0:
        return x[-1].clone()  # a view would keep all of them
    if num_steps == 1:
        end = x[0].clone()
    else:
        weights = torch.pow(decay, torch.arange(num_steps - 1, -1, -1, dtype=x.dtype, device=x.device))
        end = (weights @ x.reshape(num_steps, -1)).view(x.shape[1:])
    if before is not None:
        end.add_(before.to(x.device, x.dtype), alpha=decay**num_steps)
    return end


def traces_before(before: Tensor | None, values: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The trace that each of K steps sees, ``tr[t-1]`` [K, ...], and the one at their end."""
    seen = torch.empty_like(values)
    steps, sources = seen.unbind(0), values.unbind(0)
    if before is None:
        steps[0].zero_()
    else:
        steps[0].copy_(before)
    for t in range(1, len(steps)):
        torch.add(sources[t - 1], steps[t - 1], alpha=decay, out=steps[t])
    return seen, torch.add(sources[-1], steps[-1], alpha=decay)


def by_steps(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """An element-by-element function of values [K, ...], step by step where a step is large."""
    if values.shape[0] == 1 or values[0].numel() < _LARGE:
        return function(values)
    first = function(values[0])
    result = torch.empty_like(first.unsqueeze(0).expand(len(values), *first.shape))
    result[0] = first
    for t in range(1, len(values)):
        result[t] = function(values[t])
    return result
