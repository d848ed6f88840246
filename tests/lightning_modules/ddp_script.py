"""Trains two epochs for each of some jobs on 1 or 2 processes and saves the results. For test_ddp.py.

Lightning starts the second process, or torchrun does where there are two nodes.
"""

import json
import os
import sys

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DistributedSampler, TensorDataset

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 2))

from lightning_modules import OpticalFlowEstimator, ResumableLoader, SpikingFireNet, SpikingStepClassifier  # noqa: E402
from lightning_modules.data.flow import LaneDataset, LaneSampler  # noqa: E402
from lightning_modules.flow import EndpointErrorLoss  # noqa: E402
from tests.lightning_modules.flow.recordings import RandomRecording  # noqa: E402
from tests.lightning_modules.helpers import CLASSES, SGD, make_batch, make_network, make_task  # noqa: E402


class CountReductions(Callback):
    count = 0

    def on_train_start(self, trainer, task):
        if hasattr(trainer.strategy.model, "register_comm_hook"):
            trainer.strategy.model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.count += 1
        return allreduce_hook(None, bucket)


def step_labels(labels, lengths):
    """A label at each step but some, which are not the same number in each half of the batch."""
    steps = labels.unsqueeze(1).repeat(1, 5)
    steps[::4, 1:3] = -1
    return steps


def classifier_parts(settings, folder, by_step, processes, rank, accumulate):
    """Classification of sequences or of their steps, in batches of 8: task and loader."""
    network = make_network(readout="leaky", dropout=0.3 if folder else 0.0)
    frames, lengths, labels = make_batch(16, steps=5, lengths=[5, 4, 3, 5] * 4)
    if by_step:
        task = SpikingStepClassifier(network, CLASSES, optimizer=SGD, **settings)
        labels = step_labels(labels, lengths)
    else:
        task = make_task(network, **settings)
    data = TensorDataset(frames, lengths, labels)
    sampler = DistributedSampler(data, processes, rank, shuffle=False)
    return task, ResumableLoader(data, 8 // processes // accumulate, sampler=sampler)


def flow_parts(settings, processes, rank):
    """Optical flow on 4 lanes, of which each process plays its share: task and loader."""
    lengths = settings.pop("lengths")
    torch.manual_seed(0)
    network = SpikingFireNet(channels=4, blocks=1, flow_scale=1.0)
    task = OpticalFlowEstimator(network, EndpointErrorLoss(), optimizer=SGD, **settings)
    recordings = [RandomRecording(number, windows) for number, windows in enumerate(lengths)]
    data = LaneDataset(recordings, lanes=4 // processes, windows_per_batch=2, bins=3)
    sampler = LaneSampler(data, shuffle=False, world_size=processes, rank=rank)
    return task, ResumableLoader(data, batch_size=None, sampler=sampler, collate_fn=same)


def same(batch):
    return batch


def run(job, processes=1, nodes=1):
    """One job: results of this process.

    Args:
        job: Options of the task; and ``by_step``, ``accumulate``, ``folder`` (for checkpoints, with dropout),
            ``checkpoint``, and ``lengths`` of recordings for optical flow.
    """
    job = dict(job)
    accumulate, folder, checkpoint, by_step = (
        job.pop(name, default)
        for name, default in (("accumulate", 1), ("folder", None), ("checkpoint", None), ("by_step", False))
    )
    settings = {"gradient_clip": 1.0, **job}
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    if "lengths" in job:
        task, loader = flow_parts(settings, processes, rank)
    else:
        task, loader = classifier_parts(settings, folder, by_step, processes, rank, accumulate)
    reductions = CountReductions()
    callbacks = [reductions]
    if folder:
        torch.manual_seed(2 * rank + (checkpoint is not None))
        callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_epochs=2,
        enable_checkpointing=folder is not None,
        accelerator="cpu",
        devices=processes // nodes,
        num_nodes=nodes,
        accumulate_grad_batches=accumulate,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(task, loader, loader, ckpt_path=checkpoint)
    result = {
        "weights": task.network.state_dict(),
        "reductions": reductions.count,
        "steps": trainer.global_step,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    return result, trainer.global_rank


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs, processes, nodes, output = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    results, ranks = zip(*(run(job, processes, nodes) for job in jobs), strict=True)
    torch.save(list(results), f"{output}.{ranks[0]}")
