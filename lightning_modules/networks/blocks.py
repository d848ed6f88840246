"""Building blocks shared by the networks: neurons with hidden state, surrogates, readouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from torch import Tensor, nn

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


class NorseLIFBox(nn.Module):
    """A Norse ``LIFBoxCell`` that keeps its state, so that it can stand in ``nn.Sequential`` like a snnTorch neuron.

    Norse scales the input current by ``dt * tau_mem_inv = 1 - beta``. The current is divided by that factor here,
    which makes thresholds and weights mean the same as for ``snntorch.Leaky``.

    Args:
        beta: Membrane decay per time step; sets ``tau_mem_inv = (1 - beta) / dt``.
        threshold: Firing threshold.
    """

    is_spiking = True

    def __init__(self, beta: float, threshold: float) -> None:
        super().__init__()
        from norse.torch import LIFBoxCell, LIFBoxParameters

        dt = 1e-3
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1) for a Norse neuron, got {beta}.")
        self.beta = beta
        self.gain = 1.0 - beta
        time_constant, v_th = torch.as_tensor(self.gain / dt), torch.as_tensor(float(threshold))
        parameters = LIFBoxParameters(tau_mem_inv=time_constant, v_th=v_th)
        self.cell = LIFBoxCell(p=parameters, dt=dt)
        self._state: tuple[Tensor, ...] | None = None

    def reset_states(self) -> None:
        """Forget the running sequence."""
        self._state = None

    def detach_states(self) -> None:
        """Cut the state from its graph and keep its value."""
        if self._state is not None:
            self._state = type(self._state)(*(value.detach() for value in self._state))

    def forward(self, current: Tensor) -> Tensor:
        """One time step: input current to spikes, same shape."""
        if self._state is not None and self._state[0].shape != current.shape and self._state[0].dim():
            self._state = None  # another batch size: a new sequence
        spikes: Tensor
        spikes, self._state = self.cell(current / self.gain, self._state)
        return spikes


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
