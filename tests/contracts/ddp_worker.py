"""What each of two processes does for ``test_ddp.py``: every scenario trains on its half of the batch.

The processes start once and run all scenarios in order; each leaves tensors, or the text of what it raised.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from stllr_plugin import STLLRLearner
from tests.contracts.networks import (
    RULE,
    Deep,
    Explicit,
    Hidden,
    LinearReadout,
    Looping,
    NorseCells,
    NorseRecurrent,
    adam,
    build,
    gradients,
    labels,
    spikes,
    values,
)

WORLD, T, SEQUENCES = 2, 5, 3
KINDS = {
    "hidden": Hidden,
    "explicit": Explicit,
    "norse-cells": NorseCells,
    "norse-recurrent": NorseRecurrent,
    "linear-readout": LinearReadout,
}
Found = dict[str, Tensor]


def wrap(net: nn.Module, **options: Any) -> DistributedDataParallel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers, which older scripts pass
        return DistributedDataParallel(net, **options)


def data(seed: int, rank: int | None) -> tuple[Tensor, Tensor]:
    """One batch; of it the rows of one process, or all of them."""
    rows = slice(None) if rank is None else slice(3 * rank, 3 * rank + 3)
    return spikes(T, seed=seed)[:, rows], labels(seed=seed)[rows]


def train_by_step(
    net: nn.Module, called: nn.Module, learner: STLLRLearner, rank: int | None, sync: str = "last", last: int = T
) -> None:
    """Way (b): a backward pass at each supervised step."""
    for seed in range(SEQUENCES):
        x, y = data(seed, rank)
        learner.zero_grad()
        state = None
        for t, step in enumerate(x):
            quiet = rank is not None and sync == "last" and t < T - 1
            with called.no_sync() if quiet else nullcontext():
                output, state = called(step, state)
                if t >= T - last:
                    cross_entropy(output, y).backward()
        if seed < SEQUENCES - 1:
            learner.step()


def train_at_end(called: nn.Module, learner: STLLRLearner, rank: int | None) -> None:
    """Way (a): the loop is inside forward, one backward pass."""
    for seed in range(SEQUENCES):
        x, y = data(seed, rank)
        learner.zero_grad()
        sum(cross_entropy(output, y) for output in called(x)).backward()
        if seed < SEQUENCES - 1:
            learner.step()


def result(net: nn.Module) -> Found:
    """The weights after two updates, and the gradient of a third sequence."""
    return {**{f"grad {n}": g for n, g in gradients(net).items()}, **values(net)}


def by_step(kind: str, rank: int | None, sync: str = "last", last: int = T, **wrapping: Any) -> Found:
    net = build(KINDS[kind])
    options = {"supervise_last": last, "num_steps": T} if last < T else {}
    learner = STLLRLearner(net, adam(net), rule=RULE, **options)
    train_by_step(net, net if rank is None else wrap(net, **wrapping), learner, rank, sync, last)
    return result(net)


def at_end(kind: str, rank: int | None, **wrapping: Any) -> Found:
    looping = Looping(build(KINDS[kind]))
    learner = STLLRLearner(looping, adam(looping), rule=RULE)
    train_at_end(looping if rank is None else wrap(looping, **wrapping), learner, rank)
    return result(looping.net)


def wrapped_first(rank: int | None, **wrapping: Any) -> Found:
    net = build(Hidden)
    called = net if rank is None else wrap(net, **wrapping)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    train_by_step(net, called, learner, rank, sync="every")
    return result(net)


class Parent(nn.Module):
    """As a LightningModule: the learner is attached to a part of what is wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build(Hidden)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.net(x, state)


def parent_wrapped(rank: int | None, **wrapping: Any) -> Found:
    parent = Parent()
    learner = STLLRLearner(parent.net, adam(parent.net), rule=RULE)
    train_by_step(parent, parent if rank is None else wrap(parent, **wrapping), learner, rank, sync="every")
    return result(parent.net)


