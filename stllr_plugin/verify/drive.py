"""How the user's batch goes through the model: step by step, in one call, or by a function of the user's own."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.neurons import find_adapter
from stllr_plugin.neurons.base import copied, map_tensors
from stllr_plugin.synapses import find_synapse
from stllr_plugin.verify.result import VerificationError

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Drive:
    """One way to run a batch and get the loss.

    Attributes:
        inputs: The user's batch.
        loss_fn: The user's loss, of one step's output (or of output and number of the step) where the model is called
            step by step, else of everything that comes out.
        forward: The user's own loop, ``forward(model, inputs)``; None calls the model.
        by_steps: Whether the model is called once per time step.
    """

    inputs: Any
    loss_fn: Callable[..., Tensor | None]
    forward: Forward | None
    by_steps: bool

    @property
    def num_steps(self) -> int | None:
        """Number of calls, where the model is called once per step."""
        return len(self.inputs) if self.by_steps else None

    def loss(
        self, model: nn.Module, at_step: Callable[[int], None] = lambda t: None, supervised: range | None = None
    ) -> Tensor:
        """Runs the batch on a model and returns the loss.

        Args:
            model: A copy of the user's model.
            at_step: Called before each step, where the model is called once per step.
            supervised: The steps whose losses count, where the model is called once per step.

        Raises:
            VerificationError: If there is no loss, or it does not depend on the model.
        """
        total = self.total(model, at_step, supervised)
        if not isinstance(total, Tensor) or total.numel() != 1:
            found = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise VerificationError(f"loss_fn returned {found}; verify() needs a loss, a tensor with one number.")
        if not total.requires_grad:
            raise VerificationError(
                "The loss does not depend on the model that was given to the function: it requires no gradient. A "
                "function passed as forward= must run its argument, which is a copy, and not the original model."
            )
        return total

    def total(
        self, model: nn.Module, at_step: Callable[[int], None] = lambda t: None, supervised: range | None = None
    ) -> Tensor | None:
        """As :meth:`loss`, unchecked."""
        inputs = map_tensors(self.inputs, copied)  # the model may change them in place
        if self.by_steps:
            return self._sum_of_steps(model, inputs, at_step, supervised)
        return self.loss_fn(model(inputs) if self.forward is None else self.forward(model, inputs))

    def _sum_of_steps(
        self, model: nn.Module, inputs: Any, at_step: Callable[[int], None], supervised: range | None
    ) -> Tensor | None:
        total: Tensor | None = None
        state: Any = None
        with_state = _takes_state(model)
        sequences = any(a.is_sequence(m) for m in model.modules() if (a := find_adapter(m)) is not None)
        numbered = _takes_step(self.loss_fn)
        for t in range(len(inputs)):
            at_step(t)
            x = inputs[t : t + 1] if sequences else inputs[t]
            output = model(x, state) if with_state else model(x)
            if with_state:
                output, state = output
            if sequences and isinstance(output, Tensor):
                output = output[0]
            if supervised is not None and t not in supervised:
                continue
            loss = self.loss_fn(output, t) if numbered else self.loss_fn(output)
            if loss is not None:
                total = loss if total is None else total + loss
        return total


def _takes_state(model: nn.Module) -> bool:
    """Whether the model is called as Norse's are, ``output, state = model(x, state)``."""
    names = list(inspect.signature(model.forward).parameters)
    return len(names) == 2 and names[1] == "state"


