"""``learner.two_pass``: exact gradients at constant memory for losses that are not sums over time steps.

The first pass leaves no graph of the network. The outputs of the named modules are leaves in it, from which the loss is
made, and so are all parameters that the loss uses itself. The second pass runs the same steps again and delivers to
each what the loss had to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.weak import TensorWeakRef

from stllr_plugin.errors import StateError
from stllr_plugin.network import Network
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.ways.snapshot import Snapshot
from stllr_plugin.ways.within import (
    StepAction,
    refuse_disabled,
    refuse_no_function,
    refuse_no_value,
    refuse_several_processes,
)


def run_two_pass(
    network: Network, outputs: Sequence[nn.Module], loss_fn: Callable[[Any], Tensor], forward: Callable[[], Any]
) -> Tensor:
    """See ``STLLRLearner.two_pass``."""
    refuse_no_function(loss_fn, "loss_fn", "two_pass()")
    refuse_no_function(forward, "forward", "two_pass()")
    refuse_several_processes("two_pass()")
    refuse_disabled(network, "two_pass()")
    start = Snapshot(network)
    first = _FirstPass(network, outputs)
    loss = first.run(loss_fn, forward)
    steps, others = first.wanted(loss)
    loss = loss.detach()  # and with it goes the graph of the first pass
    start.restore()
    supervision = network.session.supervision
    if supervision.last is not None and not supervision.length_known:
        supervision.begin(len(steps), None)  # the first pass has shown how long the sequence is
    _SecondPass(outputs, steps).run(forward)
    network.complete()
    for parameter, gradient in others:  # of parameters that the loss uses itself, such as a penalty on weights
        torch.autograd.backward([parameter], [gradient])
    return loss


@dataclass
class _Call:
    """One call of a named module in the first pass.

    Attributes:
        module: The module.
        inner: Its outputs within a state that it returns, of which those count that the caller keeps.
        leaves: Its outputs; None for those that nobody has kept.
        gradients: What the loss has to say of each; None for nothing.
    """

    module: nn.Module
    inner: dict[int, TensorWeakRef] = field(default_factory=dict)
    leaves: list[Tensor | None] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)

    def recall(self) -> None:
        """Brings back what is still there of the states."""
        for place, reference in self.inner.items():
            self.leaves[place] = reference()


class _Witness(Function):
    """Identity on an output of a module that is not named; shows whether the loss depends on it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, witness: Tensor) -> Tensor:
        """Returns the output."""
        ctx.like = witness
        return output.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """A zero: that it comes is what tells."""
        return None, torch.zeros_like(ctx.like)


