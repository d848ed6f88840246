"""Building blocks shared by the networks: neurons with hidden state, surrogates, readouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from torch import Tensor, nn

from lightning_modules.networks.norse_layers import NorseLIFBox
from stllr_plugin.nn import weight_standardize

Readout = Literal["linear", "leaky"]
Neuron = Literal["leaky", "norse_lifbox"]
Surrogate = Literal["atan", "fast_sigmoid", "sigmoid"]

_SURROGATES: dict[str, tuple[Callable[..., Callable[[Tensor], Tensor]], str]] = {
    "atan": (snn_surrogate.atan, "alpha"),
    "fast_sigmoid": (snn_surrogate.fast_sigmoid, "slope"),
    "sigmoid": (snn_surrogate.sigmoid, "slope"),
}


def make_surrogate(name: str, slope: float) -> Callable[[Tensor], Tensor]:
    """A snnTorch surrogate gradient by name.

    Args:
        name: "atan", "fast_sigmoid" or "sigmoid".
        slope: Its steepness (``alpha`` of atan, ``slope`` of the others).

    Raises:
        ValueError: If the name is not known.
    """
    if name not in _SURROGATES:
        raise ValueError(f"Unknown surrogate {name!r}; known: {', '.join(_SURROGATES)}.")
    factory, argument = _SURROGATES[name]
    return factory(**{argument: slope})


def make_neuron(kind: str, beta: float, threshold: float, surrogate: str, slope: float) -> nn.Module:
    """A spiking layer that keeps its own state and maps one step's current to one step's spikes.

    Args:
        kind: "leaky" (``snntorch.Leaky``, reset by subtraction) or "norse_lifbox" (``norse.torch.LIFBoxCell``).
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        surrogate: Surrogate gradient of the snnTorch neuron, see :func:`make_surrogate`; Norse brings its own.
        slope: Steepness of the surrogate.

    Raises:
        ValueError: If the kind is not known.
    """
    if kind == "leaky":
        spike_grad = make_surrogate(surrogate, slope)
        leaky: nn.Module = snn.Leaky(beta=beta, threshold=threshold, spike_grad=spike_grad, init_hidden=True)
        return leaky
    if kind == "norse_lifbox":
        return NorseLIFBox(beta=beta, threshold=threshold)
    raise ValueError(f"Unknown neuron {kind!r}; known: leaky, norse_lifbox.")


class LeakyReadout(nn.Module):
    """A linear layer into leaky integrators that never fire; their membrane is the output.

    Args:
        in_features: Number of inputs.
        num_classes: Number of integrators.
        beta: Membrane decay per time step.
    """

    is_spiking = False

    def __init__(self, in_features: int, num_classes: int, beta: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)
        self.integrator = snn.Leaky(beta=beta, init_hidden=True, output=True, reset_mechanism="none")

    def forward(self, spikes: Tensor) -> Tensor:
        """One time step: spikes [B, in_features] to membranes [B, num_classes]."""
        membrane: Tensor
        _, membrane = self.integrator(self.linear(spikes))
        return membrane


def make_pool(kind: str) -> nn.Module:
    """Pooling that halves height and width: "max" or "avg".

    Raises:
        ValueError: If the kind is not known.
    """
    if kind == "max":
        return nn.MaxPool2d(2)
    if kind == "avg":
        return nn.AvgPool2d(2)
    raise ValueError(f"Unknown pool {kind!r}; known: max, avg.")


def make_readout(kind: str, in_features: int, num_classes: int, beta: float) -> nn.Module:
    """The last layer: "linear" reads the spikes of one step, "leaky" integrates them over time.

    Raises:
        ValueError: If the kind is not known.
    """
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    if kind == "leaky":
        return LeakyReadout(in_features, num_classes, beta)
    raise ValueError(f"Unknown readout {kind!r}; known: linear, leaky.")


def initialise(layer: nn.Linear | nn.Conv2d, gain: float, standardize: bool = False) -> None:
    """Kaiming-normal weights times ``gain``, zero bias: sparse spikes drive the next layer over its threshold.

    Args:
        layer: The synapse.
        gain: Factor on the weights. With standardisation, which fixes their scale, the initial value of the learned
            gain.
        standardize: Put weight standardisation on the layer.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        if not standardize:
            layer.weight.mul_(gain)
            return
        weight_standardize(layer)
        for name, parameter in layer.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(gain)
