"""Steps of a neuron under ``no_grad()`` in the middle of a sequence: they do not count, and the sequence goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stllr_plugin.neurons.base import NeuronAdapter
from stllr_plugin.traces import NeuronTraces


class MutedSteps:
    """Follows a neuron's state through such steps.

    Else the state that comes out of them, if it is all zero, would look like the beginning of another sequence.
    """

    def __init__(self, module: nn.Module, adapter: NeuronAdapter, layers: Sequence[NeuronTraces]) -> None:
        """Args: the neuron, its adapter, and the traces of the layers that it serves."""
        self._module = module
        self._adapter = adapter
        self._layers = layers
        self._followed: NeuronTraces | None = None

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Looks whether the step goes on from the last one that counted."""
        self._followed = None
        if torch.is_inference_mode_enabled():
            return  # nothing can be trained from such a state
        if any(traces.last_membrane is not None for traces in self._layers):
            _, _, membrane = self._adapter.detach_states(self._module, args, kwargs)
            self._followed = next((traces for traces in self._layers if traces.returned(membrane)), None)

    def after(self, output: Any) -> None:
        """Notes the state that comes out."""
        followed, self._followed = self._followed, None
        if followed is not None and output is not None:
            followed.remember(self._adapter.returned_membrane(self._module, output))
