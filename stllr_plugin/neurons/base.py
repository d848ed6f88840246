"""The interface between the learner and a neuron library.

An adapter is stateless and serves all modules of its types. It answers five questions about one call of a neuron, that
is about one time step: which states came in, what membrane u was compared with the threshold, which output holds the
spikes, which tensors are states, and what the neuron's own surrogate derivative is.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_ADAPTERS: list[NeuronAdapter] = []
_REFUSALS: list[Callable[[nn.Module], str | None]] = []
_KEEPERS: list[StateKeeper] = []


def register_adapter(cls: type[NeuronAdapter]) -> type[NeuronAdapter]:
    """Class decorator that makes an adapter known. The newest is asked first, so that users can override ours."""
    _ADAPTERS.insert(0, cls())
    return cls


def registered_adapters() -> list[NeuronAdapter]:
    """All adapters loaded so far."""
    return _ADAPTERS


def register_refusal(reason: Callable[[nn.Module], str | None]) -> Callable[[nn.Module], str | None]:
    """Decorator for a function that says why a neuron cannot be trained (found, then what to do), or None."""
    _REFUSALS.append(reason)
    return reason


def registered_refusals() -> list[Callable[[nn.Module], str | None]]:
    """All refusals loaded so far."""
    return _REFUSALS


def register_keeper(keeper: StateKeeper) -> None:
    """Makes a kind of state-keeping modules known."""
    _KEEPERS.append(keeper)


def registered_keepers() -> list[StateKeeper]:
    """All of them loaded so far."""
    return _KEEPERS


@dataclass(slots=True)
class NeuronStep:
    """What one call of a neuron did.

    Attributes:
        membrane: u, compared with the threshold in this step, before any reset; of a readout without spikes: the
            membrane that it returns. None where the neuron did not get that far.
        threshold_distance: v = u - threshold, still in the autograd graph; None for readouts without spikes.
        spikes: The spike output (a tensor of what the module returned, by identity); None for readouts.
        gate: 0 where the neuron could not spike at this step whatever its membrane (refractory, inhibited), else 1; of
            the shape of the membrane. It multiplies psi. None where every neuron could.
        gain: What a spike is multiplied with in the output (graded spikes), in the autograd graph; None for 1.
    """

    membrane: Tensor | None
    threshold_distance: Tensor | None
    spikes: Tensor | None
    gate: Tensor | None = None
    gain: Tensor | None = None


class MembraneTap:
    """Keeps what a neuron did during one call. This base sees nothing by itself, which is enough for readouts.

    Attributes:
        calls: Arguments of each decision since :meth:`clear`.
        fired: What each of them gave.
        currents: Outputs of the module's own weights (:attr:`NeuronAdapter.weight_names`) in the order of use.
        streaming: Whether ``learner.stream`` runs the module.
    """

    def __init__(self) -> None:
        """Starts closed: nothing is kept until the learner opens it."""
        self.open = False
        self.streaming = False
        self.calls: list[tuple[Any, ...]] = []
        self.fired: list[Any] = []
        self.currents: list[Tensor] = []

    def clear(self) -> None:
        """Forgets what was seen, and with it the graph of that step."""
        self.open = False
        self.calls.clear()
        self.fired.clear()
        self.currents.clear()

    def install(self) -> None:
        """Begins to watch the module."""

    def uninstall(self) -> None:
        """Leaves the module as it was."""
        self.clear()


class AttributeTap(MembraneTap):
    """Stands in for a callable attribute (method or function) on one instance, and keeps the arguments of its calls.

    A deep copy or pickle of the module gets the plain attribute back.

    Args:
        module: The neuron.
        name: The attribute.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """See the class."""
        super().__init__()
        self.module = module
        self.name = name
        # What the instance itself holds under this name, else the method of its class.
        self.own = module.__dict__.get(name)
        self._plain = self._of(module)

    def _of(self, module: nn.Module) -> Callable[..., Any]:
        if self.own is not None:
            return self.own  # type: ignore[no-any-return]
        child = module.__dict__.get("_modules", {}).get(self.name)
        if child is not None:
            return child  # type: ignore[no-any-return]
        # Methods are bound; static methods and other callables of the class are not.
        found = inspect.getattr_static(type(module), self.name)
        return found.__get__(module, type(module)) if hasattr(found, "__get__") else found  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the plain attribute; notes the arguments and what it gives while open."""
        result = self._plain(*args, **kwargs)
        if self.open:
            self.calls.append((*args, *kwargs.values()))
            self.fired.append(result)
        return result

    def install(self) -> None:
        """Takes the attribute's place."""
        self.module.__dict__[self.name] = self

    def uninstall(self) -> None:
        """Gives the place back."""
        self.clear()
        if self.module.__dict__.get(self.name) is self:
            del self.module.__dict__[self.name]
            if self.own is not None:
                self.module.__dict__[self.name] = self.own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """See the class."""
        if isinstance(self._plain, nn.Module):
            return copy.deepcopy(self._plain, memo)
        return self._of(memo.get(id(self.module), self.module))

    def __reduce__(self) -> Any:
        """See the class."""
        if self.own is not None:
            return (_same, (self.own,))
        return (getattr, (self.module, self.name))  # as Python pickles bound methods


