"""``learner.online``: a backward pass at each step, for models whose loop over time is inside ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.network import Network
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.ways.within import (
    StepAction,
    checked_loss,
    refuse_disabled,
    refuse_no_function,
    refuse_several_processes,
)


@dataclass
class OnlineRun:
    """What happened within ``learner.online(...)``.

    Attributes:
        loss: Sum of the supervised steps' losses, detached; 0.0 before the first.
        supervised_steps: How many steps had a loss.
    """

    loss: Tensor | float = 0.0
    supervised_steps: int = 0


def run_online(
    network: Network,
    output: nn.Module,
    loss_fn: Callable[..., Tensor | None],
    num_steps: int | None,
    backward: Callable[[Tensor], Any] | None,
) -> AbstractContextManager[OnlineRun]:
    """Checks the arguments and returns the context manager of ``STLLRLearner.online``."""
    refuse_no_function(loss_fn, "loss_fn", "online()")
    if backward is not None:
        refuse_no_function(backward, "backward", "online()")
    supervision = network.session.supervision
    if num_steps is not None:
        network.begin_sequence(num_steps, None, keep_target=True)
    if supervision.last is not None and not supervision.length_known:
        raise StateError(
            f"online() cannot tell which are the last {supervision.last} steps (supervise_last) without the length of "
            "the sequence: pass num_steps to online(), to learner.reset() or to the learner."
        )
    refuse_several_processes("online()")
    refuse_disabled(network, "online()")
    return _online(network, output, loss_fn, backward)


@contextmanager
def _online(
    network: Network,
    output: nn.Module,
    loss_fn: Callable[..., Tensor | None],
    backward: Callable[[Tensor], Any] | None,
) -> Iterator[OnlineRun]:
    run = OnlineRun()

    def act(module: nn.Module, args: Any, result: Any) -> Any:
        session = network.session
        if not session.is_recording:
            return None
        items = result if isinstance(result, tuple) else (result,)
        if session.sequence.needs_graph(session.clock):
            loss = loss_fn(*items)
            if loss is not None:
                loss = checked_loss(loss, "online()")
                (torch.Tensor.backward if backward is None else backward)(loss)
                run.loss = run.loss + loss.detach()
                run.supervised_steps += 1
        return map_tensors(result, Tensor.detach)

    handle = output.register_forward_hook(StepAction(act))
    try:
        yield run
    finally:
        handle.remove()
    network.complete()
