"""Tiny random data and quiet trainers for the tests of the Lightning modules."""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import SpikingClassifier, SpikingConvNet

CLASSES = 4
SIZE = 14
SGD = partial(torch.optim.SGD, lr=0.3)


def make_batch(samples=8, steps=6, lengths=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.rand(samples, steps, 2, SIZE, SIZE, generator=generator) < 0.2).float()
    lengths = torch.full((samples,), steps) if lengths is None else torch.as_tensor(lengths)
    return frames, lengths, torch.arange(samples) % CLASSES


def make_loader(samples=8, batch_size=4, **options):
    return DataLoader(TensorDataset(*make_batch(samples, **options)), batch_size)


def make_network(seed=0, **options):
    seed_everything(seed, verbose=False)
    settings = {"size": SIZE, "channels": (4, 6), "kernel_size": 3, "num_classes": CLASSES, "gain": 1.5}
    return SpikingConvNet(**{**settings, **options})


def make_task(network=None, **options):
    settings = {"optimizer": SGD, "num_classes": CLASSES}
    return SpikingClassifier(make_network() if network is None else network, **{**settings, **options})


def make_trainer(**options):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**settings, **options})


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
