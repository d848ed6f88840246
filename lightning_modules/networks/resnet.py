"""Residual spiking networks, ResNet18 among them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.networks.blocks import Neuron, Readout, Surrogate, initialise, make_neuron, make_readout
from stllr_plugin.nn import SequenceDropout


class SpikingBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ``lif2(conv2(lif1(conv1(x))) + shortcut(x))``.

    Everything between blocks is spikes. Where the shape changes the shortcut is a 1x1 convolution, otherwise the
    spikes themselves are added to the current.

    Args:
        in_channels: Channels of the input spikes.
        channels: Channels of the output spikes.
        stride: 2 halves height and width.
        neurons: The block's two layers of neurons.
        gain: Initial gain of its convolutions, see :func:`lightning_modules.networks.blocks.initialise`.
        weight_standardization: Standardise their weights.
        dropout: Share of the spikes of both layers dropped in training, with the same mask for a whole sequence.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        neurons: tuple[nn.Module, nn.Module],
        gain: float,
        weight_standardization: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1)
        self.lif1 = neurons[0]
        self.dropout1 = SequenceDropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride)
        self.lif2 = neurons[1]
        self.dropout2 = SequenceDropout(dropout) if dropout else nn.Identity()
        for conv in (self.conv1, self.conv2, self.shortcut):
            if isinstance(conv, nn.Conv2d):
                # A 1x1 convolution of a single channel has nothing to standardise.
                initialise(conv, gain, weight_standardization and conv.weight[0].numel() > 1)

    def forward(self, spikes: Tensor) -> Tensor:
        """One time step: spikes [B, in_channels, H, W] to spikes [B, channels, H / stride, W / stride]."""
        inner = self.dropout1(self.lif1(self.conv1(spikes)))
        out: Tensor = self.dropout2(self.lif2(self.conv2(inner) + self.shortcut(spikes)))
        return out


class SpikingResNet(nn.Module):
    """A residual network of spiking blocks; the defaults are ResNet18 for small pictures. A call is one time step.

    The first convolution keeps the resolution; each stage but the first halves it.

    Args:
        in_channels: Channels of a frame (2 polarities; 3 for colour pictures).
        blocks: Blocks of each stage.
        channels: Channels of each stage.
        width: Factor on the numbers of channels, to try things on a small machine.
        num_classes: Number of outputs.
        beta: Membrane decay per time step (the paper's gamma).
        threshold: Firing threshold.
        neuron: "leaky" (snnTorch) or "norse_lifbox" (Norse).
        surrogate: Surrogate gradient of the snnTorch neurons: "atan", "fast_sigmoid" or "sigmoid".
        slope: Steepness of the surrogate.
        readout: "linear" reads the last spikes of the step; "leaky" integrates them in membranes that never fire.
        readout_beta: Decay of the leaky readout.
        weight_standardization: Standardise the weights of the convolutions (zero mean and unit variance for each output
            channel, times a learned gain).
        gain: Factor on the initial weights (with standardisation: initial gain). Deep layers stay silent when it
            is 1.
        dropout: Share of the spikes of every layer dropped in training, with the same mask for a whole sequence.
    """

    def __init__(
        self,
        in_channels: int = 2,
        blocks: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 128, 256, 512),
        width: float = 1.0,
        num_classes: int = 10,
        beta: float = 0.5,
        threshold: float = 0.8,
        neuron: Neuron = "leaky",
        surrogate: Surrogate = "sigmoid",
        slope: float = 4.0,
        readout: Readout = "linear",
        readout_beta: float = 0.9,
        weight_standardization: bool = True,
        gain: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels) or not blocks or min(blocks) < 1:
            raise ValueError(f"Each stage needs its blocks and its channels; got {list(blocks)} and {list(channels)}.")
        widths = [max(round(count * width), 1) for count in channels]

        def neurons() -> nn.Module:
            return make_neuron(neuron, beta, threshold, surrogate, slope)

        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        initialise(self.conv, gain, weight_standardization)
        self.lif = neurons()
        stages = []
        before = widths[0]
        for stage, (count, after) in enumerate(zip(blocks, widths, strict=True)):
            stage_blocks = []
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                pair = (neurons(), neurons())
                stage_blocks.append(SpikingBlock(before, after, stride, pair, gain, weight_standardization, dropout))
                before = after
            stages.append(nn.Sequential(*stage_blocks))
        self.stages = nn.Sequential(*stages)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.readout = make_readout(readout, before, num_classes, readout_beta)

    def forward(self, frame: Tensor) -> Tensor:
        """One time step: frame [B, C, H, W] to logits [B, num_classes]."""
        spikes = self.stages(self.lif(self.conv(frame)))
        logits: Tensor = self.readout(self.flatten(self.global_pool(spikes)))
        return logits
