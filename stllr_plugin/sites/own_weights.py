"""Weights that a neuron module holds itself: intercepted while the neuron runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from stllr_plugin.hooks import eager
from stllr_plugin.sites.synapse import OwnWeightSite


class OwnWeights(TorchFunctionMode):
    """Intercepts a neuron's ``linear`` calls on its own weights and tags their outputs.

    Args:
        module: The neuron.
        sites: Its weights.
        currents: Filled with the outputs, in the order of use.
    """

    def __init__(self, module: nn.Module, sites: Sequence[OwnWeightSite], currents: list[Tensor]) -> None:
        """See the class."""
        super().__init__()
        self.module = module
        self.sites = sites
        self.currents = currents

    def __enter__(self) -> Any:
        """Starts; a parametrized weight is one tensor for as long as the call lasts, so that it can be recognised."""
        self._cache = parametrize.cached()
        self._cache.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Ends."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._cache.__exit__(*error)

    @eager
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is, but for ``linear`` on one of the weights."""
        if func is functional.linear and len(args) >= 2:
            for site in self.sites:
                weight = getattr(self.module, site.weight_name)
                if args[1] is weight:
                    output = func(args[0], weight.detach(), *args[2:], **(kwargs or {}))
                    if weight.requires_grad:
                        output = site.tag(args[0], output, weight)
                    self.currents.append(output)
                    return output
        return func(*args, **(kwargs or {}))
