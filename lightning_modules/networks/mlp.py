"""A fully connected spiking network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.networks.blocks import Neuron, Readout, Surrogate, initialise, make_neuron, make_readout


class SpikingMLP(nn.Module):
    """Fully connected layers of spiking neurons. One call is one time step; frames are flattened.

    Args:
        in_features: Values in one frame (channels x height x width, or the number of audio channels).
        hidden: Neurons of each hidden layer.
        num_classes: Number of outputs.
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        neuron: "leaky" (snnTorch) or "norse_lifbox" (Norse).
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout: "linear" reads the last spikes of the step; "leaky" integrates them in membranes that never fire.
        readout_beta: Decay of the leaky readout.
        weight_standardization: Standardise the weights of the hidden layers.
        gain: Factor on the initial weights (with standardisation: initial gain); raise it when layers stay silent.
    """

    def __init__(
        self,
        in_features: int = 2 * 34 * 34,
        hidden: Sequence[int] = (200,),
        num_classes: int = 10,
        beta: float = 0.8,
        threshold: float = 1.0,
        neuron: Neuron = "leaky",
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout: Readout = "linear",
        readout_beta: float = 0.9,
        weight_standardization: bool = False,
        gain: float = 2.0,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, out_features in enumerate(hidden, start=1):
            linear = nn.Linear(in_features, out_features)
            initialise(linear, gain, weight_standardization)
            layers[f"fc{index}"] = linear
            layers[f"lif{index}"] = make_neuron(neuron, beta, threshold, surrogate, slope)
            in_features = out_features
        self.features = nn.Sequential(layers)
        self.readout = make_readout(readout, in_features, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: frame [B, ...] to logits [B, num_classes]."""
        logits: Tensor = self.readout(self.features(frame))
        return logits
