"""Trains with checkpoints in mid-epoch, and is killed by itself or resumes. For test_resume.py."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 2))

from lightning_modules import ResumableLoader  # noqa: E402
from tests.lightning_modules.helpers import (  # noqa: E402
    make_batch,
    make_loader,
    make_network,
    make_task,
    make_trainer,
    weights,
)


class KillMyself(Callback):
    """The hard way, in the middle of a batch: no handler, no clean end."""

    def __init__(self, batch):
        self.batch = batch

    def on_after_backward(self, trainer, task):
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, loop="online", checkpoint=None, callbacks=(), epochs=3, every=1, workers=0, trainer=None, **options):
    """Four batches an epoch, in a random order, with dropout, Adam, and a schedule; returns task and trainer."""
    seed_everything(1 if checkpoint is None else 7, verbose=False)
    settings = {
        "optimizer": partial(torch.optim.Adam, lr=0.02),
        "lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.7),
    }
    task = make_task(make_network(seed=1, dropout=0.3), loop=loop, **{**settings, **options})
    data = ResumableLoader(TensorDataset(*make_batch(16, steps=4)), 4, shuffle=True, num_workers=workers)
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    trainer = make_trainer(
        enable_checkpointing=True, callbacks=[saver, *callbacks], **{"max_epochs": epochs, **(trainer or {})}
    )
    trainer.fit(task, data, make_loader(steps=4), ckpt_path=checkpoint)
    return task, trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")
    folder, loop, algorithm, workers, kill_at, checkpoint = sys.argv[1:]
    task, trainer = run(
        Path(folder),
        loop,
        checkpoint or None,
        [KillMyself(int(kill_at))] if kill_at else [],
        algorithm=algorithm,
        workers=int(workers),
        every=2,
    )
    torch.save((weights(task), trainer.global_step), Path(folder) / "final.pt")
