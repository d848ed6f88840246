"""What the optical flow networks are made of: neurons of either library, readouts, and frames that cannot be halved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import snntorch as snn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lightning_modules.networks.blocks import Surrogate, initialise, make_neuron, make_surrogate
from lightning_modules.networks.norse_layers import NorseLIBox, NorseRecurrentLIFBox
from stllr_plugin.nn import WeightStandardization

Library = Literal["snntorch", "norse"]


@dataclass(frozen=True)
class FlowNeurons:
    """Makes the neurons of a network, all with the same settings.

    Attributes:
        library: "snntorch" (reset by subtraction) or "norse" (reset to zero).
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        surrogate: Surrogate gradient of snnTorch's neurons; Norse brings its own.
        slope: Its steepness.
        recurrent_gain: Factor on the initial recurrent weights.
        standardize: Standardise the recurrent weights.

    Raises:
        ValueError: If the library is not known.
    """

    library: Library
    beta: float
    threshold: float
    surrogate: Surrogate = "atan"
    slope: float = 2.0
    recurrent_gain: float = 0.3
    standardize: bool = True

    def __post_init__(self) -> None:
        """Checks the library's name."""
        if self.library not in ("snntorch", "norse"):
            raise ValueError(f"Unknown neuron {self.library!r}; known: snntorch, norse.")

    def spiking(self) -> nn.Module:
        """A layer of neurons."""
        kind = "leaky" if self.library == "snntorch" else "norse_lifbox"
        return make_neuron(kind, self.beta, self.threshold, self.surrogate, self.slope)

    def recurrent(self, channels: int, kernel_size: int = 3) -> nn.Module:
        """A layer of neurons to which the spikes of the step before come back through a convolution."""
        layer: nn.Module
        if self.library == "norse":
            layer = NorseRecurrentLIFBox(self.beta, self.threshold, channels, kernel_size)
        else:
            layer = snn.RLeaky(
                beta=self.beta,
                threshold=self.threshold,
                conv2d_channels=channels,
                kernel_size=kernel_size,
                spike_grad=make_surrogate(self.surrogate, self.slope),
                init_hidden=True,
            )
        initialise(layer.recurrent, self.recurrent_gain, self.standardize)  # type: ignore[arg-type]
        return layer

    def layer(self, channels: int, recurrent: bool) -> nn.Module:
        """A layer of neurons, with or without recurrence."""
        return self.recurrent(channels) if recurrent else self.spiking()


class FlowReadout(nn.Module):
    """A convolution into leaky integrators that never fire; their membranes, times a factor, are the flow.

    Args:
        in_channels: Channels of the spikes.
        kernel_size: Side of the kernels.
        library: "snntorch" or "norse".
        beta: Membrane decay per time step.
        flow_scale: Pixels of flow that one unit of membrane stands for.
    """

    is_spiking = False

    def __init__(self, in_channels: int, kernel_size: int, library: Library, beta: float, flow_scale: float) -> None:
        super().__init__()
        self.flow_scale = flow_scale
        self.conv = nn.Conv2d(in_channels, 2, kernel_size, padding=kernel_size // 2)
        # The first flow is near zero: a random one would have to be unlearned.
        nn.init.normal_(self.conv.weight, std=0.1 * (in_channels * kernel_size**2) ** -0.5)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.integrator: nn.Module = (
            NorseLIBox(beta)
            if library == "norse"
            else snn.Leaky(beta=beta, init_hidden=True, output=True, reset_mechanism="none")
        )

    def forward(self, spikes: Tensor) -> Tensor:
        """One time step: spikes [B, in_channels, h, w] to flow [B, 2, h, w] in pixels of full resolution."""
        output = self.integrator(self.conv(spikes))
        membrane: Tensor = output[1] if isinstance(output, tuple) else output
        return membrane * self.flow_scale


class TransposedStandardization(WeightStandardization):
    """Weight standardisation of transposed convolutions, whose weights are [in, out, ...].

    Args:
        weight: The weight to be standardised.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.transpose(0, 1))

    def forward(self, weight: Tensor) -> Tensor:
        """The standardised weight, of the same shape."""
        return super().forward(weight.transpose(0, 1)).transpose(0, 1)


class UpSynapse(nn.Sequential):
    """Doubles height and width: a transposed convolution, or nearest neighbours and a convolution.

    Args:
        in_channels: Channels of the input spikes.
        channels: Channels of the output current.
        kind: "transposed" (kernels of 4) or "nearest" (kernels of 3, no checkerboard patterns).
        gain: Initial gain, see `lightning_modules.networks.blocks.initialise`.
        standardize: Standardise the weights.

    Raises:
        ValueError: If the kind is not known.
    """

    def __init__(self, in_channels: int, channels: int, kind: str, gain: float, standardize: bool) -> None:
        if kind == "nearest":
            conv = nn.Conv2d(in_channels, channels, 3, padding=1)
            initialise(conv, gain, standardize)
            super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), conv)
            return
        if kind != "transposed":
            raise ValueError(f"Unknown upsampling {kind!r}; known: transposed, nearest.")
        transposed = nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1)
        # A pixel of the output sees a quarter of the 16 weights; the gain is that of what it sees.
        nn.init.normal_(transposed.weight, std=gain * (2 / (in_channels * 4)) ** 0.5)
        nn.init.zeros_(transposed.bias)  # type: ignore[arg-type]
        if standardize:
            step = TransposedStandardization(transposed.weight)
            nn.init.constant_(step.gain, 2 * gain)  # type: ignore[arg-type]
            parametrize.register_parametrization(transposed, "weight", step)
        super().__init__(transposed)


def check_counts(counts: Tensor, in_channels: int) -> None:
    """Raises a `ValueError` where a time step is not [B, in_channels, H, W]."""
    if counts.dim() != 4 or counts.shape[1] != in_channels:
        raise ValueError(
            f"The network takes one time step of events, [batch, {in_channels}, height, width]; got a tensor of shape "
            f"{tuple(counts.shape)}. Call it once for each bin of a window."
        )


def pad_to_multiple(counts: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Adds empty pixels on all sides until height and width are multiples.

    Args:
        counts: Frames [B, C, H, W].
        multiple: What height and width shall be multiples of.

    Returns:
        The padded frames, and how many rows and columns were added before the first.
    """
    down, right = (-side % multiple for side in counts.shape[2:])
    top, left = down // 2, right // 2
    if down or right:
        counts = functional.pad(counts, (left, right - left, top, down - top))
    return counts, (top, left)


def crop_flows(flows: Sequence[Tensor], size: Sequence[int], first: tuple[int, int], multiple: int) -> list[Tensor]:
    """Takes the padding of `pad_to_multiple` off flows of several scales.

    A coarse flow whose pixels do not begin where the frame begins is resampled, so that every result covers the frame
    and nothing else; its height and width are those of the frame divided by the scale, rounded up.

    Args:
        flows: Flows [B, 2, h, w] of the padded frame.
        size: Height and width of the frame without padding.
        first: Rows and columns that were added before the first.
        multiple: What the padded sides are multiples of.
    """
    height, width = size
    padded = [side + -side % multiple for side in size]
    if padded == [height, width]:
        return list(flows)
    top, left = first
    cropped = []
    for flow in flows:
        scale = padded[0] // flow.shape[2]
        if scale > 1:
            flow = functional.interpolate(flow, size=padded, mode="bilinear", align_corners=False)
        flow = flow[:, :, top : top + height, left : left + width]
        if scale > 1:
            flow = functional.adaptive_avg_pool2d(flow, (-(-height // scale), -(-width // scale)))
        cropped.append(flow)
    return cropped
