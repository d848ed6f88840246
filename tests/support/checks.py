"""One check for each column of the support matrix. Each takes a function that builds a fresh, equal network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stllr_plugin import NotAttachedError, STLLRLearner, STLLRRule, remove_hooks
from stllr_plugin.neurons.base import map_tensors
from tests.support.setup import Setup, error, gradients, loss, run, tensors

Build = Callable[[torch.dtype], Setup]
RULE = STLLRRule(alpha_pre=1.0, lambda_pre=0.8, alpha_post=-0.3, lambda_post=0.5, psi="triangle")
# Without traces, and with the neuron's own derivative: the gradient of one step, states detached.
PLAIN = STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate")
TOLERANCE = 1e-8


def train_by_step(
    setup: Setup, called: Callable[..., Any], learner: STLLRLearner | None, xs: Tensor, watch: list[int] | None = None
) -> None:
    """A backward pass at each step; several processes exchange gradients at the last one only."""
    if setup.drive == "loop":
        assert learner is not None
        clock = iter(range(len(xs)))
        with learner.online(setup.output, lambda output, *states: loss(output, next(clock))):
            called(xs)
        return
    steps = iter(run(setup, called, learner, xs))
    for t in range(len(xs)):
        wrapped = isinstance(called, DistributedDataParallel) and t < len(xs) - 1
        with called.no_sync() if wrapped else nullcontext():  # type: ignore[attr-defined]
            term = loss(next(steps), t)
            if setup.extra is not None:
                term = term + setup.extra(setup.net)
            if watch is not None:
                watch.append(graph_size(term))
            term.backward()


def train_at_end(setup: Setup, called: Callable[..., Any], learner: STLLRLearner | None, xs: Tensor) -> None:
    """One backward pass of the summed loss."""
    total = torch.zeros(())
    for t, output in enumerate(run(setup, called, learner, xs)):
        total = total + loss(output, t)
    if setup.extra is not None:
        total = total + setup.extra(setup.net)
    total.backward()


def graph_size(value: Tensor) -> int:
    """Number of nodes of the autograd graph behind a value."""
    seen, todo = set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(seen)


def attached(build: Build, way: Callable[..., None] = train_by_step, rule: STLLRRule = RULE) -> dict[str, Tensor]:
    """The gradients of one sequence."""
    setup = build(torch.float64)
    with STLLRLearner(setup.net, rule=rule) as learner:
        way(setup, setup.net, learner, setup.xs)
    return gradients(setup.net)


def per_step(build: Build, tolerance: float = TOLERANCE) -> None:
    """The graph is that of one step, and does not grow; the gradient is that of one backward pass."""
    setup = build(torch.float64)
    sizes: list[int] = []
    with STLLRLearner(setup.net, rule=RULE) as learner:
        train_by_step(setup, setup.net, learner, setup.xs, sizes)
        assert len(set(sizes[1:])) < 2, f"nodes in the graph, by step: {sizes}"
    assert error(gradients(setup.net), attached(build, train_at_end)) < tolerance


def one_backward(build: Build, tolerance: float = TOLERANCE) -> None:
    """The gradient is that of a backward pass at each step, and not that of backpropagation through time."""
    found = attached(build, train_at_end)
    assert error(found, attached(build)) < tolerance
    setup = build(torch.float64)
    train_at_end(setup, setup.net, None, setup.xs)
    plain = gradients(setup.net)
    assert any((found[n] - plain[n]).norm() > 1e-3 * plain[n].norm() for n in found), "the learner changed nothing"


def plain_limit(build: Build, tolerance: float = TOLERANCE) -> None:
    """Without traces, and with the neuron's own derivative, it is autograd with states cut off between the steps."""
    found = attached(build, train_at_end, PLAIN)
    setup = build(torch.float64)
    total, state = torch.zeros(()), None
    for t, x in enumerate(setup.xs):
        if setup.drive == "state":
            output, state = setup.net(x, map_tensors(state, Tensor.detach))
        else:
            output = setup.net(x)
        total = total + loss(output, t)
        cut(setup.net)
    if setup.extra is not None:
        total = total + setup.extra(setup.net)
    total.backward()
    assert error(found, gradients(setup.net)) < tolerance


