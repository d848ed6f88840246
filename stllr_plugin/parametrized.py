"""Parametrized weights, as a layer computes them: once per call, with nothing written into what all threads share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class ComputedWeight:
    """From now until :meth:`release`: a parametrized weight is computed in the graph, and seen without it.

    A block of the user's own under ``parametrize.cached()`` computes it once for several calls. What torch has cached
    for this module then is the weight without its graph for as long as one call lasts.

    Args:
        module: The layer.
        name: Name of the weight.
        detach: Whether the layer gets it without its graph.
    """

    def __init__(self, module: nn.Module, name: str, *, detach: bool = True) -> None:
        """See the class."""
        self.weight: Tensor | None = None
        self._detach = detach
        self._key = (id(module), name)
        self._cached = False
        if parametrize._cache_enabled:
            self.weight = getattr(module, name)
            if detach:
                self._cached = True
                parametrize._cache[self._key] = self.weight.detach()
        computes: Any = module.parametrizations[name]  # type: ignore[index]
        self._handle = computes.register_forward_hook(self._computed)

    def _computed(self, module: nn.Module, args: Any, weight: Tensor) -> Tensor | None:
        self.weight = weight
        return weight.detach() if self._detach else None

    def release(self) -> Tensor | None:
        """Ends; returns the weight in its graph, or None if nobody has asked for it."""
        self._handle.remove()
        if self._cached and parametrize._cache_enabled:
            parametrize._cache[self._key] = self.weight
        return self.weight
