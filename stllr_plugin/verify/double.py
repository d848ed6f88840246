"""Runs code that was written for float32 in float64, so that a right gradient agrees to many digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stllr_plugin.neurons.base import map_tensors


class _Float64(TorchFunctionMode):
    """Turns requests for float32 into requests for float64.

    snnTorch's surrogates return ``.float()`` whatever comes in, and users write ``dtype=torch.float32``: in a network
    of float64 the next layer would then refuse its input.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            # Constants, masks and targets of the user's own that are float32 still.
            widened = map_tensors(list(args), _wide), map_tensors(kwargs, _wide)
            if "type" not in str(error) or not _mixed(args, kwargs):
                raise
            return func(*widened[0], **widened[1])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.float32 else tensor


def _mixed(args: Any, kwargs: Any) -> bool:
    found: set[torch.dtype] = set()

    def note(tensor: Tensor) -> Tensor:
        found.add(tensor.dtype)
        return tensor

    map_tensors(list(args), note), map_tensors(kwargs, note)
    return {torch.float32, torch.float64} <= found


@contextmanager
def in_float64() -> Iterator[Callable[[Any], Any]]:
    """Within the block new tensors are float64; yields a function that converts tensors in nested containers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield lambda value: map_tensors(value, _wide)
    finally:
        torch.set_default_dtype(before)
