"""How much tensor memory is alive, counted exactly: what Python holds, and what the autograd graph holds besides."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryMeter(TorchDispatchMode):
    """Follows every storage that an operator makes, until it is freed; also those that only the graph holds.

    Args:
        inputs: Tensors made before, which are not counted when an operator returns a view of them.

    Attributes:
        bytes: Bytes alive now.
        peak: Highest value of ``bytes`` so far.
        storages: Number of storages alive now.
    """

    def __init__(self, inputs: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.peak = self.storages = 0
        self._known: set[int] = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.storages += 1
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size
        self.storages -= 1


@contextmanager
def collector_off() -> Iterator[None]:
    """Without the garbage collector whatever sits in a reference cycle stays alive, and shows."""
    gc.disable()
    gc.freeze()  # leaves out of sight what exists already
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def new_tensors() -> int:
    """Number of tensors that Python knows and that were made since :func:`collector_off` began."""
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
