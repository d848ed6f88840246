"""Layers that could learn and get no gradient: a mistake that nothing else shows, since the others go on learning."""

from __future__ import annotations

import warnings

from stllr_plugin.errors import STLLRWarning
from stllr_plugin.network import Network


def tell_of_silence(network: Network) -> None:
    """Names, once each, layers that have got no gradient since the last update; then counts anew.

    To be called where an update is due, or where a sequence begins after a backward pass.
    """
    for _, _, edge, _ in network.edges():
        edge.reached, edge.reached_now = edge.reached_now, False
    silent = [site.name for site in network.synapses if not site.reached and site.is_trained]
    for site in network.synapses:
        site.reached = False
    new = [name for name in silent if name not in network.told_of]
    if not new or not network.signal.reaches_layers:
        return
    network.told_of.update(new)
    warnings.warn(
        f"No gradient came to {', '.join(map(repr, new))} in a whole sequence, although it could learn: what the layer "
        "does reaches the loss at later time steps only (a delay, a buffer), through something without a derivative "
        "(detach(), a comparison, numpy, no_grad()), or not at all. The rule passes no signal between time steps. Let "
        "it reach the loss within the step, use a learning signal that comes to each layer directly "
        '(learning_signal="dfa"), or freeze the layer (requires_grad_(False)).',
        STLLRWarning,
        stacklevel=4,
    )
