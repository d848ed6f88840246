"""VGG-like spiking networks, VGG9 of the S-TLLR paper among them."""

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

VGG9: tuple[int | str, ...] = (64, 128, "P", 256, 256, "P", 512, 512, "P", 512, 512, "P")


class SpikingVGG(nn.Module):
    """3x3 convolutions with spiking neurons, pooled spikes and a readout: 64C3-128C3-P2-...-FC. A call is a time step.

    Args:
        in_channels: Channels of a frame (2 polarities).
        size: Height and width of a frame in pixels, for example 32 or [45, 60].
        layers: A number is a convolution with so many output channels; "P" halves height and width.
        width: Factor on the numbers of channels, to try things on a small machine.
        pool: "avg" or "max": how spikes are pooled.
        global_pool: Average over what is left of height and width before the readout.
        num_classes: Number of outputs.
        beta: Membrane decay per time step (the paper's gamma).
        threshold: Firing threshold.
        neuron: "leaky" (snnTorch) or "norse_lifbox" (Norse).
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate. A sigmoid of slope 4 is the paper's psi for CIFAR10-DVS.
        readout: "linear" reads the last spikes of the step; "leaky" integrates them in membranes that never fire.
        readout_beta: Decay of the leaky readout.
        weight_standardization: Standardise the weights of the convolutions (zero mean and unit variance for each output
            channel, times a learned gain).
        gain: Factor on the initial weights (with standardisation: initial gain). Deep layers stay silent when it
            is 1. Twice as much is used after average pooling, which halves the spread of the currents.
        dropout: Share of the spikes of every layer dropped in training, with the same mask for a whole sequence.
    """

    def __init__(
        self,
        in_channels: int = 2,
        size: int | Sequence[int] = 32,
        layers: Sequence[int | str] = VGG9,
        width: float = 1.0,
        pool: str = "avg",
        global_pool: bool = True,
        num_classes: int = 10,
        beta: float = 0.5,
        threshold: float = 0.8,
        neuron: Neuron = "leaky",
        surrogate: Surrogate = "sigmoid",
        slope: float = 4.0,
        readout: Readout = "linear",
        readout_beta: float = 0.9,
        weight_standardization: bool = True,
        gain: float = 2.5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width_ = (size, size) if isinstance(size, int) else tuple(size)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        convolutions, pools, averaged = 0, 0, False
        for layer in layers:
            if layer == "P":
                pools, averaged = pools + 1, pool == "avg"
                stages[f"pool{pools}"] = make_pool(pool)
                height, width_ = height // 2, width_ // 2
                continue
            if not isinstance(layer, int) or layer < 1:
                raise ValueError(f'Layers are numbers of channels and "P" for pooling; found {layer!r}.')
            convolutions += 1
            channels = max(round(layer * width), 1)
            conv = nn.Conv2d(in_channels, channels, 3, padding=1)
            # The mean of four independent spikes spreads half as much as one: without it deep layers are silent.
            initialise(conv, 2 * gain if averaged else gain, weight_standardization)
            averaged = False
            stages[f"conv{convolutions}"] = conv
            stages[f"lif{convolutions}"] = make_neuron(neuron, beta, threshold, surrogate, slope)
            if dropout:
                stages[f"dropout{convolutions}"] = SequenceDropout(dropout)
            in_channels = channels
        if min(height, width_) < 1:
            raise ValueError(f"Frames of {size} pixels are too small to be halved {pools} times.")
        if global_pool:
            stages["global_pool"] = nn.AdaptiveAvgPool2d(1)
            height = width_ = 1
        stages["flatten"] = nn.Flatten()
        self.features = nn.Sequential(stages)
        self.readout = make_readout(readout, in_channels * height * width_, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: frame [B, C, H, W] to logits [B, num_classes]."""
        logits: Tensor = self.readout(self.features(frame))
        return logits
