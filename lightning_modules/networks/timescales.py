"""Recurrent populations with different time constants side by side."""

from __future__ import annotations

from collections.abc import Sequence

import snntorch as snn
import torch
from torch import Tensor, nn

from lightning_modules.networks.blocks import Surrogate, initialise, make_readout, make_surrogate


class TimescaleSNN(nn.Module):
    """Populations of spiking neurons that forget at different speeds, all reading the input, and one readout.

    Signals such as an electrocardiogram have short events and long pauses; fast neurons mark the events, slow ones
    remember how long ago they were. One call is one time step.

    Args:
        in_features: Input channels. Frames with more dimensions are flattened.
        hidden: Neurons of all populations together.
        betas: Membrane decay per time step of each population; they share the neurons evenly.
        num_classes: Number of outputs.
        recurrent: Whether the neurons of a population feed each other.
        threshold: Firing threshold.
        surrogate: Surrogate gradient: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout_beta: Decay of the readout's membranes.
        gain: Factor on the initial input weights; those of a population are also scaled with ``sqrt(1 - beta^2)``, so
            that slow membranes do not fire more.
        recurrent_gain: Factor on the initial recurrent weights.
    """

    def __init__(
        self,
        in_features: int = 4,
        hidden: int = 128,
        betas: Sequence[float] = (0.8, 0.95, 0.99),
        num_classes: int = 6,
        recurrent: bool = True,
        threshold: float = 1.0,
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout_beta: float = 0.9,
        gain: float = 2.0,
        recurrent_gain: float = 0.3,
    ) -> None:
        super().__init__()
        if not betas or hidden < len(betas):
            raise ValueError(f"{hidden} neurons cannot make {len(betas)} populations.")
        self.flatten = nn.Flatten()
        self.count = len(betas)
        ends = [round(i * hidden / self.count) for i in range(self.count + 1)]
        spike_grad = make_surrogate(surrogate, slope)
        for i, beta in enumerate(betas):
            size = ends[i + 1] - ends[i]
            synapse = nn.Linear(in_features, size)
            scale = (1 - beta**2) ** 0.5
            initialise(synapse, gain * scale)
            settings = {"beta": beta, "threshold": threshold, "spike_grad": spike_grad, "init_hidden": True}
            self.add_module(f"fc{i + 1}", synapse)
            if recurrent:
                population = snn.RLeaky(linear_features=size, all_to_all=True, **settings)
                initialise(population.recurrent, recurrent_gain * scale)
                self.add_module(f"lif{i + 1}", population)
            else:
                self.add_module(f"lif{i + 1}", snn.Leaky(**settings))
        self.readout = make_readout("leaky", hidden, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: input [B, ...] to the readout's membranes [B, num_classes]."""
        frame = self.flatten(frame)
        populations = range(1, self.count + 1)
        spikes = [getattr(self, f"lif{i}")(getattr(self, f"fc{i}")(frame)) for i in populations]
        logits: Tensor = self.readout(torch.cat(spikes, dim=1))
        return logits