def cut(net: nn.Module) -> None:
    """Cuts the states that snnTorch's and SpikingJelly's modules keep off the graph."""
    for module in net.modules():
        for table in (module._buffers, getattr(module, "_memories", {})):
            for name, value in table.items():
                if isinstance(value, Tensor) and value.requires_grad:
                    table[name] = value.detach()


def same_as_twin(build: Build, twin: Build, tolerance: float = TOLERANCE) -> None:
    """Another network of the same parameters, without the class in question, has the same gradients."""
    found, expected = (list(attached(one).values()) for one in (build, twin))
    flat = {str(i): value.flatten() for i, value in enumerate(found)}
    assert error(flat, {str(i): value.flatten() for i, value in enumerate(expected)}) < tolerance


def ddp(build: Build, rank: int, world: int) -> float:
    """How far the gradient of two processes on half a batch each is from that of one on the whole batch."""
    setup = build(torch.float64)
    learner = STLLRLearner(setup.net, rule=RULE)
    rows = setup.xs.shape[1] // world
    xs = setup.xs[:, rank * rows : (rank + 1) * rows]
    wrapped = DistributedDataParallel(setup.net)
    train = train_at_end if setup.drive == "loop" else train_by_step
    train(setup, wrapped, learner, xs)
    whole = build(torch.float64)
    train(whole, whole.net, STLLRLearner(whole.net, rule=RULE), whole.xs)
    return error(gradients(setup.net), gradients(whole.net))


def autocast(build: Build, by_step: bool = True) -> None:
    """bfloat16 on the CPU: gradients and traces are finite and float32."""
    setup = build(torch.float32)
    with STLLRLearner(setup.net, rule=RULE) as learner:

        def called(*args: Any) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return setup.net(*args)

        train = train_by_step if by_step else train_at_end
        if setup.drive == "loop":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                train(setup, setup.net, learner, setup.xs)
        else:
            train(setup, called, learner, setup.xs)
        traces = tensors(list(learner.traces().values()))
        assert traces
        assert all(trace.dtype == torch.float32 and trace.isfinite().all() for trace in traces)
    for name, gradient in gradients(setup.net).items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), f"the gradient of {name} vanishes, which tests nothing"


def compiled(build: Build, tolerance: float = TOLERANCE, by_step: bool = True) -> None:
    """Compiled after attaching, it has the gradients of eager mode."""
    torch._dynamo.reset()
    setup = build(torch.float64)
    train = train_by_step if by_step else train_at_end
    with STLLRLearner(setup.net, rule=RULE) as learner:
        train(setup, torch.compile(setup.net, backend="aot_eager"), learner, setup.xs)
    assert error(gradients(setup.net), attached(build, train)) < tolerance


def deepcopied(build: Build) -> None:
    """A copy evaluates equally, refuses to train, and after ``remove_hooks`` trains like a copy never attached."""
    setup = build(torch.float64)
    learner = STLLRLearner(setup.net, rule=RULE)
    train_by_step(setup, setup.net, learner, setup.xs)
    learner.reset()
    setup.net.zero_grad()
    twin = copy.deepcopy(setup.net)
    refusing = copy.deepcopy(setup.net)
    with torch.no_grad():
        for one, other in zip(evaluate(setup, setup.net), evaluate(setup, copy.deepcopy(twin)), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(NotAttachedError, match="copy of a model that is attached"):
        train_at_end(setup, refusing, None, setup.xs)
    assert all(parameter.grad is None for parameter in refusing.parameters())
    assert remove_hooks(twin) > 0
    never = build(torch.float64)
    reference = copy.deepcopy(never.net)
    for net in (twin, reference):
        plain = Setup(net, setup.xs, setup.drive, setup.output, setup.extra)
        train_at_end(plain, net, None, setup.xs)
    assert error(gradients(twin), gradients(reference)) == 0.0


def evaluate(setup: Setup, net: nn.Module) -> Iterator[Tensor]:
    for output in run(setup, net, None, setup.xs):
        yield from tensors(output)
