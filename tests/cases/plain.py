"""Networks without a learner, run one step at a time with every state detached between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.cases.modules import CaseNet
from tests.oracles.spec import SNNTORCH

Loss = Callable[[Mapping[str, Tensor], int], Tensor]
STATES = ("mem", "syn", "spk", "mem_prev")


def detached(state: Any) -> Any:
    """The same nest of states, off the graph."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: detached(value) for key, value in state.items()}
    if isinstance(state, tuple):
        items = [detached(item) for item in state]
        return type(state)(*items) if hasattr(state, "_fields") else tuple(items)
    return state


def detach_hidden(model: nn.Module) -> None:
    """The same for states that live in the modules."""
    for module in model.modules():
        for name in STATES:
            if isinstance(getattr(module, name, None), Tensor):
                setattr(module, name, getattr(module, name).detach())


class _Remembering:
    """The membrane of a StateLeaky, which forgets between calls, with the decayed membrane of the call before."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: Tensor | float = 0.0

    def __call__(self, current: Tensor) -> Tensor:
        mem = current + torch.exp(-1 / self.module.tau) * self.before
        self.before = mem.detach()
        return mem


def run_detached(model: CaseNet, xs: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Plain autograd within each step; gradients accumulate in ``.grad``."""
    for module in model.modules():
        if hasattr(module, "_base_state_function") and hasattr(module, "tau"):
            module._base_state_function = _Remembering(module)
    state: Any = None
    record: dict[str, list[Tensor]] = {}
    for t, x in enumerate(xs):
        outputs, state = model(x, state)
        loss(outputs, t).backward()
        state = detached(state)
        detach_hidden(model)
        for name, value in outputs.items():
            record.setdefault(name, []).append(value.detach())
    return {name: torch.stack(values) for name, values in record.items()}


def run_detached_late(model: CaseNet, xs: Tensor, loss: Loss) -> dict[str, Tensor]:
    """The same where neurons act on the input of the step before: that input's current stays in the graph."""
    late = [node.name for node in model.net.nodes if node.is_late]
    before: Any = None  # the state that the step before started with
    record: dict[str, list[Tensor]] = {}
    for t, x in enumerate(xs):
        state: Any = None
        if t > 0:
            _, reached = model(xs[t - 1], before)
            state = detached(reached) | {name: detached(reached[name])._replace(i=reached[name].i) for name in late}
        outputs, _ = model(x, state)
        loss(outputs, t).backward()
        before = detached(state)
        for name, value in outputs.items():
            record.setdefault(name, []).append(value.detach())
    return {name: torch.stack(values) for name, values in record.items()}


class _WithTrace:
    """Forward hook: the output stays the same, but the weight's gradient sees the trace of the input.

    out = f(x; W detached, b) + f(trace; W, b detached) - (the same, detached)
    """

    def __init__(self, decay: float, clock: list[int]) -> None:
        self.decay, self.clock = decay, clock
        self.trace: Tensor | None = None
        self.last = -1
        self.inside = False

    def advance(self, x: Tensor) -> Tensor:
        if self.last != self.clock[0]:  # a recurrent synapse may run twice in one step
            self.trace = x.detach() if self.trace is None else self.decay * self.trace + x.detach()
            self.last = self.clock[0]
        assert self.trace is not None
        return self.trace

    def __call__(self, module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor | None:
        if self.inside:
            return None
        weight = "V" if hasattr(module, "V") else "weight"
        trace = self.advance(args[0])
        bias = {} if getattr(module, "bias", None) is None else {"bias": module.bias.detach()}
        self.inside = True
        now = functional_call(module, {weight: getattr(module, weight).detach()}, args)
        traced = functional_call(module, bias, (trace,))
        self.inside = False
        return now + traced - traced.detach()


@contextmanager
def ottt(model: CaseNet, decay: float) -> Iterator[list[int]]:
    """OTTT by plain autograd: within the block each synapse's weight meets the trace of its input.

    Yields a clock: its entry must be set to the number of the step before each step.
    """
    clock = [0]
    handles = []
    own: dict[int, _WithTrace] = {}
    # a readout that no neuron consumes has no trace
    consumed = {name for node in model.net.nodes if node.is_neuron for name in model.net.synapses_before(node)}
    for node in model.net.nodes:
        if "shares" in node.options:
            continue
        module = getattr(model, node.name)
        if node.name in consumed:
            handles.append(module.register_forward_hook(_WithTrace(decay, clock)))
        elif node.kind in SNNTORCH and hasattr(module, "recurrent"):
            handles.append(module.recurrent.register_forward_hook(_WithTrace(decay, clock)))
        for name in ("input_weights", "recurrent_weights"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                own[id(getattr(module, name))] = _WithTrace(decay, clock)
    linear = torch.nn.functional.linear

    def traced_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in own:
            return linear(x, weight, bias)
        traced = linear(own[id(weight)].advance(x), weight)
        return linear(x, weight.detach(), bias) + traced - traced.detach()

    try:
        with mock.patch.object(torch.nn.functional, "linear", traced_linear):
            yield clock
    finally:
        for handle in handles:
            handle.remove()