def without_tap(value: Any) -> Any:
    """The plain attribute where a tap of a learner that is still attached stands in its place."""
    return value._plain if isinstance(value, AttributeTap) else value


def _same(value: Any) -> Any:
    return value


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to every tensor of nested tuples, named tuples, lists and dicts; other values pass through."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(item, change) for item in value]
    if type(value) is dict:
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def copied(tensor: Tensor) -> Tensor:
    """A copy off the graph."""
    return tensor.detach().clone()


def one_number(value: Any) -> float | None:
    """A number, or a tensor with a single element, as a float; None for anything else."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def reset_rows(state: Tensor, mask: Tensor, start: Tensor | float = 0.0) -> Tensor:
    """A state [B, ...] with the samples of a bool mask [B] at their start; out of place and detached."""
    rows = mask.to(state.device).view(-1, *[1] * (state.dim() - 1))
    return torch.where(rows, torch.as_tensor(start).to(state), state.detach())


def rebuilt(result: Any, items: list[Any]) -> Any:
    """A module's result with other items: a tuple, named or not, or the single item."""
    if not isinstance(result, tuple):
        return items[0]
    return type(result)(*items) if hasattr(result, "_fields") else tuple(items)


class NeuronAdapter(ABC):
    """Everything the learner knows about one family of neurons.

    Attributes:
        spiking: False for leaky-integrator readouts.
        weight_names: Attributes of the module that are synaptic weights used through ``torch.nn.functional.linear``.
        delayed: Whether the neuron's own weights act on the membrane of the next step (see :meth:`delay`).
    """

    spiking: ClassVar[bool] = True
    weight_names: ClassVar[tuple[str, ...]] = ()
    delayed: ClassVar[bool] = False

    def attached(self, module: nn.Module) -> None:
        """Called when a learner is attached to a model with this neuron; what it does, :meth:`detached` takes back."""
        return

    def detached(self, module: nn.Module) -> None:
        """Called when the learner is taken off."""
        return

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether this adapter serves the module."""

    def problems(self, module: nn.Module) -> list[str]:
        """Reasons why this module cannot be trained (found, then what to do); empty if it can."""
        return []

    @abstractmethod
    def make_tap(self, module: nn.Module) -> MembraneTap:
        """The tap that sees, on this instance only, where the module decides about spikes; not installed yet."""

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """Cuts all incoming states off the graph of earlier steps.

        By default every argument but the first (the input) is a state, and the first tensor among them is the membrane.

        Returns:
            The new positional and keyword arguments, and the incoming membrane (None where a new sequence is evident).
        """
        found: list[Tensor] = []

        def detach(state: Tensor) -> Tensor:
            found.append(state.detach())
            return found[-1]

        args = (*args[:1], *map_tensors(args[1:], detach))
        kwargs = {name: map_tensors(value, detach) for name, value in kwargs.items()}
        return args, kwargs, found[0] if found else None

    @abstractmethod
    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """What the call that just ended did."""

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Applies ``change`` to each tensor of the output and each state that the module keeps; returns the output."""
        return map_tensors(output, change)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """The membrane with which the next step will start: by default the second item of the output."""
        state = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        return state if isinstance(state, Tensor) else None

    def left_membrane(self, module: nn.Module) -> Any:
        """The membrane that a module keeps after a reset, as an object that another reset would replace."""
        return self.returned_membrane(module, None)

    def surrogate_derivative(self, module: nn.Module, v: Tensor) -> Tensor:
        """Derivative of the neuron's own surrogate at v = u - threshold, element by element."""
        with torch.enable_grad():
            leaf = v.detach().requires_grad_()
            spikes = self.spike_function(module)(leaf)
            if not spikes.requires_grad:
                return torch.zeros_like(v)
            (derivative,) = torch.autograd.grad(spikes.sum(), leaf)
        return derivative.detach()

    def leak(self, module: nn.Module) -> float | None:
        """Decay of the membrane per time step, as it is now; None if the layer has no single one."""
        return None

    @abstractmethod
    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The module's own differentiable spike function of v = u - threshold."""

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """Resets the states that the module keeps (by default none); with a mask [B], those samples only."""
        return

    def is_sequence(self, module: nn.Module) -> bool:
        """Whether the module takes [time, batch, ...]; the learner then feeds and accepts one time step per call."""
        return False

    def stream_hooks(self, module: nn.Module, memory: dict[str, Any]) -> list[Any]:
        """For modules that neither keep a state nor are given one: hooks that make one call go on from the step before.

        Args:
            module: The neuron.
            memory: What the hooks of the step before have left; theirs to fill.

        Returns:
            Handles of the hooks, which ``learner.stream`` removes after the call.
        """
        return []

    def delay(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        mark: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For delayed neurons: marks the incoming state through which the input of the step before reaches u.

        Args:
            module: The neuron.
            args: Positional arguments of the call, states detached.
            kwargs: Keyword arguments of the call, states detached.
            mark: To be called with that state and, for each of :attr:`weight_names`, a tensor of the shape of that
                weight's input; returns the marked state.

        Returns:
            The arguments, with the marked state in place.
        """
        raise NotImplementedError

    def state_buffers(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the buffers of this module that hold states."""
        return ()

    def save_states(self, module: nn.Module) -> Any:
        """States that the module keeps outside of its buffers, to be given to :meth:`restore_states`."""
        return None

    def restore_states(self, module: nn.Module, saved: Any) -> None:
        """Puts back what :meth:`save_states` gave."""
        return

    def keeps_state(self, module: nn.Module) -> bool:
        """Whether the module keeps its states from step to step, so that they are not passed in and out."""
        return bool(getattr(module, "init_hidden", False))

    def release_states(self, module: nn.Module) -> None:
        """Cuts the states that the module keeps off the graph, when the learner leaves the model."""
        for name in self.state_buffers(module):
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.requires_grad:
                module._buffers[name] = buffer.detach()


class StateKeeper(ABC):
    """What the learner knows of modules that keep a state from step to step, but not in buffers.

    Attributes:
        accumulates: Whether the state is a running sum that the user's loss may read at the end of the sequence. It
            then stays in the graph until a backward pass has used it.
    """

    accumulates: ClassVar[bool] = False

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether this module is of the kind."""

    @abstractmethod
    def change(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Applies a function to each tensor of the state."""

    @abstractmethod
    def reset(self, module: nn.Module, mask: Tensor | None) -> None:
        """A fresh state; with a mask [B], for those samples only."""

    @abstractmethod
    def save(self, module: nn.Module) -> Any:
        """A copy of the state, off the graph."""

    @abstractmethod
    def restore(self, module: nn.Module, saved: Any) -> None:
        """Puts back what :meth:`save` gave."""
