"""Weights that a neuron module holds itself: intercepted while the neuron runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from stllr_plugin.calls import SynapseSite
from stllr_plugin.hooks import eager
from stllr_plugin.parametrized import ComputedWeight
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session
from stllr_plugin.synapses import Term, linear_weight_gradients


class OwnWeightSite(SynapseSite):
    """A weight that a neuron module holds itself and uses through ``linear`` (Norse's recurrent cells)."""

    owned: ClassVar[bool] = True

    def __init__(
        self, session: Session, neuron: str, module: nn.Module, weight_name: str, rule: STLLRRule | None
    ) -> None:
        """See the class."""
        super().__init__(session, f"{neuron}.{weight_name}", rule)
        self.weight_name = weight_name
        self._module = module

    def current_weight(self) -> Tensor:
        """See the base class."""
        weight: Tensor = getattr(self._module, self.weight_name)
        return weight

    def _weight_gradient(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        return linear_weight_gradients(terms)


class OwnWeights(TorchFunctionMode):
    """Intercepts a neuron's ``linear`` calls on its own weights and tags their outputs.

    Args:
        module: The neuron.
        sites: Its weights.
        currents: Filled with the outputs, in the order of use.
        inputs: Filled with the weights' sites and inputs, in place of tagging the outputs; the weights then stay out
            of the graph.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Sequence[OwnWeightSite],
        currents: list[Tensor],
        inputs: list[tuple[OwnWeightSite, Tensor]] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.module = module
        self.sites = sites
        self.currents = currents
        self.inputs = inputs

    def __enter__(self) -> Any:
        """Starts; notes what is computed for parametrized weights, so that they can be recognised."""
        self._computed = {
            site.weight_name: ComputedWeight(self.module, site.weight_name, detach=False)
            for site in self.sites
            if parametrize.is_parametrized(self.module, site.weight_name)
        }
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Ends."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for computed in self._computed.values():
            computed.release()

    @eager
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is, but for ``linear`` on one of the weights."""
        if func is functional.linear and len(args) >= 2:
            for site in self.sites:
                computed = self._computed.get(site.weight_name)
                weight = getattr(self.module, site.weight_name) if computed is None else computed.weight
                if args[1] is weight:
                    return self._call(site, weight, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _call(self, site: OwnWeightSite, weight: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        x = args[0]
        if self.inputs is not None:
            self.inputs.append((site, x))
        output: Tensor = func(x, weight.detach(), *args[2:], **kwargs)
        if self.inputs is None and weight.requires_grad:
            output = site.tag(x, output, weight)
        self.currents.append(output)
        return output
