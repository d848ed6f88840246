"""The rule over a window of time steps: sums that turn many weight-gradient products into one.

Within a window of steps 0 .. K-1, with p[t] what the causal term multiplies the trace with,

    sum_t p[t] tr_x[t]^T  =  sum_t G[t] x[t]^T  +  lambda G[0] tr_x[-1]^T,      G[t] = p[t] + lambda G[t+1],

since tr_x[t] = lambda tr_x[t-1] + x[t] is a sum over past inputs: the decay is moved from the inputs to the factors.

Loops go over the steps, since one step's values fit into a processor's cache, and those of a window often do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stllr_plugin.rule import STLLRRule

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
    """tr_x at the end of a window of inputs [K, ...], which began with the trace ``before``."""
    num_steps = x.shape[0]
    if decay == 0.0:
        return x[-1].clone()  # a view would keep the whole window
    if num_steps == 1:
        end = x[0].clone()
    else:
        weights = torch.pow(decay, torch.arange(num_steps - 1, -1, -1, dtype=x.dtype, device=x.device))
        end = (weights @ x.reshape(num_steps, -1)).view(x.shape[1:])
    if before is not None:
        end.add_(before.to(x.device, x.dtype), alpha=decay**num_steps)
    return end


def traces_before(before: Tensor | None, values: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The trace that each step of a window sees, ``tr[t-1]`` [K, ...], and the one at the end of the window."""
    seen = torch.empty_like(values)
    steps, sources = seen.unbind(0), values.unbind(0)
    if before is None:
        steps[0].zero_()
    else:
        steps[0].copy_(before)
    for t in range(1, len(steps)):
        torch.add(sources[t - 1], steps[t - 1], alpha=decay, out=steps[t])
    return seen, torch.add(sources[-1], steps[-1], alpha=decay)


@dataclass(slots=True, eq=False)
class WindowPost:
    """The postsynaptic side of a rule over a window.

    Attributes:
        rule: The rule.
        psi: psi(v), [K, B, ...].
        before: tr_psi at the end of the window before; None at the beginning of a sequence.
    """

    rule: STLLRRule
    psi: Tensor
    before: Tensor | None

    def causal(self, signal: Tensor) -> Tensor | None:
        """What the causal term multiplies the presynaptic trace with, for a learning signal [K, B, ...]."""
        if not self.rule.alpha_pre:
            return None
        factor = signal * self.psi
        return factor if self.rule.alpha_pre == 1.0 else factor.mul_(self.rule.alpha_pre)

    def noncausal(self, signal: Tensor) -> Tensor | None:
        """What the other term multiplies the input with."""
        if not self.rule.alpha_post:
            return None
        decay = self.rule.lambda_post
        seen, _ = traces_before(self.before, self.psi, decay)
        if self.rule.convention == "current":
            seen = torch.add(self.psi, seen, alpha=decay)
        return seen.mul_(signal).mul_(self.rule.noncausal_scale)

    def both(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms' factors of the inputs [K, B, ...], the causal one folded, and G[0], its factor of the trace."""
        rule = self.rule
        total = torch.empty_like(self.psi)
        totals, signals, psis = total.unbind(0), signal.unbind(0), self.psi.unbind(0)
        if rule.alpha_post:
            trace = self.before
            for factor, delta, psi in zip(totals, signals, psis, strict=True):
                after = (
                    psi if trace is None else torch.add(psi, trace.to(psi.device, psi.dtype), alpha=rule.lambda_post)
                )
                seen = after if rule.convention == "current" else trace
                if seen is None:
                    factor.zero_()
                else:
                    torch.mul(delta, seen, out=factor)
                trace = after
        folded, product = torch.zeros_like(psis[0]), torch.empty_like(psis[0])
        for factor, delta, psi in zip(reversed(totals), reversed(signals), reversed(psis), strict=True):
            torch.mul(delta, psi, out=product)
            if rule.alpha_pre != 1.0:
                product.mul_(rule.alpha_pre)
            torch.add(product, folded, alpha=float(rule.lambda_pre), out=folded)
            if rule.alpha_post:
                torch.add(folded, factor, alpha=rule.noncausal_scale, out=factor)
            else:
                factor.copy_(folded)
        return total, folded


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
