"""A small network around a class of the catalogue, with its data and the way in which it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner

STEPS = 4


@dataclass
class Setup:
    """What a check runs.

    Attributes:
        net: The network.
        xs: Its input [time, batch, ...]; the batch is even, as two processes share it.
        drive: "state" takes and returns states at each step, "hidden" keeps them, "stream" takes whole sequences and
            is run by ``learner.stream``, "loop" takes whole sequences and loops itself.
        output: For "loop": the module whose outputs the loss of a step sees.
        extra: A further term of the loss, kept by the network as a running sum: added at each step where there is a
            backward pass at each step, else once, at the end.
    """

    net: nn.Module
    xs: Tensor
    drive: str = "state"
    output: str = ""
    extra: Callable[[nn.Module], Tensor] | None = None


def run(setup: Setup, called: Callable[..., Any], learner: STLLRLearner | None, xs: Tensor) -> Iterator[Any]:
    """The outputs of the steps, one by one; ``called`` is the network or what is wrapped around it."""
    if setup.drive == "stream" and learner is not None:
        yield from learner.stream(xs, model=called)
        return
    if setup.drive in ("stream", "loop"):
        whole = called(xs)
        whole = whole[0] if isinstance(whole, tuple) else whole
        yield from slices(whole, len(xs))
        return
    state = None
    for x in xs:
        if setup.drive == "state":
            output, state = called(x, state)
        else:
            output = called(x)
        yield output


def slices(whole: Any, steps: int) -> list[Any]:
    """What each step has of the outputs of a whole sequence; the membrane at its end belongs to no step."""
    parts = [value for value in tensors(whole) if value.dim() > 2]
    return [tuple(value[t] for value in parts) for t in range(steps)]


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, (tuple, list)) else []


def loss(output: Any, t: int) -> Tensor:
    """A smooth function of everything that a step gives out: a mean over the batch, another one at each step."""
    total = torch.zeros(())
    for i, value in enumerate(tensors(output)):
        flat = value.flatten(1)
        position = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype)
        target = torch.sin(0.7 * position + 2 * t + i)
        total = total + ((flat - target) ** 2).sum(1).mean() + torch.tanh((flat * target).sum(1)).mean()
    return total


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients of what is trained, by parameter name; zeros where there is none."""
    trained = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, each in the norm of what is expected. Nothing expected may be zero."""
    assert found.keys() == expected.keys() and found
    worst = 0.0
    for name, value in expected.items():
        norm = value.norm().item()
        assert norm > 1e-9, f"the gradient of {name} vanishes, which tests nothing"
        assert found[name].isfinite().all(), name
        worst = max(worst, (found[name] - value).norm().item() / norm)
    return worst
