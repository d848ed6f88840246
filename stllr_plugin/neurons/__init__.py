"""Neuron adapters: what the learner must know of each library's neurons.

Adapters load only when a model holds a module of their library, so that the package imports torch alone.
"""

from __future__ import annotations

import importlib

from torch import nn

from stllr_plugin.neurons.base import (
    NeuronAdapter,
    StateKeeper,
    registered_adapters,
    registered_keepers,
    registered_refusals,
)

# Root package of a module's class -> the adapter module that knows it.
_LIBRARIES = {
    "snntorch": "stllr_plugin.neurons.snntorch",
    "norse": "stllr_plugin.neurons.norse",
    "spikingjelly": "stllr_plugin.neurons.spikingjelly",
}

__all__ = ["NeuronAdapter", "StateKeeper", "find_adapter", "find_keeper", "find_refusal"]


def _load_adapters(module: nn.Module) -> None:
    for kind in type(module).__mro__:
        library = _LIBRARIES.get(kind.__module__.partition(".")[0])
        if library is not None:
            importlib.import_module(library)


def find_adapter(module: nn.Module) -> NeuronAdapter | None:
    """The adapter of a module, or None where it is no supported neuron."""
    _load_adapters(module)
    return next((adapter for adapter in registered_adapters() if adapter.matches(module)), None)


def find_refusal(module: nn.Module) -> str | None:
    """Why a module without an adapter is a neuron that cannot be trained, and what to do; None if it is no neuron."""
    _load_adapters(module)
    return next((reason for refuse in registered_refusals() if (reason := refuse(module)) is not None), None)


def find_keeper(module: nn.Module) -> StateKeeper | None:
    """What is known of a module that keeps a state, but not in buffers; None if it keeps none."""
    _load_adapters(module)
    return next((keeper for keeper in registered_keepers() if keeper.matches(module)), None)
