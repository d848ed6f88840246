"""``learner.two_pass``: exact gradients at constant memory for losses that are not sums over time steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.network import Network
from stllr_plugin.neurons.base import map_tensors, rebuilt
from stllr_plugin.ways.snapshot import Snapshot
from stllr_plugin.ways.within import (
    StepAction,
    refuse_disabled,
    refuse_no_function,
    refuse_no_value,
    refuse_several_processes,
)


def run_two_pass(
    network: Network, output: nn.Module, loss_fn: Callable[[Any], Tensor], forward: Callable[[], Any]
) -> Tensor:
    """See ``STLLRLearner.two_pass``."""
    refuse_no_function(loss_fn, "loss_fn", "two_pass()")
    refuse_no_function(forward, "forward", "two_pass()")
    refuse_several_processes("two_pass()")
    refuse_disabled(network, "two_pass()")
    start = Snapshot(network)
    records: list[list[tuple[int, Tensor]]] = []

    def record(module: nn.Module, args: Any, result: Any) -> Any:
        items = list(result) if isinstance(result, tuple) else [result]
        step: list[tuple[int, Tensor]] = []
        for place, item in enumerate(items):
            if isinstance(item, Tensor) and item.is_floating_point():
                items[place] = leaf = item.detach().requires_grad_()
                step.append((place, leaf))
        records.append(step)
        return rebuilt(result, items)

    # First pass: the network leaves no graph; only what the caller's forward does with the outputs does.
    network.session.enabled = False
    handles = [output.register_forward_hook(StepAction(record)), *_without_graph(network, output)]
    try:
        loss = loss_fn(forward())
    finally:
        for handle in handles:
            handle.remove()
        network.session.enabled = True
    refuse_no_value(loss, "two_pass()")
    leaves = [leaf for step in records for _, leaf in step]
    if not leaves or not loss.requires_grad:
        raise StateError(
            f"two_pass: the loss does not depend on the outputs of the given {type(output).__name__}. Pass the module "
            "whose outputs forward() returns, and return them from forward()."
        )
    gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    targets = [[(place, leaf.detach(), next(gradients)) for place, leaf in step] for step in records]
    start.restore()
    supervision = network.session.supervision
    if supervision.last is not None and not supervision.length_known:
        supervision.begin(len(records), None)  # the first pass has shown how long the sequence is

    # Second pass: the same steps again, each with its own backward pass.
    position = 0

    def deliver(module: nn.Module, args: Any, result: Any) -> Any:
        nonlocal position
        items = result if isinstance(result, tuple) else (result,)
        step = targets[position] if position < len(targets) else []
        position += 1
        wanted = [(items[place], gradient) for place, value, gradient in step if gradient is not None]
        if not step or any(not torch.allclose(items[place], value, rtol=1e-4, atol=1e-5) for place, value, _ in step):
            raise StateError(
                f"two_pass: the second pass differs from the first at step {position}. forward() must give the same "
                "outputs twice: draw random numbers from torch's generators only, and start the states within "
                "forward()."
            )
        pairs = [(tensor, gradient) for tensor, gradient in wanted if tensor.requires_grad]
        if pairs:
            torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
        return map_tensors(result, Tensor.detach)

    handle = output.register_forward_hook(StepAction(deliver))
    try:
        forward()
    finally:
        handle.remove()
    if position != len(targets):
        raise StateError(
            f"two_pass: the second pass ran {position} steps, the first {len(targets)}. Both must do the same."
        )
    return loss.detach()


def _without_graph(network: Network, output: nn.Module) -> list[Any]:
    """Hooks that run every module but the containers of the output without gradients."""
    handles = []
    parents = {id(module) for module in network.model.modules() if any(child is output for child in module.modules())}
    for module in network.model.modules():
        if id(module) in parents and module is not output:
            continue
        stack: list[bool] = []

        def before(_: nn.Module, args: Any, stack: list[bool] = stack) -> None:
            stack.append(torch.is_grad_enabled())
            torch.set_grad_enabled(False)

        def after(_: nn.Module, args: Any, result: Any, stack: list[bool] = stack) -> None:
            torch.set_grad_enabled(stack.pop())

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, always_call=True, prepend=True))
    return handles