def direct_feedback(rank: int | None, **options: Any) -> Found:
    """Without a feedback seed each process has a seed of its own, as for data augmentation; the matrices must agree."""
    net = build(Deep)
    torch.manual_seed(rank or 0)
    learner = STLLRLearner(net, adam(net), rule=RULE, learning_signal="dfa", **options)
    train_by_step(net, net if rank is None else wrap(net), learner, rank)
    return result(net)


def attach_to_wrapper(rank: int | None) -> Found:
    net = build(Hidden)
    STLLRLearner(net if rank is None else wrap(net), rule=RULE)
    return {}


def inside_forward(rank: int | None, call: str) -> Found:
    looping = Looping(build(Hidden))
    learner = STLLRLearner(looping, adam(looping), rule=RULE)
    x, y = data(0, rank)
    called = looping if rank is None else wrap(looping)
    if call == "online":
        with learner.online(looping.net, lambda output, _: cross_entropy(output, y)):
            called(x)
    else:
        learner.two_pass(looping.net, lambda outputs: cross_entropy(outputs.sum(0), y), lambda: called(x))
    return {}


def buffers_of_norm(rank: int | None) -> Found:
    """States are left out of the broadcast, everything else is not: process 1 gets process 0's running statistics."""
    net = nn.Sequential(*build(Hidden).children())
    net.add_module("norm", nn.BatchNorm1d(1))
    STLLRLearner(net, rule=RULE)
    called = net if rank is None else wrap(net)
    net.norm.running_mean.fill_(5.0 + (rank or 0))
    with torch.no_grad():
        for child in (net[1], net[3]):
            child.mem = torch.full((3, 1), float(rank or 0))
        called.require_forward_param_sync = True
        called._sync_buffers() if rank is not None else None
    return {"mean": net.norm.running_mean.clone()}


SCENARIOS: dict[str, Callable[[int | None], Found]] = {
    **{f"step by step, {kind}": lambda rank, kind=kind: by_step(kind, rank) for kind in KINDS},
    **{f"one backward, {kind}": lambda rank, kind=kind: at_end(kind, rank) for kind in KINDS},
    **{f"synced at every step, {kind}": lambda rank, kind=kind: by_step(kind, rank, "every") for kind in KINDS},
    **{f"last two steps, {kind}": lambda rank, kind=kind: by_step(kind, rank, last=2) for kind in KINDS},
    "bucket views": lambda rank: by_step("explicit", rank, gradient_as_bucket_view=True),
    "unused parameters looked for": lambda rank: by_step("norse-cells", rank, find_unused_parameters=True),
    "without buffer broadcast": lambda rank: by_step("hidden", rank, "every", broadcast_buffers=False),
    "wrapped first, without broadcast_buffers": lambda rank: wrapped_first(rank, broadcast_buffers=False),
    "wrapped first, without forward_sync_buffers": lambda rank: wrapped_first(rank, forward_sync_buffers=False),
    "parent wrapped, without forward_sync_buffers": lambda rank: parent_wrapped(rank, forward_sync_buffers=False),
    "dfa": lambda rank: direct_feedback(rank, feedback_seed=1),
    "dfa, another torch seed in each process": direct_feedback,
    "statistics of norm layers": buffers_of_norm,
    "refused: the wrapper": attach_to_wrapper,
    "refused: online": lambda rank: inside_forward(rank, "online"),
    "refused: two_pass": lambda rank: inside_forward(rank, "two_pass"),
    "corrupted: wrapped first": lambda rank: wrapped_first(rank),
    "corrupted: parent wrapped": lambda rank: parent_wrapped(rank),
}


def run(rank: int, folder: str) -> None:
    """Entry of each process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the results tell what went wrong
    init = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    results: dict[str, Found | str] = {}
    for name, scenario in SCENARIOS.items():
        try:
            results[name] = scenario(rank)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
            if isinstance(error, dist.DistBackendError):
                break
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
