"""Calls of synapses: what the rule needs of one, and the mark that it leaves in the graph.

A synapse runs on its detached weight, and :class:`Tag` marks its output. Neurons find the tags by walking the graph of
the step; a call that no neuron takes gives its weight the ordinary gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stllr_plugin.arrivals import Arrivals, compare
from stllr_plugin.errors import StateError
from stllr_plugin.marks import Mark, mark_of
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session
from stllr_plugin.supervision import Span
from stllr_plugin.synapses import Term

_MANY = 2**14  # values of an input, from which on a smaller copy pays


class WeightProduct(Protocol):
    """How an output follows from an input and a weight."""

    def weight_gradients(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        """The weight's gradient, summed over pairs of an input and an output gradient."""


class SynapseSite:
    """A synapse of the attached model: one weight, and its calls.

    Attributes:
        name: Module name (of a neuron's own weight: ``"<neuron>.<weight name>"``).
        session: What all parts of the learner share.
        rule: Rule chosen for this synapse by name, or None to use the rule of the neuron that it feeds.
        last_call: The latest call of this sequence.
        owned: Whether a neuron module holds the weight itself.
        inside: Whether a neuron module holds it, so that nobody else sees its output.
        reached: Whether a gradient has come to it since the last update.
        stands_aside: Whether the neuron around it takes care of its call: it then only notes its input.
        passed: What it was called on last while it stood aside.
    """

    owned: ClassVar[bool] = False

    def __init__(self, session: Session, name: str, rule: STLLRRule | None) -> None:
        """See the class."""
        self.session = session
        self.name = name
        self.rule = rule
        self.is_readout = False  # known two steps after the first call
        self.gate: InputGate | None = None
        self.inside = self.owned
        self.stands_aside = False
        self.passed: Tensor | None = None
        self.reached = False
        self.begin()

    @property
    def is_trained(self) -> bool:
        """Whether its weight is to learn."""
        return self.current_weight().requires_grad

    def begin(self) -> None:
        """Begins a sequence."""
        self.gate = None
        self.last_call: SynapseCall | None = None
        self._first_call: SynapseCall | None = None
        self._first_step = 0
        self._first_clock: int | None = None

    @property
    def runs_first(self) -> bool:
        """Whether it runs before the first neuron of a step."""
        return self._first_clock == -1

    def step(self) -> int:
        """Index of the time step that runs.

        The clock shows the step of the last neuron that ran, which is the step before for a synapse that runs first.
        """
        session = self.session
        ahead = self.runs_first or (session.window is None and session.time.call_is_empty)
        return session.clock + 1 if ahead else session.clock

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
        product: WeightProduct | None = None,
        apart: bool = False,
    ) -> Tensor:
        """Marks the output of one call; the output of a readout at a step that is not supervised leaves the graph.

        Args:
            x: The input.
            output: The output.
            weight: The weight; None where nothing is to be learned.
            bias: The bias, where its gradient is not left to the module.
            anchor: In place of a weight that is None: a parameter, so that the mark is in a graph, where neurons look.
            product: How the output follows from input and weight, where the site does not know.
            apart: Whether the output is known to be made from nothing else of the learner's.
        """
        first = self._first_clock is None
        if first:
            self._first_clock = self.session.clock
        step = self.step()
        if self._first_call is not None and (self._first_call.consumed or step >= self._first_step + 2):
            self.is_readout = not self._first_call.consumed  # that step has ended: no neuron will consume the call
            self._first_call = None
        if self.is_readout and not self.session.needs_graph(step):
            return output.detach()
        gate, self.gate = self.gate, None
        call = SynapseCall(
            self,
            x.detach(),
            x._version,
            weight,
            self.session.next_order(),
            output.shape,
            self.session.span(step),
            gate,
            product=product,
            kept=x.grad_fn is not None,
            binary=x.grad_fn is not None and _are_spikes(x),
            apart=apart,
        )
        if first:
            self._first_call, self._first_step = call, step
        self.last_call = call
        return Tag.apply(call, output, anchor if weight is None else weight, bias)  # type: ignore[no-any-return]

    def refuse_past_through_parameters(self) -> None:
        """Raises StateError: cutting the input off would also cut off the parameters of a layer in between."""
        raise StateError(
            f"The input of synapse {self.name!r} is made from outputs of an earlier step by a layer with parameters. "
            "Nothing may flow between time steps: detach what you carry over (spikes.detach()) before that layer."
        )

    # Gradients.

    def check_input(self, call: SynapseCall) -> None:
        """Raises StateError if the input of a call was changed in place since."""
        if call.held._version != call.version:
            raise StateError(changed_in_place(repr(self.name)))

    def product(self, weight: Tensor, terms: Sequence[Term], product: WeightProduct | None = None) -> Tensor:
        """The weight's gradient, of its shape and dtype, summed over pairs of an input and an output gradient.

        Computed in at least float32, unless the learner was told otherwise.

        Args:
            weight: The weight.
            terms: The pairs.
            product: That of the call, where the site does not know how the output follows from input and weight.
        """
        dtype = self.session.product_dtype
        if dtype is None:
            dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        gradients = self._weight_gradient if product is None else product.weight_gradients
        if weight.dtype is dtype and all(x.dtype is dtype and g.dtype is dtype for x, g in terms):
            return gradients(terms, weight)
        terms = [(x.to(dtype), g.to(dtype)) for x, g in terms]
        return gradients(terms, weight.to(dtype)).to(weight.dtype)

    def is_batched(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the first dimension of an input is a batch."""
        return x.dim() > 1

    def _weight_gradient(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        raise NotImplementedError

    def bias_gradient(self, g: Tensor) -> Tensor:
        """Gradient of the module's bias for an output gradient, where that is not left to the module."""
        raise NotImplementedError


def bypassed(calls: Sequence[SynapseCall]) -> str:
    """Message of the error where a synapse's output reaches the loss past the neuron that it feeds."""
    names = " and ".join(sorted({repr(call.site.name) for call in calls}))
    neurons = " and ".join(sorted({repr(name) for call in calls for name in call.consumers}))
    return (
        f"The output of synapse {names} feeds {neurons}, and it reaches the loss past the neuron as well (a current "
        "that skips it, a gate, a penalty), or a hook of yours changes its gradient. Its weight would lose that part. "
        "Call the layer a second time for what does not go into the neuron, or name it in exclude=[...]."
    )


def changed_in_place(name: str) -> str:
    """Message of the error where an input was changed between forward and backward pass."""
    return (
        f"The input of synapse {name} was changed in place between its forward and the backward pass. Use the "
        "out-of-place operation (y = y * mask, not y *= mask), or pass x.clone() to the layer."
    )


def _are_spikes(x: Tensor) -> bool:
    """Whether a tensor is what a neuron has given out, and holds nothing but 0 and 1."""
    mark = None if x.grad_fn is None else mark_of(x.grad_fn)
    return mark is not None and mark.record is not None and mark.record.is_binary(x.output_nr)


def is_same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors that are both alive are the same numbers in the same memory."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


@dataclass(slots=True, eq=False)
class InputGate:
    """Whether a learning signal may pass on to the input of a synapse call.

    Attributes:
        made_at: Time step of the neuron output that the input was made from.
        parameters: Whether it was made with trainable parameters, which a closed gate would cut off as well.
        closed: Set once that turns out to be an earlier step than the one at which the synapse ran.
    """

    made_at: int
    parameters: bool = False
    closed: bool = False


@dataclass(slots=True, eq=False)
class SynapseCall:
    """One call of a synapse.

    Attributes:
        site: The synapse.
        held: Its input, detached; or a copy that takes less memory, see :meth:`compact`.
        version: Version of that memory, to notice a change in place.
        weight: The weight that it used (in the graph of its originals, if it is parametrized). None where nothing was
            to be learned from the call; see :meth:`trained_weight`.
        order: Number of the call; calls of one step are sorted by it.
        output_shape: Shape of its output.
        span: The time step at which it ran; only meaningful for readouts that no neuron consumes.
        gate: What lets the learning signal on to the input, where the input may come from an earlier step.
        consumers: Neurons that it fed, and the time step. If there is none, the weight gets its ordinary gradient.
        product: How the output follows from input and weight, where the site does not know.
        arrivals: What neurons have sent back to its output; None if nobody but them can have seen that.
        onward: Where its input's gradient arrives, if other synapses are behind it.
        onward_position: Where among what its node sends on that gradient is.
        kept: Whether the input was made within the graph, so that its memory is not used again for another one.
        binary: Whether it is known to hold nothing but 0 and 1.
        dtype: Its dtype, where ``held`` is a copy of another one.
        apart: Whether its input is known to be made from nothing of the learner's; no walk need go on behind it.
    """

    site: SynapseSite
    held: Tensor
    version: int
    weight: Tensor | None
    order: int
    output_shape: torch.Size | None = None
    span: Span | None = None
    gate: InputGate | None = None
    consumers: dict[str, int] = field(default_factory=dict)
    product: WeightProduct | None = None
    arrivals: Arrivals | None = None
    onward: Arrivals | None = None
    onward_position: int = 0
    kept: bool = False
    apart: bool = False
    binary: bool = False
    dtype: torch.dtype | None = None

    @property
    def x(self) -> Tensor:
        """The input, detached."""
        return self.held if self.dtype is None else self.held.to(self.dtype)

    def give_up(self, instead: Tensor) -> None:
        """Lets go of the input, which others have."""
        self.held, self.version, self.dtype = instead, instead._version, None

    def compact(self) -> None:
        """Holds spikes as a byte each, where they are many; a copy that nobody can change."""
        if self.binary and self.dtype is None and self.held.numel() >= _MANY:
            self.dtype, self.held = self.held.dtype, self.held.bool()
            self.version = self.held._version

    def weight_gradient(self, terms: Sequence[Term]) -> Tensor:
        """The weight's gradient, summed over pairs of an input and an output gradient."""
        return self.site.product(self.trained_weight().detach(), terms, self.product)

    def trained_weight(self) -> Tensor:
        """The weight, within the graph of its originals."""
        if self.weight is None:
            self.weight = self.site.current_weight()
        return self.weight

    @property
    def consumed(self) -> bool:
        """Whether a neuron was fed by it."""
        return bool(self.consumers)


class Tag(Function):
    """Identity on a synapse's output; gives the weight its ordinary gradient unless a neuron consumed the call.

    The bias, where it is given, gets its ordinary gradient in any case.
    """

    @staticmethod
    def forward(
        ctx: Any, call: SynapseCall, output: Tensor, weight: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """Returns the output itself, under a new tensor, so that in-place operations on it stay allowed."""
        ctx.stllr = Mark(call=call)
        ctx.set_materialize_grads(False)
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        """See the class."""
        if grad is None:
            return None, None, None, None
        mark: Mark = ctx.stllr
        call: SynapseCall = mark.call
        site = call.site
        wants_bias = len(ctx.needs_input_grad) > 3 and ctx.needs_input_grad[3] and not mark.nested
        if call.consumed:
            if not mark.nested:
                if call.arrivals is not None:
                    compare(grad, call.arrivals.take(), partial(bypassed, [call]), site.session.doubts)
                if call.onward is not None:
                    call.onward.tell(grad)
            return None, grad, None, site.bias_gradient(grad) if wants_bias else None
        assert call.span is not None
        shown = call.span.mask(grad)
        if shown is None:
            return None, None, None, None
        weight_grad = None
        if ctx.needs_input_grad[2]:
            site.session.count_capture()
            site.reached = True
            site.check_input(call)
            weight_grad = call.weight_gradient([(call.x, shown)])
        return None, shown, weight_grad, site.bias_gradient(shown) if wants_bias else None


class UsesWeight(Function):
    """Identity on a synapse's input that makes autograd wait with the weight until the call's own backward is done.

    A hook may update the weight as soon as its gradient is there, and the product of the call still needs it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the input, under a new tensor."""
        ctx.stllr = Mark()
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Passes the gradient on."""
        return grad, None


class GatedInput(Function):
    """Identity on a synapse's input; stops the learning signal where the gate is closed."""

    @staticmethod
    def forward(ctx: Any, gate: InputGate, x: Tensor) -> Tensor:
        """Returns the input, under a new tensor."""
        ctx.stllr = Mark(ends=True)
        ctx.gate = gate
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        """See the class."""
        return None, None if ctx.gate.closed or ctx.stllr.nested else grad
