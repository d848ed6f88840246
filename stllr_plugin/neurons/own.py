"""The adapter for neurons of a user's own: modules that decide about spikes in one method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.neurons.base import (
    AttributeTap,
    MembraneTap,
    NeuronAdapter,
    NeuronStep,
    map_tensors,
    one_number,
    reset_rows,
)


class FiringAdapter(NeuronAdapter):
    """Serves modules with a method of ``v = membrane - threshold`` that returns the spikes and is called once per step.

    ::

        @register_adapter
        class MyAdapter(FiringAdapter):
            kind = MyNeuron

    The module returns its spikes, alone or as the first item of a tuple. States that are passed in and out are the
    arguments after the input, the membrane first, and it is the second item of the tuple.

    Attributes:
        kind: The class of the neurons.
        fire: Name of the method.
        states: Names of the tensors, buffers or not, in which the module keeps its states, the membrane first. Before
            the first step each is None or a single number; a reset makes it the number 0. Empty where states are passed
            in and out.
    """

    kind: ClassVar[type[nn.Module]]
    fire: ClassVar[str] = "fire"
    states: ClassVar[tuple[str, ...]] = ()

    def matches(self, module: nn.Module) -> bool:
        """See the base class."""
        return isinstance(module, getattr(self, "kind", ()))

    def problems(self, module: nn.Module) -> list[str]:
        """See the base class."""
        if callable(getattr(module, self.fire, None)):
            return []
        return [f"it has no method {self.fire!r}; set `fire` of the adapter to the one that decides about spikes"]

    def make_tap(self, module: nn.Module) -> MembraneTap:
        """See the base class."""
        return AttributeTap(module, self.fire)

    def read_step(self, module: nn.Module, tap: MembraneTap, output: Any) -> NeuronStep:
        """See the base class.

        Raises:
            StateError: If the method was called more than once.
        """
        spikes = output[0] if isinstance(output, tuple) else output
        if not tap.calls:
            return NeuronStep(None, None, spikes)
        if len(tap.calls) > 1:
            raise StateError(
                f"{type(module).__name__}.{self.fire} was called {len(tap.calls)} times in one step; FiringAdapter "
                "serves modules that call it once. Write an adapter whose read_step picks the membrane "
                "(CONTRIBUTING.md)."
            )
        if len(tap.calls[0]) != 1:
            raise StateError(
                f"{type(module).__name__}.{self.fire} was called with {len(tap.calls[0])} arguments; FiringAdapter "
                "serves methods of one, v = membrane - threshold. Write an adapter whose read_step computes v "
                "(CONTRIBUTING.md)."
            )
        if not any(spikes is fired for fired in tap.fired):
            raise StateError(
                f"{type(module).__name__} does not return what {self.fire} gave as the first of its outputs. Return "
                "the spikes first, unchanged, or write an adapter whose read_step picks them (CONTRIBUTING.md)."
            )
        (v,) = tap.calls[0]
        return NeuronStep(membrane=v, threshold_distance=v, spikes=spikes)

    def spike_function(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        return getattr(module, self.fire)  # type: ignore[no-any-return]

    def leak(self, module: nn.Module) -> float | None:
        """The attribute ``beta``, where the module has one number under that name."""
        return one_number(getattr(module, "beta", None))

    # States that the module keeps.

    def keeps_state(self, module: nn.Module) -> bool:
        """See the base class."""
        return bool(self.states)

    def state_buffers(self, module: nn.Module) -> tuple[str, ...]:
        """See the base class."""
        return tuple(name for name in self.states if name in module._buffers)

    def _change(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        for name in self.states:
            state = getattr(module, name)
            if isinstance(state, Tensor):
                setattr(module, name, change(state))

    def detach_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """See the base class."""
        args, kwargs, membrane = super().detach_states(module, args, kwargs)
        if self.states:
            self._change(module, torch.Tensor.detach)
            state = getattr(module, self.states[0])
            membrane = state if isinstance(state, Tensor) and state.dim() > 0 else None
        return args, kwargs, membrane

    def replace(self, module: nn.Module, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """See the base class."""
        self._change(module, change)
        return map_tensors(output, change)

    def returned_membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """See the base class."""
        return getattr(module, self.states[0]) if self.states else super().returned_membrane(module, output)

    def save_states(self, module: nn.Module) -> Any:
        """See the base class."""
        return [map_tensors(getattr(module, name), lambda state: state.detach().clone()) for name in self.states]

    def restore_states(self, module: nn.Module, saved: Any) -> None:
        """See the base class."""
        for name, state in zip(self.states, saved, strict=True):
            setattr(module, name, state)

    def release_states(self, module: nn.Module) -> None:
        """See the base class."""
        self._change(module, torch.Tensor.detach)

    def reset_states(self, module: nn.Module, mask: Tensor | None) -> None:
        """See the base class."""

        def reset(state: Tensor) -> Tensor:
            if mask is None:
                return state.new_zeros(())
            if state.dim() == 0:
                return state
            return reset_rows(state, mask)

        self._change(module, reset)
