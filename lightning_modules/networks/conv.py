"""A small convolutional spiking network for event frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.networks.blocks import (
    Neuron,
    Readout,
    Surrogate,
    initialise,
    make_neuron,
    make_pool,
    make_readout,
)
from stllr_plugin.nn import SequenceDropout


class SpikingConvNet(nn.Module):
    """Convolutions with spiking neurons, for example 12C5-P2-32C5-P2-10. One call is one time step.

    Args:
        in_channels: Channels of a frame (2 polarities).
        size: Height and width of a frame in pixels, for example 34 or [34, 34].
        channels: Output channels of each convolution.
        kernel_size: Side of the square kernels.
        padding: Pixels added on each side before a convolution.
        pool: "max", "avg" or "none": what halves height and width after each convolution.
        pool_currents: Pool the input currents, before the neurons (4 times fewer neurons to keep), instead of their
            spikes.
        num_classes: Number of outputs.
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        neuron: "leaky" (snnTorch) or "norse_lifbox" (Norse).
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout: "linear" reads the last spikes of the step; "leaky" integrates them in membranes that never fire.
        readout_beta: Decay of the leaky readout.
        weight_standardization: Standardise the weights of the convolutions (zero mean and unit variance for each output
            channel, times a learned gain).
        gain: Factor on the initial weights (with standardisation: initial gain); raise it when layers stay silent.
        dropout: Share of the last spikes dropped in training, with the same mask for a whole sequence.
    """

    def __init__(
        self,
        in_channels: int = 2,
        size: int | Sequence[int] = 34,
        channels: Sequence[int] = (12, 32),
        kernel_size: int = 5,
        padding: int = 0,
        pool: str = "max",
        pool_currents: bool = True,
        num_classes: int = 10,
        beta: float = 0.8,
        threshold: float = 1.0,
        neuron: Neuron = "leaky",
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout: Readout = "linear",
        readout_beta: float = 0.9,
        weight_standardization: bool = True,
        gain: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pool not in ("max", "avg", "none"):
            raise ValueError(f"Unknown pool {pool!r}; known: max, avg, none.")
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, out_channels in enumerate(channels, start=1):
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
            initialise(conv, gain, weight_standardization)
            layers[f"conv{index}"] = conv
            spiking = make_neuron(neuron, beta, threshold, surrogate, slope)
            height, width = (side + 2 * padding - kernel_size + 1 for side in (height, width))
            if pool == "none":
                layers[f"lif{index}"] = spiking
            else:
                pooling = make_pool(pool)
                pair = {f"pool{index}": pooling, f"lif{index}": spiking}
                layers.update(pair.items() if pool_currents else reversed(pair.items()))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ValueError(
                    f"Frames of {size} pixels are too small for {len(channels)} convolutions of {kernel_size}."
                )
            in_channels = out_channels
        layers["flatten"] = nn.Flatten()
        if dropout:
            layers["dropout"] = SequenceDropout(dropout)
        self.features = nn.Sequential(layers)
        self.readout = make_readout(readout, in_channels * height * width, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: frame [B, C, H, W] to logits [B, num_classes]."""
        logits: Tensor = self.readout(self.features(frame))
        return logits
