"""A recurrent spiking network for audio-like event streams."""

from __future__ import annotations

import snntorch as snn
from torch import Tensor, nn

from lightning_modules.networks.blocks import Surrogate, initialise, make_readout, make_surrogate


class RecurrentSNN(nn.Module):
    """One recurrent spiking layer and a leaky readout, the net that is common for Spiking Heidelberg Digits.

    Args:
        in_features: Input channels (700 for SHD). Frames with more dimensions are flattened.
        hidden: Recurrent neurons.
        num_classes: Number of outputs.
        beta: Membrane decay per time step of the recurrent layer.
        threshold: Firing threshold.
        surrogate: Surrogate gradient: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout_beta: Decay of the readout's membranes.
        gain: Factor on the initial input weights.
        recurrent_gain: Factor on the initial recurrent weights.
        weight_standardization: Standardise the input and the recurrent weights; the two gains are then the initial ones
            of the learned gains.
    """

    def __init__(
        self,
        in_features: int = 700,
        hidden: int = 450,
        num_classes: int = 20,
        beta: float = 0.99,
        threshold: float = 0.8,
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout_beta: float = 0.99,
        gain: float = 1.0,
        recurrent_gain: float = 0.3,
        weight_standardization: bool = False,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_features, hidden)
        self.lif1 = snn.RLeaky(
            beta=beta,
            threshold=threshold,
            linear_features=hidden,
            all_to_all=True,
            spike_grad=make_surrogate(surrogate, slope),
            init_hidden=True,
        )
        initialise(self.fc1, gain, weight_standardization)
        initialise(self.lif1.recurrent, recurrent_gain, weight_standardization)
        self.readout = make_readout("leaky", hidden, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: input [B, ...] to the readout's membranes [B, num_classes]."""
        logits: Tensor = self.readout(self.lif1(self.fc1(self.flatten(frame))))
        return logits
