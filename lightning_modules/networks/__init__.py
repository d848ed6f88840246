"""Spiking networks whose ``forward`` is one time step: frame [B, C, H, W] to logits [B, classes] or optical flow."""

from lightning_modules.networks.conv import SpikingConvNet
from lightning_modules.networks.firenet import SpikingFireNet
from lightning_modules.networks.fsfn import FSFN
from lightning_modules.networks.mlp import SpikingMLP
from lightning_modules.networks.recurrent import RecurrentSNN
from lightning_modules.networks.resnet import SpikingResNet
from lightning_modules.networks.timescales import TimescaleSNN
from lightning_modules.networks.vgg import SpikingVGG

__all__ = [
    "FSFN",
    "RecurrentSNN",
    "SpikingConvNet",
    "SpikingFireNet",
    "SpikingMLP",
    "SpikingResNet",
    "SpikingVGG",
    "TimescaleSNN",
]
