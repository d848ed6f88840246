"""What the processes of a distributed run do together: how many there are, and exchanges that all enter in one order.

An exchange that only one process enters stops a run for ever, and two that are entered in different orders mix their
values up. Lightning reduces the metrics of an epoch when somebody first reads them, and a progress bar reads on the
first process alone. So whoever exchanges at the end of an epoch has the pending metrics reduced first, on all
processes: the functions here that take a trainer do so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")


def process_count() -> int:
    """Number of processes of this run; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process among all; 0 where nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def reduce_pending_metrics(trainer: Trainer) -> None:
    """Have every metric that was logged so far reduced now. All processes call this at the same place.

    Within an epoch there is nothing to do: then only metrics of single steps are read, and these are reduced when
    they are logged.
    """
    if process_count() > 1:
        _ = trainer.callback_metrics  # reading is what reduces


def over_processes(trainer: Trainer, value: Tensor, how: str = "sum") -> Tensor:
    """The sum, mean or maximum ("max") of a tensor over all processes, on each of them."""
    if process_count() == 1:
        return value
    reduce_pending_metrics(trainer)
    reduced: Tensor = trainer.strategy.reduce(value, reduce_op=how)
    return reduced


def from_all_processes(own: T) -> list[T]:
    """What each process gave, in the order of their ranks, on each of them. Anything that can be pickled."""
    everyone: list[Any] = [own] * process_count()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, own)
    return everyone


def log_folder(trainer: Trainer) -> str | None:
    """The folder of the logs, which the first process tells the others."""
    reduce_pending_metrics(trainer)
    return trainer.log_dir