def _takes_step(loss_fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([p for p in parameters if p.kind in kinds and p.default is p.empty]) == 2


def make_drive(model: nn.Module, inputs: Any, loss_fn: Any, forward: Forward | None, steps: bool | None) -> Drive:
    """Checks the arguments, and finds out whether the model's call is one time step where that is not said.

    Args:
        model: A copy that may be run.
        inputs: The user's batch.
        loss_fn: The user's loss.
        forward: The user's own loop, or None.
        steps: Whether the model is called once per step; None to find out.

    Raises:
        VerificationError: If an argument cannot be used.
    """
    if not callable(loss_fn):
        raise VerificationError(f"loss_fn is a {type(loss_fn).__name__}; verify() needs a function that gives a loss.")
    if forward is not None and not callable(forward):
        raise VerificationError(f"forward is a {type(forward).__name__}; expected a function of model and inputs.")
    if forward is None and (inputs is None or isinstance(inputs, (str, bytes, int, float))):
        raise VerificationError(
            f"inputs is a {type(inputs).__name__}; verify() needs one batch: a tensor [time, batch, ...] or a list of "
            "one tensor per time step."
        )
    if isinstance(inputs, Tensor) and not inputs.numel():
        raise VerificationError(f"inputs has shape {tuple(inputs.shape)}: without a value there is nothing to compare.")
    drive = Drive(inputs, loss_fn, forward, by_steps=False)
    if forward is not None:
        if steps:
            raise VerificationError("forward= runs the whole batch itself; leave out steps=True.")
        return drive
    sized = isinstance(inputs, Sequence) and not isinstance(inputs, str) or isinstance(inputs, Tensor) and inputs.dim()
    if steps is None:
        steps = bool(sized) and (not isinstance(inputs, Tensor) or not _loops_inside(model, inputs))
    if steps and not sized:
        raise VerificationError(
            f"inputs is a {type(inputs).__name__}; to be run step by step it must be a tensor [time, batch, ...] or a "
            "list with one item per time step. Otherwise pass steps=False, or forward=lambda model, inputs: ..."
        )
    if steps and not len(inputs):
        raise VerificationError("inputs has no time step.")
    return replace(drive, by_steps=bool(steps))


def _loops_inside(model: nn.Module, inputs: Tensor) -> bool:
    """Whether one call on the whole tensor runs a neuron several times. The model is called, and may raise."""
    if _takes_state(model):
        return False
    counts: Counter[int] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda m, args: counts.update([id(m)]))
        for module in model.modules()
        if find_adapter(module) is not None
    ]
    try:
        with torch.no_grad():
            model(map_tensors(inputs, copied))
    except Exception:  # the whole is no input for it, so a step must be
        return False
    finally:
        for handle in handles:
            handle.remove()
    return max(counts.values(), default=0) > 1


@dataclass(frozen=True)
class Clock:
    """Which time step a call of a module belongs to.

    Attributes:
        num_steps: Length of the sequence; None if it cannot be told. All calls then count as one step.
        calls: How often each module is called in the sequence, by name.
        pace: Name of the first module that is called once per step; its calls tell the time for modules whose calls do
            not come to a multiple of the steps.
    """

    num_steps: int | None
    calls: dict[str, int]
    pace: str | None

    def step(self, name: str, call: int, ticks: int) -> int:
        """Step of a call: a module's ``call``-th, made after so many calls of the pace-maker."""
        if self.num_steps is None:
            return 0
        count = self.calls.get(name, 0)
        if count and count % self.num_steps == 0:
            return call * self.num_steps // count
        return max(ticks - 1, 0)


def find_clock(model: nn.Module, drive: Drive, num_steps: int | None) -> Clock:
    """Runs a copy once and counts the calls.

    Args:
        model: A copy that may be run.
        drive: How to run it.
        num_steps: Length of the sequence, if known.
    """
    calls: Counter[str] = Counter()
    neurons: Counter[str] = Counter()
    handles = []
    for name, module in model.named_modules():
        if find_adapter(module) is not None:
            handles.append(module.register_forward_pre_hook(lambda m, a, name=name: neurons.update([name])))
        elif find_synapse(module) is None:
            continue
        handles.append(module.register_forward_pre_hook(lambda m, a, name=name: calls.update([name])))
    try:
        with torch.no_grad():
            drive.total(model)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise VerificationError(
            "No layer or neuron of the model ran. verify() runs copies of the model: forward= must run the model that "
            "it is given, and a model must call its own modules, not those of another model that a function remembers."
        )
    steps = num_steps or drive.num_steps or _likely_steps(neurons, drive.inputs)
    return Clock(steps, dict(calls), next((name for name, count in calls.items() if count == steps), None))


def _likely_steps(neurons: Counter[str], inputs: Any) -> int | None:
    """Length of a sequence from the number of each neuron's calls: a dimension of the input, else the usual number."""
    counts = set(neurons.values())
    if isinstance(inputs, Tensor):
        for size in inputs.shape[:2]:
            if size in counts:
                return size
    usual = Counter(neurons.values()).most_common()
    if not usual:
        return None
    return min(count for count, times in usual if times == usual[0][1])
