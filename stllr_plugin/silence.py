"""Layers that could learn and get no gradient: a mistake that nothing else shows, since the others go on learning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from stllr_plugin.calls import SynapseSite
from stllr_plugin.errors import STLLRWarning
from stllr_plugin.traces import EdgeTraces


class Silence:
    """Names, once each, the layers that have got no gradient in a whole sequence."""

    def __init__(self) -> None:
        """Nothing was told."""
        self._told: set[str] = set()

    def look(self, sites: Iterable[SynapseSite], edges: Iterable[EdgeTraces], *, tell: bool) -> None:
        """Looks at what came since it looked last, then counts anew.

        Args:
            sites: All synapses.
            edges: All edges.
            tell: Whether each layer is meant to get a gradient.
        """
        sites = list(sites)
        if not any(site.reached for site in sites):
            return  # no backward pass has come by
        for edge in edges:
            edge.reached, edge.reached_now = edge.reached_now, False
        silent = [site.name for site in sites if not site.reached and site.is_trained]
        for site in sites:
            site.reached = False
        new = [name for name in silent if name not in self._told]
        if not new or not tell:
            return
        self._told.update(new)
        warnings.warn(
            f"No gradient came to {', '.join(map(repr, new))} in a whole sequence, although it could learn: what the "
            "layer does reaches the loss at later time steps only (a delay, a buffer), through something without a "
            "derivative (detach(), a comparison, numpy, no_grad()), or not at all. The rule passes no signal between "
            "time steps. Let it reach the loss within the step, use a learning signal that comes to each layer "
            'directly (learning_signal="dfa"), or freeze the layer (requires_grad_(False)).',
            STLLRWarning,
            stacklevel=4,
        )
