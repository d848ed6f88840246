"""Synapses: each call runs on a weight that is out of the graph, and its output is tagged with what the rule needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.nn.utils import parametrize

from stllr_plugin.calls import GatedInput, InputGate, SynapseSite, UsesWeight
from stllr_plugin.errors import StateError
from stllr_plugin.hooks import Hook, eager, refuse_recomputation
from stllr_plugin.parametrized import ComputedWeight
from stllr_plugin.precision import full_precision
from stllr_plugin.products import Products
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session
from stllr_plugin.sites.repeated import RepeatedInput
from stllr_plugin.synapses import KnownForward, Synapse, Term
from stllr_plugin.unknown_spikes import WAY_OUT
from stllr_plugin.walk import records_behind


@dataclass(slots=True)
class _OpenCall:
    """What the hook before a synapse's forward leaves for the one after it.

    Attributes:
        weight: The weight within the graph of its originals; None where it is not needed.
        parameters: Those that were taken out of the graph.
        bias: The bias, where it was taken out as well.
        placed: What stands in for a weight that is no parameter.
        computed: What takes a parametrized weight out of the graph as it is computed.
        products: What finds the products in a forward that is not known.
    """

    weight: Tensor | None
    parameters: list[nn.Parameter]
    bias: nn.Parameter | None = None
    placed: Tensor | None = None
    computed: ComputedWeight | None = None
    products: Products | None = None


class ModuleSite(SynapseSite):
    """A synapse that is a module: Linear, a convolution, or a registered type."""

    def __init__(
        self, session: Session, name: str, module: nn.Module, synapse: Synapse, rule: STLLRRule | None
    ) -> None:
        """See the class."""
        self._open: list[_OpenCall | None] = []
        self._repeated = RepeatedInput(session, module)
        super().__init__(session, name, rule)
        self.module = module
        self.synapse = synapse
        self._known = KnownForward(module)
        self._after: _AfterSynapse | None = None
        self._own = False
        self._beside = False  # whether a graph with nothing of the learner's was behind the last input
        self._apart: Tensor | None = None  # an input that is made from nothing of the learner's

    @property
    def has_own_forward(self) -> bool:
        """Whether something else runs than the forward of its type alone: one of the user's, or a hook before ours.

        In a window, in which the learner itself may stand in for ``forward``, this is as it was before.
        """
        if self.session.window is None:
            hooks = self.module._forward_hooks
            first = not _global_forward_hooks and next(iter(hooks.values()), None) is self._after
            known = self._known.of(self.module, self._repeated.shortcut)
            self._own = not (known and (first or self._after is None))
        return self._own

    def attach(self) -> list[Any]:
        """Registers the hooks; returns their handles. Hooks of the user that change outputs run after ours."""
        after = self._after = _AfterSynapse(self)
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

    def detach(self) -> None:
        """Gives the module its own ``forward`` back."""
        self._recover()
        self._repeated.detach()
        self._after = None

    def begin(self) -> None:
        """See the base class."""
        super().begin()
        self.session.uncalled.add(self)
        self._recover()
        self._repeated.forget()

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
        if opened.computed is not None:
            opened.weight = opened.computed.release()
        if opened.products is not None:
            opened.products.end()
        name = self.synapse.weight_name
        used = self.module.__dict__.get(name)
        if used is not None:
            self.module.__dict__[name] = opened.weight
        return used is opened.placed

    @property
    def is_trained(self) -> bool:
        """See the base class."""
        return bool(self.synapse.trainable(self.module))

    def current_weight(self) -> Tensor:
        """See the base class."""
        weight: Tensor = getattr(self.module, self.synapse.weight_name)
        return weight

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Takes the weight out of the graph for the call that follows; returns other arguments if need be."""
        self._recover()
        self.session.uncalled.discard(self)
        recording = self.session.is_recording
        if recording:
            self.session.enter()
        if recording and self.has_own_forward and not self.stands_aside:
            return self._before_own_forward(args, kwargs)
        parameters = self.synapse.trainable(self.module) if recording else []
        if not parameters and not (recording and self.stands_aside):
            self._open.append(None)
            return None
        refuse_recomputation(self.name)
        changed = self._without_past(args, kwargs)
        if not self.stands_aside and self.session.window is None and changed is None:
            self._repeated.before(args[0] if args else kwargs.get(self.synapse.input_name))
        name = self.synapse.weight_name
        opened = _OpenCall(None, parameters)
        if not parametrize.is_parametrized(self.module, name):
            weight = opened.weight = getattr(self.module, name)
            if name in self.module.__dict__:  # a hook that ran before has computed it: torch's pruning, old-style norms
                opened.placed = self.module.__dict__[name] = weight.detach()
        elif self.session.needs_graph(max(self.step(), 0)):
            # It is computed within the graph of its originals, which the gradient then flows on to; the call uses it
            # detached. A step without a loss needs no graph.
            opened.computed = ComputedWeight(self.module, name)
        if opened.computed is None:
            for parameter in parameters:
                parameter.requires_grad_(False)
        sums_bias = self.synapse.sums_bias or self.stands_aside or self._repeated.is_known
        bias = self.module._parameters.get("bias") if sums_bias else None
        if bias is not None and bias.requires_grad:
            bias.requires_grad_(False)
            opened.bias = bias
        self._open.append(opened)
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in parameters):
            changed = self._weight_in_use(*((args, kwargs) if changed is None else changed), opened)
        return changed

    def _weight_in_use(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], opened: _OpenCall
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Where an optimizer steps in the backward pass: it must wait for the product that still needs the weight."""
        x = args[0] if args else kwargs[self.synapse.input_name]
        weight = opened.weight
        if weight is None or not x.requires_grad:
            return args, kwargs
        x = UsesWeight.apply(x, weight.requires_grad_(True))
        for parameter in opened.parameters:
            parameter.requires_grad_(False)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, self.synapse.input_name: x})

    def _before_own_forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begins to look for the products in a forward that is not known."""
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            self._open.append(None)
            return None
        refuse_recomputation(self.name)
        changed = self._without_past(args, kwargs)
        opened = _OpenCall(None, [], products=Products(self, (args, kwargs) if changed is None else changed))
        self._open.append(opened)
        assert opened.products is not None
        opened.products.begin()
        return changed

    def _without_past(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts an input that comes from an earlier step (a recurrence of the user's own) off the graph."""
        x = args[0] if args else kwargs.get(self.synapse.input_name)
        if isinstance(x, Tensor) and x.layout is not torch.strided:
            raise StateError(f"Synapse {self.name!r} received a sparse tensor; pass x.to_dense().")
        if not isinstance(x, Tensor) or self.session.window is not None:
            return None
        if x.grad_fn is None:
            self._apart = x
            return None
        behind = records_behind(x.grad_fn, self.session.weights, self._beside)
        self._beside = behind.marked
        if not behind.ours:
            self._apart = x
            return None
        records, parameters = behind.records, behind.parameters
        sequence, clock = self.session.sequence, self.session.clock
        steps = {r.span.step if r.span.sequence.number == sequence.number else -1 for r in records}
        if not steps or (min(steps) == clock and not self.runs_first):
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
                f"outputs, or leave it to ordinary gradients with exclude=[{self.name!r}]. {WAY_OUT}"
            )
        else:  # a synapse that runs before the first neuron: only the neuron that it feeds can tell which step this is
            self.gate = InputGate(min(steps), parameters)
            x = GatedInput.apply(self.gate, x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, self.synapse.input_name: x})

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Gives the weight back and marks the output; also runs when the forward pass raised."""
        opened = self._open.pop() if self._open else None
        if opened is None:
            return None
        untouched = self._give_back(opened)
        known, self._apart = self._apart, None
        if not isinstance(output, Tensor) or opened.products is not None:
            return None
        if not untouched:
            raise StateError(
                f"The weight of synapse {self.name!r} was computed anew after the learner had taken it out of the "
                "graph: pruning or an old-style norm was applied after attaching. Apply it first, then attach."
            )
        x = args[0] if args else kwargs[self.synapse.input_name]
        if self.stands_aside:
            self.passed = x
            return None
        if self.session.window is None:
            self._repeated.after(x, output)
        apart = known is x and not self._own  # else a forward of the user's may bring in something else
        return self.tag(x, output, opened.weight, opened.bias, opened.parameters[0], apart=apart)


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
