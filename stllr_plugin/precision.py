"""Numbers of at least float32 for everything that the rule adds up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Float32 for half-precision (and non-float) tensors; float32 and float64 pass through."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which products are not cast to half precision: a backward call may stand in an autocast region."""
    kind = tensor.device.type
    return torch.autocast(device_type=kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def num_bytes(tensor: Tensor | None) -> int:
    """Bytes of a tensor's values; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
