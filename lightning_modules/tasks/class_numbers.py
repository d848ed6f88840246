"""Whether data, task and network agree on the number of classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_data(task: Any) -> None:
    """Compare the task's ``num_classes`` with that of the trainer's data module, if it has one.

    Raises:
        ValueError: If the data have more classes than the task.
    """
    data = getattr(getattr(task, "_trainer", None), "datamodule", None)
    known = getattr(data, "num_classes", None)
    if isinstance(known, int) and known > task.num_classes:
        raise ValueError(
            f"{type(data).__name__} has {known} classes, but model.num_classes is {task.num_classes}. Give both "
            f"{known}: model.num_classes, and the network's num_classes."
        )


def check_outputs(task: Any, logits: Tensor) -> None:
    """Compare the task's ``num_classes`` with what the network puts out, [B, num_classes].

    Raises:
        ValueError: If they differ.
    """
    if logits.dim() < 2 or logits.shape[1] != task.num_classes:
        raise ValueError(
            f"The network's output has the shape {tuple(logits.shape)}, but model.num_classes is {task.num_classes}: "
            f"[batch, {task.num_classes}] is expected. Give the network the same num_classes as the task."
        )
