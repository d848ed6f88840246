"""Synapses: each call runs on a weight that is out of the graph, and its output is tagged with what the rule needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stllr_plugin.errors import StateError
from stllr_plugin.graft import GatedInput, InputGate, SynapseCall, Tag, records_behind
from stllr_plugin.hooks import Hook, eager, refuse_recomputation
from stllr_plugin.rule import STLLRRule
from stllr_plugin.synapses import Synapse, Term, linear_weight_gradients
from stllr_plugin.traces import full_precision

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class SynapseSite:
    """A synapse of the attached model: one weight, and its calls.

    Attributes:
        name: Module name (of a neuron's own weight: ``"<neuron>.<weight name>"``).
        learner: The learner.
        rule: Rule chosen for this synapse by name, or None to use the rule of the neuron that it feeds.
        last_call: The latest call of this sequence.
        owned: Whether a neuron module holds the weight itself.
        probes: How many more backward passes are looked at for a current that skips the neuron.
    """

    owned: ClassVar[bool] = False

    def __init__(self, learner: STLLRLearner, name: str, rule: STLLRRule | None) -> None:
        """See the class."""
        self.learner = learner
        self.name = name
        self.rule = rule
        self._is_readout = False  # known two steps after the first call
        self._gate: InputGate | None = None
        self.probes = 3
        self.begin()

    def begin(self) -> None:
        """Begins a sequence."""
        self._gate = None
        self.last_call: SynapseCall | None = None
        self._first_call: SynapseCall | None = None
        self._first_clock: int | None = None

    def refuse_past_through_parameters(self) -> None:
        """Raises StateError: cutting the input off would also cut off the parameters of a layer in between."""
        raise StateError(
            f"The input of synapse {self.name!r} is made from outputs of an earlier step by a layer with parameters. "
            "Nothing may flow between time steps: detach what you carry over (spikes.detach()) before that layer."
        )

    def probe(self, call: SynapseCall, grad: Tensor) -> None:
        """Refuses an output that reaches the loss past the neuron that it feeds as well.

        The rule holds for what goes through the neuron. The rest would need its ordinary gradient, but comes in one sum
        with it. How a network is wired shows in its first backward passes.

        Raises:
            StateError: If not all of the gradient comes from neurons.
        """
        self.probes -= 1
        expected, call.expected = call.expected, None
        rest = grad if expected is None else grad - expected.to(grad.dtype)
        largest = grad.abs().max() if expected is None else torch.maximum(grad.abs().max(), expected.abs().max())
        tolerance = 1e-4 if grad.dtype in (torch.float32, torch.float64) else 0.05
        if bool(rest.abs().max() > tolerance * largest):
            raise StateError(
                f"The output of synapse {self.name!r} feeds {' and '.join(map(repr, call.consumers))}, and it reaches "
                "the loss past the neuron as well (a current that skips it, a gate, a penalty). Its weight would lose "
                "that part. Call the layer a second time for what does not go into the neuron, or name it in "
                "exclude=[...]."
            )

    def step(self) -> int:
        """Index of the time step that runs.

        The clock shows the step of the last neuron that ran, which is the step before for a synapse that runs first.
        """
        clock = self.learner.supervision.clock
        return clock + 1 if self._first_clock == -1 else clock

    def current_weight(self) -> Tensor:
        """The weight as it is now, within the graph of its originals."""
        raise NotImplementedError

    def tag(
        self,
        x: Tensor,
        output: Tensor,
        weight: Tensor | None,
        bias: Tensor | None = None,
        anchor: Tensor | None = None,
    ) -> Tensor:
        """Marks the output of one call; the output of a readout at a step that is not supervised leaves the graph.

        Args:
            x: The input.
            output: The output.
            weight: The weight; None where nothing is to be learned.
            bias: The bias, where its gradient is not left to the module.
            anchor: In place of a weight that is None: a parameter, so that the mark is in a graph, where neurons look.
        """
        learner = self.learner
        first = self._first_clock is None
        if first:
            self._first_clock = learner.supervision.clock
        step = self.step()
        if self._first_call is not None and (self._first_call.consumed or step >= self._first_call.step + 2):
            self._is_readout = not self._first_call.consumed  # that step has ended: no neuron will consume the call
            self._first_call = None
        if self._is_readout and not learner.supervision.needs_graph(step):
            return output.detach()
        gate, self._gate = self._gate, None
        call = SynapseCall(self, x.detach(), x._version, weight, learner.next_order(), output.shape, step, gate)
        if first:
            self._first_call = call
        self.last_call = call
        return Tag.apply(call, output, anchor if weight is None else weight, bias)  # type: ignore[no-any-return]

    def weight_gradient(self, call: SynapseCall, terms: Sequence[Term]) -> Tensor:
        """Gradient of the weight, summed over pairs of an input (or its trace) and an output gradient.

        Computed in at least float32.

        Raises:
            StateError: If the input was changed in place since the call.
        """
        self.check_input(call)
        return self.product(call.trained_weight().detach(), terms)

    def check_input(self, call: SynapseCall) -> None:
        """Raises StateError if the input of a call was changed in place since."""
        if call.x._version != call.version:
            raise StateError(changed_in_place(repr(self.name)))

    def product(self, weight: Tensor, terms: Sequence[Term]) -> Tensor:
        """The gradient, of the shape and dtype of the weight."""
        dtype = self.learner.product_dtype
        if dtype is None:
            dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        terms = [(x.to(dtype), g.to(dtype)) for x, g in terms]
        return self._weight_gradient(terms, weight.to(dtype)).to(weight.dtype)

    def is_batched(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the first dimension of an input is a batch."""
        return x.dim() > 1

    def _weight_gradient(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        raise NotImplementedError

    def bias_gradient(self, g: Tensor) -> Tensor:
        """Gradient of the module's bias for an output gradient, where that is not left to the module."""
        raise NotImplementedError


class OwnWeightSite(SynapseSite):
    """A weight that a neuron module holds itself and uses through ``linear`` (Norse's recurrent cells)."""

    owned: ClassVar[bool] = True

    def __init__(self, learner: STLLRLearner, neuron: str, weight_name: str, rule: STLLRRule | None) -> None:
        """See the class."""
        super().__init__(learner, f"{neuron}.{weight_name}", rule)
        self.weight_name = weight_name

    def current_weight(self) -> Tensor:
        """See the base class; a neuron's own weight is always known."""
        raise AssertionError("the call of a neuron's own weight comes with it")

    def _weight_gradient(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        return linear_weight_gradients(terms)


@dataclass(slots=True)
class _OpenCall:
    """What the hook before a synapse's forward leaves for the one after it.

    Attributes:
        weight: The weight within the graph of its originals; None where it is not needed.
        parameters: Those that were taken out of the graph.
        bias: The bias, where it was taken out as well.
        placed: What stands in for a weight that is no parameter.
        cache: Keeps torch from computing a parametrized weight once more in the call.
    """

    weight: Tensor | None
    parameters: list[nn.Parameter]
    bias: nn.Parameter | None = None
    placed: Tensor | None = None
    cache: AbstractContextManager[Any] | None = None


class ModuleSite(SynapseSite):
    """A synapse that is a module: Linear, a convolution, or a registered type."""

    def __init__(
        self, learner: STLLRLearner, name: str, module: nn.Module, synapse: Synapse, rule: STLLRRule | None
    ) -> None:
        """See the class."""
        self._open: list[_OpenCall | None] = []
        super().__init__(learner, name, rule)
        self.module = module
        self.synapse = synapse

    def attach(self) -> list[Any]:
        """Registers the hooks; returns their handles. Hooks of the user that change outputs run after ours."""
        after = _AfterSynapse(self)
        return [
            self.module.register_forward_pre_hook(_BeforeSynapse(self), with_kwargs=True),
            self.module.register_forward_hook(after, with_kwargs=True, always_call=True, prepend=True),
        ]

    def _weight_gradient(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        return self.synapse.weight_gradients(self.module, terms, weight)

    def is_batched(self, x: Tensor, weight: Tensor) -> bool:
        """See the base class."""
        return self.synapse.is_batched(x, weight)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """See the base class; summed in at least float32."""
        bias = self.module._parameters["bias"]
        assert bias is not None
        return self.synapse.bias_gradient(self.module, full_precision(g)).to(bias.dtype)

    def begin(self) -> None:
        """See the base class."""
        super().begin()
        self._recover()

    def _recover(self) -> None:
        """Gives back the weight of a call that was cut off where torch runs no more hooks (Ctrl-C)."""
        for stale in self._open:
            if stale is not None:
                self._give_back(stale)
        self._open.clear()

    def _give_back(self, opened: _OpenCall) -> bool:
        """Puts the weight back into the graph; returns whether the call used what stood in for it."""
        for parameter in opened.parameters:
            parameter.requires_grad_(True)
        if opened.bias is not None:
            opened.bias.requires_grad_(True)
        if opened.cache is not None:
            opened.cache.__exit__(None, None, None)
        name = self.synapse.weight_name
        used = self.module.__dict__.get(name)
        if used is not None:
            self.module.__dict__[name] = opened.weight
        return used is opened.placed

    def current_weight(self) -> Tensor:
        """See the base class."""
        weight: Tensor = getattr(self.module, self.synapse.weight_name)
        return weight

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Takes the weight out of the graph for the call that follows; returns other arguments if need be."""
        self._recover()
        parameters = self.synapse.trainable(self.module) if self.learner.is_recording else []
        if not parameters:
            self._open.append(None)
            return None
        refuse_recomputation(self.name)
        name = self.synapse.weight_name
        opened = _OpenCall(None, parameters)
        if not parametrize.is_parametrized(self.module, name):
            weight = opened.weight = getattr(self.module, name)
            if name in self.module.__dict__:  # a hook that ran before has computed it: torch's pruning, old-style norms
                opened.placed = self.module.__dict__[name] = weight.detach()
        elif self.learner.supervision.needs_graph(max(self.step(), 0)):
            # Computed here within the graph of its originals, which the gradient then flows on to. The call uses it,
            # detached, so that it is computed once. A step without a loss needs no graph and computes it by itself.
            opened.cache = parametrize.cached()
            opened.cache.__enter__()
            opened.weight = getattr(self.module, name)
            parametrize._cache[id(self.module), name] = opened.weight.detach()
        for parameter in parameters:
            parameter.requires_grad_(False)
        bias = self.module._parameters.get("bias") if self.synapse.sums_bias else None
        if bias is not None and bias.requires_grad:
            bias.requires_grad_(False)
            opened.bias = bias
        self._open.append(opened)
        return self._without_past(args, kwargs)

    def _without_past(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts an input that comes from an earlier step (a recurrence of the user's own) off the graph."""
        x = args[0] if args else kwargs[self.synapse.input_name]
        if not isinstance(x, Tensor) or x.grad_fn is None or self.learner.window is not None:
            return None
        records, parameters = records_behind(x.grad_fn)
        steps = {record.step for record in records}
        clock = self.learner.supervision.clock
        if not steps or (min(steps) == clock and self._first_clock != -1):
            return None
        if max(steps) < clock or all(record.used for record in records):
            if parameters:
                self.refuse_past_through_parameters()
            x = x.detach()
        elif min(steps) < clock:
            raise StateError(
                f"The input of synapse {self.name!r} joins outputs of this time step with some of an earlier one that "
                "still have their graph. Nothing may flow between time steps: detach what you carry over "
                "(spikes.detach()); if you sum or average over time, apply the layer at each step and sum its "
                "outputs, or "
                f"leave it to ordinary gradients with exclude=[{self.name!r}]."
            )
        else:  # a synapse that runs before the first neuron: only the neuron that it feeds can tell which step this is
            self._gate = InputGate(min(steps), parameters)
            x = GatedInput.apply(self._gate, x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, self.synapse.input_name: x})

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Gives the weight back and marks the output; also runs when the forward pass raised."""
        opened = self._open.pop() if self._open else None
        if opened is None:
            return None
        untouched = self._give_back(opened)
        if not isinstance(output, Tensor):
            return None
        if not untouched:
            raise StateError(
                f"The weight of synapse {self.name!r} was computed anew after the learner had taken it out of the "
                "graph: pruning or an old-style norm was applied after attaching. Apply it first, then attach."
            )
        x = args[0] if args else kwargs[self.synapse.input_name]
        return self.tag(x, output, opened.weight, opened.bias, opened.parameters[0])


def changed_in_place(name: str) -> str:
    """Message of the error where an input was changed between forward and backward pass."""
    return (
        f"The input of synapse {name} was changed in place between its forward and the backward pass. Use the "
        "out-of-place operation (y = y * mask, not y *= mask), or pass x.clone() to the layer."
    )


class _BeforeSynapse(Hook):
    def __init__(self, site: ModuleSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.site.before(args, kwargs)


class _AfterSynapse(Hook):
    refuses = False

    def __init__(self, site: ModuleSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        return self.site.after(args, kwargs, output)
