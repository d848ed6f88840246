"""A task as small as can be whose batches are windows of recordings."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules.flow.batch import FlowBatch
from tests.lightning_modules.flow.scenes import random_window


class Network(nn.Module):
    def forward(self, counts):
        flow = torch.stack((counts.sum(1), -counts.sum(1)), dim=1)
        return [flow[..., ::2, ::2], flow]


class Task(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Network()
        self.weight = nn.Parameter(torch.zeros(()))

    def flows(self, batch):
        windows = []
        for w in range(batch.num_windows):
            for step in batch.window(w).counts.unbind(1):
                flows = self.network(step)
            windows.append(flows[-1])
        return torch.stack(windows, dim=1)

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.flows(batch)

    def test_step(self, batch, batch_idx):
        self.flows(batch)

    def predict_step(self, batch, batch_idx):
        return self.flows(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_batch(names=("one", "two/3"), new=(True, True), present=((1, 1), (1, 0)), seed=0):
    windows = [random_window(seed=seed + w, dtype=torch.float32) for w in range(2)]

    def joined(field):
        return torch.stack([getattr(window, field) for window in windows], dim=1)

    return FlowBatch(
        counts=joined("counts"),
        present=torch.tensor(present, dtype=torch.bool),
        new_recording=torch.tensor(new),
        events=joined("events"),
        event_mask=joined("event_mask"),
        flow=joined("flow"),
        valid=joined("valid"),
        names=list(names),
    )


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)
