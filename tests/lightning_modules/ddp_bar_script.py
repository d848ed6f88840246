"""Trains in 2 processes with a progress bar and every callback of ours; saves what was logged. For test_ddp_order.py.

Lightning starts the second process, or torchrun does where there are two nodes.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 2))

from lightning_modules import FlowPictures, FlowTable, OpticalFlowEstimator, SpikingFireNet, callbacks  # noqa: E402
from lightning_modules.data.flow import LaneDataset, LaneSampler  # noqa: E402
from lightning_modules.flow import ContrastMaximisationLoss  # noqa: E402
from lightning_modules.tasks.states import reset_states  # noqa: E402
from tests.lightning_modules.flow.recordings import RandomRecording  # noqa: E402
from tests.lightning_modules.helpers import SGD, make_batch, make_network, make_task  # noqa: E402


class ReadsOnTheFirst(Callback):
    """What a user may write: looks at the metrics of an epoch, on the first process alone."""

    def on_train_epoch_end(self, trainer, task):
        if trainer.is_global_zero:
            assert all(float(value) == float(value) for value in trainer.callback_metrics.values())


class LogsAndReduces(Callback):
    """Logs in an epoch's end, and exchanges something of its own there."""

    def __init__(self, name):
        self.name = name

    def on_train_epoch_end(self, trainer, task):
        task.log(f"own/{self.name}", float(trainer.global_rank), sync_dist=True, reduce_fx="sum")
        assert float(trainer.strategy.reduce(torch.tensor(5.0), reduce_op="sum")) == 10


class LateMetric(Callback):
    """A metric of single steps that begins in the second epoch, behind those of the first epoch's end."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.current_epoch:
            task.log("late", 7.0, on_step=False, on_epoch=True, sync_dist=True)


class Plain(LightningModule):
    """Not a task of ours."""

    def __init__(self):
        super().__init__()
        self.net = make_network()

    def training_step(self, batch, batch_idx):
        reset_states(self.net)
        loss = self.net(batch[0][:, 0]).square().mean()
        self.log("train_loss", loss.detach(), on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ours():
    """Every callback of ours but the two for optical flow."""
    return [
        callbacks.AttachmentReport(),
        callbacks.EdgeNorms(every_n_steps=1),
        callbacks.FiringRates(),
        callbacks.History(),
        callbacks.PeakMemory(),
        callbacks.ResumeRandomness(),
        callbacks.SequencePictures(),
        callbacks.Throughput(),
    ]


class HalfKnown(RandomRecording):
    """Every second recording has true flow; with two processes all of these lie with the first."""

    def read(self, index):
        data = super().read(index)
        return data if self._number % 2 == 0 else replace(data, flow=None)


def classes(rank, processes):
    data = TensorDataset(*make_batch(16, steps=4, lengths=[4, 3] * 8))
    return DataLoader(data, 4, sampler=DistributedSampler(data, processes, rank, shuffle=False))


def same(batch):
    return batch


def lanes(rank, processes):
    data = LaneDataset([HalfKnown(n) for n in range(4)], lanes=2, windows_per_batch=2, bins=3, events=True)
    return DataLoader(
        data, None, sampler=LaneSampler(data, shuffle=False, world_size=processes, rank=rank), collate_fn=same
    )


def jobs(rank, processes, folder):
    """Task, loader, callbacks, bar."""
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="val_loss", save_last=True)
    late = [LogsAndReduces("a"), ReadsOnTheFirst(), LogsAndReduces("b"), LateMetric()]
    yield make_task(), classes(rank, processes), [*ours(), checkpoint, EarlyStopping("val_loss")], RichProgressBar()
    yield make_task(algorithm="bptt"), classes(rank, processes), [], TQDMProgressBar()
    yield make_task(update_every=2), classes(rank, processes), [*late, *ours()], RichProgressBar()
    yield Plain(), classes(rank, processes), [callbacks.FiringRates(), *ours()[3:6]], RichProgressBar()
    yield make_task(window=2), classes(rank, processes), [callbacks.SequencePictures()], RichProgressBar()
    torch.manual_seed(0)
    flow = OpticalFlowEstimator(SpikingFireNet(channels=4, blocks=1), ContrastMaximisationLoss(), optimizer=SGD)
    yield flow, lanes(rank, processes), [FlowPictures(), FlowTable(), *ours()], RichProgressBar()


def run(processes, nodes, output, wanted):
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    logged = []
    for number, (task, loader, extra, bar) in enumerate(jobs(rank, processes, Path(f"{output}.logs"))):
        if number not in wanted:
            continue
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            devices=processes // nodes,
            num_nodes=nodes,
            strategy="ddp",
            use_distributed_sampler=False,
            logger=CSVLogger(f"{output}.logs", name=str(number)),
            enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in extra),
            callbacks=[bar, *extra],  # where Lightning puts its own bar: before those that a task brings
        )
        trainer.fit(task, loader, None if isinstance(task, Plain) else loader)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if isinstance(task, OpticalFlowEstimator):
            (tested,) = trainer.test(task, loader, verbose=False)
            metrics |= tested
        logged.append(metrics)
        rank = trainer.global_rank
    torch.save(logged, f"{output}.{rank}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [int(number) for number in sys.argv[4].split(",")])
