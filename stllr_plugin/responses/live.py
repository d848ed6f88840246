"""A step that left its own graph: works for every neuron that is called at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from stllr_plugin.neurons.base import NeuronStep
from stllr_plugin.responses.base import Response, Roots, get_edge


@dataclass(slots=True)
class LiveResponse(Response):
    """One step whose graph, from the synapses to u and on to the outputs, is the one that the module's code left.

    Attributes:
        edges: Edge of each leaf, None at the place of the spikes.
        dtype: That of v.
        fired: Where the neuron spiked, if the factor of graded spikes is trained and psi carries the signal.
        gain_shape: Shape of that factor.
    """

    edges: list[GradientEdge | None] = field(default_factory=list)
    dtype: torch.dtype | None = None
    fired: Tensor | None = None
    gain_shape: torch.Size | None = None

    def pull(self, membrane: Tensor | None, leaves: Sequence[Tensor | None]) -> tuple[Roots, list[Tensor | None]]:
        """See the base class; synapses within the neuron are in the same graph."""
        pairs = [(self.root, None if membrane is None else membrane[0]), *zip(self.edges, leaves, strict=True)]
        return [(edge, gradient) for edge, gradient in pairs if edge is not None and gradient is not None], []

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See the base class; parameters get their gradient from autograd."""
        links: list[Tensor | None] = []
        if self.spikes is not None:
            delta = None if signal is None else signal[0]
            if psi is None:
                links.append(delta)
            else:
                shown = delta if delta is None or self.gain is None else delta * self.gain
                links.append(None if shown is None else (shown.to(psi.dtype) * psi[0]).to(self.dtype))
                if self.fired is not None and self.gain_shape is not None:
                    links.append(None if delta is None else (delta * self.fired).sum_to_size(self.gain_shape))
        links += [leaf for i, leaf in enumerate(leaves) if i != self.spikes]
        return links, []


def live_response(step: NeuronStep, output: Any, states: list[Tensor], psi_carries: bool) -> LiveResponse:
    """Reads a step.

    Args:
        step: What the adapter read.
        output: What the module returned.
        states: The states, returned or kept, that are in the graph.
        psi_carries: Whether psi carries the learning signal to the layer below.
    """
    membrane, spikes = step.membrane, step.spikes
    assert membrane is not None
    root = get_edge(membrane)
    distance, gain = step.threshold_distance, step.gain
    links: list[Tensor] = []
    fired = None
    if spikes is not None and psi_carries:
        assert distance is not None
        links.append(distance)
        if gain is not None and gain.requires_grad:
            fired = distance.detach() > 0
            links.append(gain)
    elif spikes is not None:
        links.append(spikes)
    edges = [root if state is membrane else get_edge(state) for state in states]
    return LiveResponse(
        output=output,
        leaves=states if spikes is None else [spikes, *states],
        spikes=None if spikes is None else 0,
        v=None if distance is None else distance.detach().unsqueeze(0),
        shape=None if spikes is None else spikes.unsqueeze(0).shape,
        links=[*links, *states],
        root=root,
        direct=True,
        gate=None if step.gate is None else step.gate.unsqueeze(0),
        gain=None if gain is None else gain.detach(),
        edges=edges if spikes is None else [None, *edges],
        dtype=None if distance is None else distance.dtype,
        fired=fired,
        gain_shape=None if gain is None else gain.shape,
    )
