"""Signals that reach every hidden layer directly, and direct feedback alignment.

Direct feedback alignment ("dfa") uses fixed random matrices times the output error, ``delta = e @ M`` with
``e = dL[t]/d(output)``; "sign_dfa" uses the sign of the error, ``sign(e) @ M``. (Nokland, "Direct Feedback Alignment
Provides Learning in Deep Neural Networks", NeurIPS 2016; S-TLLR paper, Sec. 4.2.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stllr_plugin.errors import NoGradientCapturedError, RuleError, StateError
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import map_tensors, rebuilt
from stllr_plugin.precision import num_bytes, without_autocast
from stllr_plugin.registry import register_signal
from stllr_plugin.signals.base import LearningSignal, SignalCost, SignalSetup
from stllr_plugin.signals.feedback import Feedback
from stllr_plugin.signals.guessed import made_by_others

# From the error [B, outputs] at the output of a step to delta [B, *neuron shape] of each hidden neuron.
Projection = Callable[[Tensor], list[Tensor]]
# Names and spikes of hidden neurons.
Hidden = list[tuple[str, Tensor]]


class DirectSignal(LearningSignal):
    """A signal that comes to each hidden spiking neuron directly, when a backward pass reaches the output of the step.

    Attributes:
        output_name: Name of the module whose output the loss sees.
        output: That module.
    """

    direct = True

    def __init__(self, setup: SignalSetup) -> None:
        """See the class."""
        super().__init__(setup)
        assert setup.output is not None
        self.output_name = setup.output_name
        self.output = setup.output
        self.output_named = setup.output_named
        self._elsewhere: dict[str, None] = {}  # what else has made something that the loss sees
        self._feedback = self.make_feedback(setup.hidden, setup.seed)
        self._with_time = setup.with_time
        self._waiting: list[tuple[str, Tensor, int]] = []
        # Since the last update: whether an error could have come to the output, and whether one has.
        self._awaited = self._came = False

    @property
    def feedback(self) -> Feedback:
        """Feedback matrices by neuron module name, [outputs, *neuron shape]."""
        return self._feedback

    def make_feedback(self, hidden: list[str], seed: int) -> Feedback:
        """The feedback matrices of this signal."""
        return Feedback(hidden, seed)

    def projection(self, spikes: Hidden, outputs: int) -> Projection:
        """What a step's backward pass needs.

        Args:
            spikes: Name and spikes of each call of a hidden neuron in this step, detached, [B, *neuron shape].
            outputs: Number of outputs.
        """
        raise NotImplementedError

    def hidden(self, name: str, spikes: Tensor) -> Tensor:
        """Keeps the grafted spikes until the output of this step is known; the layers above see them cut off."""
        if not self.reaches(name):
            return spikes
        clock = self.session.clock
        if self._waiting and self._waiting[0][2] != clock:
            raise StateError(self._not_the_output("it did not run at each step", []))
        self._waiting.append((name, spikes, clock))
        return spikes.detach()

    def reaches(self, name: str) -> bool:
        """True for hidden neurons."""
        return name in self.feedback.names

    def attach(self) -> list[Any]:
        """Hooks the output module, after the hooks of synapses and neurons; the model, where the output is a guess."""
        handles: list[Any] = [self.output.register_forward_hook(_OutputHook(self))]
        if not self.output_named:
            handles.append(self.session.model.register_forward_hook(_ModelHook(self)))
        return handles

    def restart(self, *, keep_target: bool = False) -> None:
        """See the base class."""
        self._waiting.clear()
        self._awaited = self._came = False
        self._elsewhere.clear()

    def check_output(self, result: Any) -> None:
        """Looks at what the model returned: whether the guess was right.

        Raises:
            StateError: If it cannot have been.
        """
        returned: list[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            returned.append(tensor)
            return tensor

        map_tensors(result, collect)
        others = made_by_others(returned, self.output_name)
        waiting = [name for name, _, _ in self._waiting]
        if waiting:
            names = ", ".join(map(repr, dict.fromkeys(waiting)))
            what = f"it did not run after neuron{'s' if len(set(waiting)) > 1 else ''} {names} in this time step"
            hints = [name for _, makers in others for name in makers]
            raise StateError(self._not_the_output(what, hints or waiting[-1:]))
        for tensor, makers in others:
            tensor.register_hook(partial(self._note_error_elsewhere, makers))

    def _note_error_elsewhere(self, makers: list[str], error: Tensor) -> None:
        self._elsewhere.update(dict.fromkeys(makers))

    def _not_the_output(self, what: str, others: list[str]) -> str:
        known = ", as you have said," if self.output_named else ", since it is registered last,"
        hint = f" (perhaps {' or '.join(map(repr, others))})" if others else ""
        return (
            f"learning_signal={self.name!r} takes module {self.output_name!r} for the output{known} but {what}. The "
            "hidden layers would learn nothing, or from another error. Name the module that the loss sees with "
            f"output={hint}."
        )

    def deliver(self, result: Any) -> Any:
        """Routes the error that will arrive at the outputs of this step to the hidden layers."""
        clock = self.session.clock
        late = [name for name, _, step in self._waiting if step != clock]
        if late:
            raise StateError(
                f"Neurons {late} run after module {self.output_name!r}, which is taken for the output, so no error of "
                "their time step can reach them. Name the module that the loss sees with output=."
            )
        waiting = [(name, spikes) for name, spikes, _ in self._waiting if spikes.requires_grad]
        self._waiting = []
        items = list(result) if isinstance(result, tuple) else [result]
        places = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.requires_grad]
        if not waiting or not places:
            return result
        seen = [(name, self._batch_first(name, spikes.detach())) for name, spikes in waiting]
        batch = seen[0][1].shape[0]
        outputs = [items[place] for place in places]
        width = _rows(outputs[0], batch).shape[1]
        if any(_rows(output, batch).shape[1] != width for output in outputs):
            raise StateError(
                f"The outputs of module {self.output_name!r} have different sizes; name the module that the loss sees."
            )
        projection = self.projection(seen, width)
        self._awaited = True
        hidden = [spikes for _, spikes in waiting]
        routed = _ErrorFork.apply(self._noting(projection), batch, len(outputs), *outputs, *hidden)
        for place, output in zip(places, routed, strict=True):
            items[place] = output
        return rebuilt(result, items)

    def _noting(self, projection: Projection) -> Projection:
        def project(error: Tensor) -> list[Tensor]:
            self._came = True
            return projection(error)

        return project

    def check_delivered(self) -> None:
        """See the base class."""
        if (self._awaited or self._waiting) and not self._came:
            raise NoGradientCapturedError(
                f"step() was called, but no error came to module {self.output_name!r}, which is taken for the output, "
                "so the hidden layers have learned nothing. Nothing was updated. Name the module that the loss sees "
                "with output=."
            )
        if self._elsewhere:
            others = list(self._elsewhere)
            what = f"the loss also sees what {' and '.join(map(repr, others))} made, whose error does not count then"
            raise StateError(self._not_the_output(what, [self.output_name, *others]))
        self._awaited = self._came = False

    def memory(self) -> dict[str, int]:
        """See the base class."""
        return {"feedback": sum(num_bytes(matrix) for matrix in self.feedback.values())}

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        matrices = {name: matrix.detach().clone() for name, matrix in self.feedback.items()}
        return {"feedback": matrices, "feedback_seed": self.feedback.seed}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        feedback = state.get("feedback")
        seed = state.get("feedback_seed")
        right = isinstance(feedback, Mapping) and all(isinstance(matrix, Tensor) for matrix in feedback.values())
        if not right or isinstance(seed, bool) or not isinstance(seed, int):
            raise RuleError(
                "load_state_dict(): the state of learning_signal="
                f"{self.name!r} has feedback matrices by neuron, and their seed; found 'feedback' as a "
                f"{type(feedback).__name__} and feedback_seed={seed!r}."
            )
        unknown = sorted(set(state["feedback"]) - set(self.feedback.names))
        if unknown:
            raise RuleError(
                f"The checkpoint has feedback matrices for {unknown}; this model has {self.feedback.names}."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.feedback.seed = state["feedback_seed"]
        for name, matrix in state["feedback"].items():
            self.feedback[name] = matrix

    def _batch_first(self, name: str, spikes: Tensor) -> Tensor:
        """Spikes without the time dimension that sequence modules keep."""
        return spikes[0] if name in self._with_time else spikes


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """An output as [B, outputs]; one of a sequence module has a time dimension of 1 in front."""
    if tensor.shape[0] != batch and tensor.shape[0] == 1 and tensor.dim() > 1:
        tensor = tensor[0]
    return tensor.flatten(1)


class _OutputHook(Hook):
    refuses = False

    def __init__(self, signal: DirectSignal) -> None:
        super().__init__(signal.output_name)
        self.signal = signal

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.signal.session.is_recording:
            return self.signal.deliver(output)
        return None


class _ModelHook(Hook):
    refuses = False

    def __init__(self, signal: DirectSignal) -> None:
        super().__init__("")
        self.signal = signal

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.signal.session.is_recording:
            self.signal.check_output(output)


class _ErrorFork(Function):
    """Identity on the outputs; also hands each hidden layer its learning signal."""

    @staticmethod
    def forward(ctx: Any, projection: Projection, batch: int, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.projection, ctx.batch = projection, batch
        ctx.stllr_output = True  # for whoever walks the graph
        ctx.shapes = [spikes.shape for spikes in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Any, ...]:
        given = [_rows(error, ctx.batch) for error in errors if error is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        error = given[0] if len(given) == 1 else torch.stack(given).sum(0)
        with without_autocast(error):
            deltas = ctx.projection(error)
        shaped = [delta.reshape(shape) for delta, shape in zip(deltas, ctx.shapes, strict=True)]
        return (None, None, None, *errors, *shaped)


@register_signal("dfa", "sign_dfa")
class DirectFeedback(DirectSignal):
    """The signals "dfa" and "sign_dfa": the output error of each step, projected straight to every hidden layer."""

    def projection(self, spikes: Hidden, outputs: int) -> Projection:
        """See the base class."""
        matrices = [self.feedback.matrix(name, outputs, y).to(y.dtype) for name, y in spikes]
        sign = self.name == "sign_dfa"

        def project(error: Tensor) -> list[Tensor]:
            if sign:
                error = error.sign()
            return [error.to(matrix.dtype) @ matrix.flatten(1) for matrix in matrices]

        return project

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost:
        """See the base class; products with -1, 0 and 1 are additions."""
        products = outputs * spikes[0].numel()
        return SignalCost(products, 0) if name == "sign_dfa" else SignalCost(0, products)
