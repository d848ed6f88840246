"""Learning signals that come to each hidden layer directly, written out per sample, class and neuron.

With e = dL[t]/d(output), y the spikes of the layer at step t, B samples and the target Y [B, C] (one-hot for classes):

    dfa, sign_dfa        delta = e M, sign(e) M                               M [outputs, neurons]
    drtp                 delta = s Y M / B                                    M [C, neurons]
    local, local_random  delta = s (p - Y) R / B,  p = softmax(R y)           R [C, neurons]
    tess                 the same with S in place of R and, in place of y, its average over the extent of each channel;
                         each neuron gets its share of what its channel gets  S [C, channels], sign(sin(f_c k))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OF_TARGET = ("drtp", "local", "local_random", "tess")


@dataclass
class Target:
    """Y of a batch, and what the signal is multiplied with: a number, or one per sample."""

    y: Tensor  # [B] of classes or [B, C] of values
    scale: float | Tensor = 1.0

    def rows(self, classes: int) -> Tensor:
        if self.y.is_floating_point():
            return self.y.double()
        return torch.stack([torch.eye(classes, dtype=torch.float64)[int(label)] for label in self.y])

    def factors(self) -> Tensor:
        batch = len(self.y)
        return torch.as_tensor(self.scale, dtype=torch.float64).expand(batch).reshape(batch, 1) / batch


def square_waves(classes: int, channels: int) -> Tensor:
    step = (512 - 50) / (classes - 1) if classes > 1 else 0.0
    rows = [[math.copysign(1, math.sin((50 + step * c) * k)) for k in range(1, channels + 1)] for c in range(classes)]
    return torch.tensor(rows, dtype=torch.float64)


def mistakes(y: Tensor, readout: Tensor, target: Target) -> Tensor:
    """s (p - Y) / B for y [B, n] and readout [C, n]."""
    logits = torch.einsum("bn,cn->bc", y, readout)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return (p - target.rows(len(readout))) * target.factors()


def hidden_delta(signal: str, error: Tensor, y: Tensor, matrix: Tensor | None, target: Target | None) -> Tensor:
    """delta of a hidden layer with spikes y [B, ...], for the error [B, outputs] of the step."""
    y = y.detach()
    if signal in ("dfa", "sign_dfa"):
        assert matrix is not None
        return torch.einsum("bo,o...->b...", error.sign() if signal == "sign_dfa" else error, matrix.double())
    assert target is not None
    if signal == "drtp":
        assert matrix is not None
        return torch.einsum("bc,c...->b...", target.rows(len(matrix)) * target.factors(), matrix.double())
    if signal == "tess":
        classes = error.shape[1] if target.y.dim() == 1 else target.y.shape[1]
        waves = square_waves(classes, y.shape[1])
        places = math.prod(y.shape[2:])
        average = y.flatten(2).sum(2) / places if y.dim() > 2 else y
        of_channel = torch.einsum("bc,ck->bk", mistakes(average, waves, target), waves) / places
        return of_channel.reshape(*y.shape[:2], *[1] * (y.dim() - 2)).expand(y.shape)
    assert matrix is not None
    readout = matrix.double().flatten(1)
    return torch.einsum("bc,cn->bn", mistakes(y.flatten(1), readout, target), readout).reshape(y.shape)


def readout_gradient(y: Tensor, matrix: Tensor, target: Target, flags: Tensor) -> Tensor:
    """What trains the readout of "local": the gradient of its cross-entropy, in supervised samples."""
    readout = matrix.double().flatten(1)
    y = y.detach().flatten(1)
    counted = mistakes(y, readout, target) * flags.reshape(-1, 1)
    return torch.einsum("bc,bn->cn", counted, y).reshape(matrix.shape)
