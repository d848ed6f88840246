"""Layers that the S-TLLR recipes use and the libraries lack: weight standardisation, dropout fixed over a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize


class WeightStandardization(nn.Module):
    r"""Parametrization ``gain * (w - mean) / sqrt(var * fan_in + eps)``, over each output unit's incoming weights.

    The variance is the unbiased one, as in the authors' S-TLLR code. (Qiao et al., "Micro-Batch Training with
    Batch-Channel Normalization and Weight Standardization", 2019.)

    Args:
        weight: The weight [out, in, ...] to be standardised; sets the shape of the gain.
        gain: Whether to learn a gain per output unit, starting at 1.
        eps: Added under the root.
    """

    gain: Tensor | None

    def __init__(self, weight: Tensor, gain: bool = True, eps: float = 1e-4) -> None:
        """See the class."""
        super().__init__()
        self.eps = eps
        shape = (weight.shape[0], *[1] * (weight.dim() - 1))
        value = torch.ones(shape, dtype=weight.dtype, device=weight.device) if gain else None
        self.register_parameter("gain", None if value is None else nn.Parameter(value))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the standardised weight, of the same shape."""
        # (w - mean) / sqrt(var * n + eps) is a constant times a layer norm over the n weights of each unit, with the
        # biased variance in place of the unbiased one. That is several times as fast as torch.var_mean.
        n = weight[0].numel()
        normed = functional.layer_norm(weight.flatten(1), (n,), eps=self.eps * (n - 1) / n**2)
        scale: float | Tensor = math.sqrt(n - 1) / n
        if self.gain is not None:
            scale = self.gain.flatten(1) * scale
        return (normed * scale).view_as(weight)


def weight_standardize(module: nn.Module, *, gain: bool = True, eps: float = 1e-4) -> nn.Module:
    """Puts weight standardisation on ``module.weight`` (a torch parametrization) and returns the module.

    Args:
        module: An ``nn.Linear`` or convolution whose weight is [out, in, ...] with fan-in of at least 2.
        gain: Whether to learn a gain per output unit.
        eps: Added under the root.

    Raises:
        TypeError: If the module's weight is not of that form, as in transposed convolutions.
        ValueError: If it has a fan-in of 1, or is standardised already.
    """
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"weight_standardize takes nn.Linear and nn.Conv1d/2d/3d; found {type(module).__name__}.")
    if parametrize.is_parametrized(module, "weight") and any(
        isinstance(step, WeightStandardization)
        for step in module.parametrizations["weight"]  # type: ignore[index]
    ):
        raise ValueError(f"The weight of this {type(module).__name__} is standardised already.")
    weight = module.weight
    if weight[0].numel() < 2:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} has a fan-in of 1; its variance is not defined.")
    parametrize.register_parametrization(module, "weight", WeightStandardization(weight, gain, eps))
    return module


class SequenceDropout(nn.Module):
    """Dropout whose mask stays the same for all time steps of a sequence.

    In training mode the first call after :meth:`reset_mask` draws a mask of the input's shape; later calls reuse it. An
    attached :class:`~stllr_plugin.STLLRLearner` resets it with each sequence. The mask is no buffer, so it is not in
    the ``state_dict``.

    Attributes:
        mask: The mask of the running sequence, already scaled by 1/(1-p); None before its first step.

    Args:
        p: Probability of an element to be dropped, in [0, 1).

    Raises:
        ValueError: If p is out of range.
    """

    def __init__(self, p: float = 0.1) -> None:
        """See the class."""
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p={p!r}: expected a probability in [0, 1).")
        self.p = p
        self.mask: Tensor | None = None

    def reset_mask(self) -> None:
        """Forgets the mask; the next call in training mode draws a new one."""
        self.mask = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns x times the mask (scaled by 1/(1-p)) in training mode, x otherwise.

        Raises:
            RuntimeError: If the shape changed within a sequence.
        """
        if not self.training or self.p == 0.0:
            return x
        if self.mask is None:
            self.mask = torch.empty_like(x.detach()).bernoulli_(1.0 - self.p).div_(1.0 - self.p)
        if self.mask.shape != x.shape:
            raise RuntimeError(
                f"SequenceDropout: the input has shape {tuple(x.shape)}, but the mask of this sequence has "
                f"{tuple(self.mask.shape)}. Call reset_mask() (or learner.reset()) before a new sequence."
            )
        return x * self.mask

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"p={self.p}"
