"""A small recurrent network for optical flow that keeps the full resolution."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_modules.networks.blocks import Surrogate, initialise
from lightning_modules.networks.flow_blocks import FlowNeurons, FlowReadout, Library, check_counts


class SpikingFireNet(nn.Module):
    """Few channels at full resolution: a head, blocks of one recurrent and one plain layer, and a readout.

    One call is one time step: event counts [B, C, H, W] to a list that holds one flow [B, 2, H, W], in pixels per
    window. Nothing is downsampled, so any height and width will do. Some thousand weights in all: for small devices.

    Args:
        in_channels: Channels of a frame (2 polarities).
        channels: Channels of every layer.
        blocks: How many pairs of a recurrent and a plain layer follow the head.
        dilations: Dilation of the kernels of each block; far-apart pixels need it where motion is large. All 1 if left
            out.
        neuron: Neurons of "snntorch" or of "norse".
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout_beta: Decay of the readout's membranes.
        readout_kernel: Side of the readout's kernels.
        flow_scale: Pixels of flow that one unit of the readout's membrane stands for, see `FSFN`.
        weight_standardization: Standardise the weights of all layers but the readout.
        gain: Factor on the initial weights (with standardisation: initial gain); raise it where layers stay silent.
        recurrent_gain: The same for the recurrent weights.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: int = 16,
        blocks: int = 2,
        dilations: list[int] | None = None,
        neuron: Library = "snntorch",
        beta: float = 0.88,
        threshold: float = 0.6,
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout_beta: float = 0.88,
        readout_kernel: int = 1,
        flow_scale: float = 0.1,
        weight_standardization: bool = True,
        gain: float = 2.0,
        recurrent_gain: float = 0.3,
    ) -> None:
        super().__init__()
        if channels < 1 or blocks < 1:
            raise ValueError(f"SpikingFireNet needs channels and blocks; got {channels} channels, {blocks} blocks.")
        spread = [1] * blocks if dilations is None else list(dilations)
        if len(spread) != blocks or min(spread) < 1:
            raise ValueError(f"Each of the {blocks} blocks needs one dilation of at least 1; got {dilations}.")
        self.in_channels = in_channels
        neurons = FlowNeurons(neuron, beta, threshold, surrogate, slope, recurrent_gain, weight_standardization)

        def conv(before: int, dilation: int) -> nn.Module:
            synapse = nn.Conv2d(before, channels, 3, padding=dilation, dilation=dilation)
            initialise(synapse, gain, weight_standardization)
            return synapse

        self.head = nn.Sequential(conv(in_channels, 1), neurons.spiking())
        self.blocks = nn.Sequential()
        for dilation in spread:
            self.blocks.append(nn.Sequential(conv(channels, dilation), neurons.recurrent(channels)))
            self.blocks.append(nn.Sequential(conv(channels, 1), neurons.spiking()))
        self.readout = FlowReadout(channels, readout_kernel, neuron, readout_beta, flow_scale)

    def forward(self, counts: Tensor) -> list[Tensor]:
        """One time step: counts [B, C, H, W] to one flow [B, 2, H, W]."""
        check_counts(counts, self.in_channels)
        return [self.readout(self.blocks(self.head(counts)))]
