"""Constant memory where the user's script has no backward pass per step: ``online`` and ``two_pass``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import map_tensors, rebuilt
from stllr_plugin.snapshot import Snapshot

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


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
    learner: STLLRLearner,
    output: nn.Module,
    loss_fn: Callable[..., Tensor | None],
    num_steps: int | None,
    backward: Callable[[Tensor], Any] | None,
) -> AbstractContextManager[OnlineRun]:
    """Checks the arguments and returns the context manager of ``STLLRLearner.online``."""
    supervision = learner.supervision
    if num_steps is not None:
        learner.begin_sequence(num_steps, None, keep_target=True)
    if supervision.last is not None and supervision.num_steps is None and supervision.lengths is None:
        raise StateError(
            f"online() cannot tell which are the last {supervision.last} steps (supervise_last) without the length of "
            "the sequence: pass num_steps to online(), to learner.reset() or to the learner."
        )
    _refuse_several_processes(learner, "online()")
    _refuse_disabled(learner, "online()")
    return _online(learner, output, loss_fn, backward)


def _refuse_several_processes(learner: STLLRLearner, what: str) -> None:
    if learner.distributed:
        raise StateError(
            f"{what} runs backward passes inside the forward pass, where DistributedDataParallel does not average "
            "gradients. With several processes call loss.backward() at each step outside of forward, under no_sync() "
            "for all but the last."
        )


def _refuse_disabled(learner: STLLRLearner, what: str) -> None:
    if not learner.enabled:
        raise StateError(f"{what} trains with the rule, but the learner is disabled; call learner.enable() first.")


@contextmanager
def _online(
    learner: STLLRLearner,
    output: nn.Module,
    loss_fn: Callable[..., Tensor | None],
    backward: Callable[[Tensor], Any] | None,
) -> Iterator[OnlineRun]:
    run = OnlineRun()

    def act(module: nn.Module, args: Any, result: Any) -> Any:
        if not learner.is_recording:
            return None
        items = result if isinstance(result, tuple) else (result,)
        if learner.supervision.needs_graph(learner.supervision.clock):
            loss = loss_fn(*items)
            if loss is not None:
                (torch.Tensor.backward if backward is None else backward)(loss)
                run.loss = run.loss + loss.detach()
                run.supervised_steps += 1
        return map_tensors(result, Tensor.detach)

    handle = output.register_forward_hook(_StepAction(act))
    try:
        yield run
    finally:
        handle.remove()


class _StepAction(Hook):
    """Calls a function with (module, args, output); what it returns replaces the output."""

    refuses = False

    def __init__(self, act: Callable[[nn.Module, Any, Any], Any]) -> None:
        super().__init__("output")
        self.act = act

    @eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.act(module, args, output)


def run_two_pass(
    learner: STLLRLearner, output: nn.Module, loss_fn: Callable[[Any], Tensor], forward: Callable[[], Any]
) -> Tensor:
    """See ``STLLRLearner.two_pass``."""
    _refuse_several_processes(learner, "two_pass()")
    _refuse_disabled(learner, "two_pass()")
    start = Snapshot(learner)
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
    learner.disable()
    handles = [output.register_forward_hook(_StepAction(record)), *_without_graph(learner, output)]
    try:
        loss = loss_fn(forward())
    finally:
        for handle in handles:
            handle.remove()
        learner.enable()
    leaves = [leaf for step in records for _, leaf in step]
    if not leaves or not loss.requires_grad:
        raise StateError(
            f"two_pass: the loss does not depend on the outputs of the given {type(output).__name__}. Pass the module "
            "whose outputs forward() returns, and return them from forward()."
        )
    gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    targets = [[(place, leaf.detach(), next(gradients)) for place, leaf in step] for step in records]
    start.restore()
    supervision = learner.supervision
    if supervision.last is not None and supervision.num_steps is None and supervision.lengths is None:
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

    handle = output.register_forward_hook(_StepAction(deliver))
    try:
        forward()
    finally:
        handle.remove()
    if position != len(targets):
        raise StateError(
            f"two_pass: the second pass ran {position} steps, the first {len(targets)}. Both must do the same."
        )
    return loss.detach()


def _without_graph(learner: STLLRLearner, output: nn.Module) -> list[Any]:
    """Hooks that run every module but the containers of the output without gradients."""
    handles = []
    parents = {id(module) for module in learner.model.modules() if any(child is output for child in module.modules())}
    for module in learner.model.modules():
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