class _FirstPass:
    """Runs the network without a graph, and finds what the loss depends on."""

    def __init__(self, network: Network, outputs: Sequence[nn.Module]) -> None:
        self.network = network
        self.outputs = outputs
        self.calls: list[_Call] = []
        self.witnesses: dict[str, Tensor] = {}

    def run(self, loss_fn: Callable[[Any], Tensor], forward: Callable[[], Any]) -> Tensor:
        """Returns the loss."""
        named = {id(module) for module in self.outputs}
        handles = [module.register_forward_hook(StepAction(self._record)) for module in self.outputs]
        handles += _without_graph(self.network, self.outputs)
        learning = [(neuron.name, neuron.module) for neuron in self.network.neurons]
        learning += [(name, module) for name, module, _ in self.network.plan.synapses]
        for name, module in learning:
            if id(module) not in named:
                handles.append(module.register_forward_hook(StepAction(self._observed(name))))
        self.network.session.enabled = False
        try:
            loss = loss_fn(forward())
        finally:
            for handle in handles:
                handle.remove()
            self.network.session.enabled = True
        refuse_no_value(loss, "two_pass()")
        return loss

    def _record(self, module: nn.Module, args: Any, result: Any) -> Any:
        call = _Call(module)
        self.calls.append(call)

        shown = result if isinstance(result, tuple) else (result,)
        outer = {id(item) for item in shown if isinstance(item, Tensor)}

        def leaf(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            made = tensor.detach().requires_grad_()
            if id(tensor) in outer:
                call.leaves.append(made)
            else:
                call.inner[len(call.leaves)] = TensorWeakRef(made)
                call.leaves.append(None)
            return made

        return map_tensors(result, leaf)

    def _observed(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def act(module: nn.Module, args: Any, result: Any) -> Any:
            if not torch.is_grad_enabled():
                return None  # within a module that runs without a graph as a whole

            def witnessed(tensor: Tensor) -> Tensor:
                if not tensor.is_floating_point() or tensor.requires_grad:
                    return tensor
                witness = self.witnesses.setdefault(name, torch.zeros((), device=tensor.device, requires_grad=True))
                return _Witness.apply(tensor, witness)  # type: ignore[no-any-return]

            return map_tensors(result, witnessed)

        return act

    def wanted(self, loss: Tensor) -> tuple[list[list[_Call]], list[tuple[Tensor, Tensor]]]:
        """The calls of each step, with their gradients; and other leaves that the loss uses, with theirs.

        Raises:
            StateError: If the loss depends on modules that were not named.
        """
        reached = _leaves(loss)
        names = [name for name, witness in self.witnesses.items() if id(witness) in reached]
        if names:
            raise StateError(
                f"two_pass: the loss depends on the outputs of {' and '.join(map(repr, names))} as well, whose part "
                "would be lost. Name all modules whose outputs the loss uses, as a list, or None for all neurons."
            )
        for call in self.calls:
            call.recall()
        own = {id(leaf) for call in self.calls for leaf in call.leaves if leaf is not None}
        if not own & reached.keys():
            kinds = ", ".join(type(module).__name__ for module in self.outputs)
            raise StateError(
                f"two_pass: the loss does not depend on the outputs of the given {kinds}. Pass the module whose "
                "outputs forward() returns, and return them from forward()."
            )
        leaves = list(reached.values())
        gradients = dict(zip(reached, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
        for call in self.calls:
            call.gradients = [gradients.get(id(leaf)) for leaf in call.leaves]
            call.leaves = [None if leaf is None else leaf.detach() for leaf in call.leaves]
        others = [(leaf, gradients[key]) for key, leaf in reached.items() if key not in own]
        return self._steps(), [(leaf, gradient) for leaf, gradient in others if gradient is not None]

    def _steps(self) -> list[list[_Call]]:
        """The calls by step: one begins where a module runs again."""
        steps: list[list[_Call]] = []
        for call in self.calls:
            if not steps or any(call.module is earlier.module for earlier in steps[-1]):
                steps.append([])
            steps[-1].append(call)
        order = [id(call.module) for call in steps[0]]
        if any([id(call.module) for call in step] != order for step in steps):
            raise StateError(
                "two_pass: the named modules do not run once each, in one order, at every time step. Name those only "
                "that do, or call backward at each step by yourself."
            )
        return steps


class _SecondPass:
    """Runs the steps again, each with its own backward pass."""

    def __init__(self, outputs: Sequence[nn.Module], steps: list[list[_Call]]) -> None:
        self.outputs = outputs
        self.calls = [(call, call is step[-1]) for step in steps for call in step]
        self.position = 0
        self._pending: list[tuple[Tensor, Tensor]] = []

    def run(self, forward: Callable[[], Any]) -> None:
        """See the class."""
        handles = [module.register_forward_hook(StepAction(self._deliver)) for module in self.outputs]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        if self.position != len(self.calls):
            raise StateError(
                f"two_pass: the second pass ran {self.position} steps, the first {len(self.calls)}. Both must do the "
                "same."
            )

    def _deliver(self, module: nn.Module, args: Any, result: Any) -> Any:
        call, last = self.calls[self.position] if self.position < len(self.calls) else (_Call(module), True)
        self.position += 1
        tensors: list[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                tensors.append(tensor)
            return tensor

        map_tensors(result, collect)
        same = call.module is module and len(tensors) == len(call.leaves) > 0
        if not same or any(
            value is not None and not torch.allclose(tensor, value, rtol=1e-4, atol=1e-5)
            for tensor, value in zip(tensors, call.leaves, strict=True)
        ):
            raise StateError(
                f"two_pass: the second pass differs from the first at step {self.position}. forward() must give the "
                "same outputs twice: draw random numbers from torch's generators only, and start the states within "
                "forward()."
            )
        wanted = zip(tensors, call.gradients, strict=True)
        self._pending += [(t, gradient) for t, gradient in wanted if gradient is not None and t.requires_grad]
        call.leaves, call.gradients = [], []
        if not last:
            return None  # the step goes on: what comes next may send a gradient back through this module
        pending, self._pending = self._pending, []
        if pending:
            torch.autograd.backward([tensor for tensor, _ in pending], [g for _, g in pending])
        return map_tensors(result, Tensor.detach)


def _leaves(loss: Tensor) -> dict[int, Tensor]:
    """The leaves that a loss was made from, by their ids."""
    found: dict[int, Tensor] = {}
    seen = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        stack += [following for following, _ in node.next_functions]
    return found


def _without_graph(network: Network, outputs: Sequence[nn.Module]) -> list[Any]:
    """Hooks that run every module but the containers of the outputs without gradients."""
    handles = []
    named = {id(module) for module in outputs}
    parents = {
        id(module) for module in network.model.modules() if any(id(child) in named for child in module.modules())
    }
    for module in network.model.modules():
        if id(module) in parents - named:
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
