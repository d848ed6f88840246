"""A fully spiking encoder-decoder for optical flow, with or without recurrence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.networks.blocks import Surrogate, initialise
from lightning_modules.networks.flow_blocks import (
    FlowNeurons,
    FlowReadout,
    Library,
    UpSynapse,
    check_counts,
    crop_flows,
    pad_to_multiple,
)
from lightning_modules.networks.resnet import SpikingBlock


class FSFN(nn.Module):
    """A U-Net of spikes: strided convolutions down, residual blocks, upsampling with skips, a flow at every scale.

    One call is one time step: event counts [B, C, H, W] to a list of flows [B, 2, h, w] in pixels per window, from
    the coarsest scale to the full resolution. All layers between are leaky integrate-and-fire neurons; only spikes pass
    from one to the next. Each flow is read from the membranes of leaky integrators that never fire, so it keeps what
    earlier time steps contributed. The values are pixels of the full resolution at every scale.

    Any height and width will do. Where they are not multiples of 2 ** levels, empty pixels are added on all sides, and
    the flows are cropped back to the frame.

    With ``recurrent`` the spikes of a layer come back to it at the next time step through a 3x3 convolution, so that
    the network can remember longer than its membranes do. For S-TLLR these are synapses like all others, with the
    spikes of the step before as their input.

    Args:
        in_channels: Channels of a frame (2 polarities).
        base_channels: Channels after the first convolution; each of the next ones doubles them.
        levels: How often height and width are halved.
        residual_blocks: Blocks in the middle, at the lowest resolution.
        scales: How many flows are read, those of the highest resolutions; all ``levels`` if left out.
        recurrent: Layers that feed themselves: "none", "encoder" or "all" (the decoder and the middle too).
        upsampling: "transposed" convolutions, or "nearest" neighbours and a convolution.
        neuron: Neurons of "snntorch" or of "norse".
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout_beta: Decay of the readouts' membranes.
        readout_kernel: Side of the readouts' kernels.
        flow_scale: Pixels of flow that one unit of a readout's membrane stands for. It sets how far one update moves
            the flow: raise it where flows of tens of pixels must be learned, lower it where training is restless.
        weight_standardization: Standardise the weights of all layers but the readouts (zero mean and unit variance for
            each output channel, times a learned gain).
        gain: Factor on the initial weights (with standardisation: initial gain); raise it where layers stay silent.
        recurrent_gain: The same for the recurrent weights.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        in_channels: int = 2,
        base_channels: int = 32,
        levels: int = 4,
        residual_blocks: int = 2,
        scales: int | None = None,
        recurrent: Literal["none", "encoder", "all"] = "none",
        upsampling: Literal["transposed", "nearest"] = "transposed",
        neuron: Library = "snntorch",
        beta: float = 0.88,
        threshold: float = 0.6,
        surrogate: Surrogate = "atan",
        slope: float = 2.0,
        readout_beta: float = 0.88,
        readout_kernel: int = 3,
        flow_scale: float = 0.1,
        weight_standardization: bool = True,
        gain: float = 2.0,
        recurrent_gain: float = 0.3,
    ) -> None:
        super().__init__()
        scales = levels if scales is None else scales
        _check(base_channels, levels, residual_blocks, scales, recurrent)
        self.in_channels = in_channels
        self.levels = levels
        self.multiple = 2**levels
        neurons = FlowNeurons(neuron, beta, threshold, surrogate, slope, recurrent_gain, weight_standardization)
        widths = [base_channels * 2**level for level in range(levels)]

        self.encoders = nn.ModuleList()
        before = in_channels
        for width in widths:
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1)
            initialise(conv, gain, weight_standardization)
            self.encoders.append(nn.Sequential(conv, neurons.layer(width, recurrent != "none")))
            before = width

        def layer(width: int) -> nn.Module:
            return neurons.layer(width, recurrent == "all")

        self.middle = nn.Sequential(
            *(
                SpikingBlock(before, before, 1, (layer(before), layer(before)), gain, weight_standardization, 0.0)
                for _ in range(residual_blocks)
            )
        )
        self.decoders = nn.ModuleList()
        self.readouts = nn.ModuleList()
        for level in reversed(range(levels)):
            width = widths[max(level - 1, 0)]
            up = UpSynapse(before, width, upsampling, gain, weight_standardization)
            self.decoders.append(nn.Sequential(up, layer(width)))
            before = width + (widths[level - 1] if level else 0)
            if level < scales:
                self.readouts.append(FlowReadout(before, readout_kernel, neuron, readout_beta, flow_scale))

    def forward(self, counts: Tensor) -> list[Tensor]:
        """One time step: counts [B, C, H, W] to flows [B, 2, h, w], the last one of full resolution."""
        check_counts(counts, self.in_channels)
        spikes, first = pad_to_multiple(counts, self.multiple)
        skips = []
        for encoder in self.encoders:
            spikes = encoder(spikes)
            skips.append(spikes)
        spikes = self.middle(skips.pop())
        flows = []
        silent = self.levels - len(self.readouts)
        for number, decoder in enumerate(self.decoders):
            spikes = decoder(spikes)
            if skips:
                spikes = torch.cat((spikes, skips.pop()), dim=1)
            if number >= silent:
                flows.append(self.readouts[number - silent](spikes))
        return crop_flows(flows, counts.shape[2:], first, self.multiple)


def _check(base_channels: int, levels: int, residual_blocks: int, scales: int, recurrent: str) -> None:
    """Raises ValueError where these settings make no network."""
    if recurrent not in ("none", "encoder", "all"):
        raise ValueError(f"Unknown recurrent {recurrent!r}; known: none, encoder, all.")
    if levels < 1 or base_channels < 1 or residual_blocks < 0:
        raise ValueError(
            f"FSFN needs at least 1 level and 1 channel; got levels={levels}, base_channels={base_channels}, "
            f"residual_blocks={residual_blocks}."
        )
    if not 1 <= scales <= levels:
        raise ValueError(f"scales must lie in 1..{levels} (levels); got {scales}.")
