"""Your own snnTorch network in a Lightning trainer: S-TLLR online, then plain backpropagation through time to compare.

    python examples/own_network.py

The network is any module whose forward is one time step, with neurons that keep their state (``init_hidden=True``).
Batches are (frames [batch, time, ...], lengths [batch], labels [batch]). Here they are random spikes whose rates
depend on the class.
"""

from functools import partial

import snntorch as snn
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import SpikingClassifier

CLASSES, INPUTS, STEPS = 5, 100, 40


def make_network():
    return nn.Sequential(
        nn.Linear(INPUTS, 64),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(64, CLASSES),
    )


def make_data(samples, seed):
    generator = torch.Generator().manual_seed(0)
    rates = 0.2 * torch.rand(CLASSES, INPUTS, generator=generator)  # the same classes in every part
    generator.manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    frames = torch.rand(samples, STEPS, INPUTS, generator=generator) < rates[labels].unsqueeze(1)
    return TensorDataset(frames.float(), torch.full((samples,), STEPS), labels)


def main(epochs=3):
    train = DataLoader(make_data(1000, seed=1), batch_size=50, shuffle=True)
    test = DataLoader(make_data(500, seed=2), batch_size=100)
    accuracies = {}
    for algorithm in ("stllr", "bptt"):
        seed_everything(0)
        task = SpikingClassifier(
            make_network(),
            num_classes=CLASSES,
            algorithm=algorithm,
            rule={"preset": "dvs_gesture", "alpha_post": -0.2},
            supervise_last=20,
            optimizer=partial(torch.optim.Adam, lr=2e-3),
        )
        trainer = Trainer(max_epochs=epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
        trainer.fit(task, train)
        accuracies[algorithm] = trainer.test(task, test)[0]["test_accuracy"]
    print("test accuracy:", ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items()))
    return accuracies


if __name__ == "__main__":
    main()
