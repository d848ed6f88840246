"""One forward pass in plain torch, written down call by call, with the graph cut behind every synapse and neuron.

The pieces of graph between the cuts are those of one time step each. Going back over the calls, a gradient is handed
from piece to piece, and never to a piece of another time step. Nothing here comes from what the learner does when it
trains: only the adapters say which module is a neuron, what it compared with its threshold, and which of its arguments
are states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from stllr_plugin.neurons import NeuronAdapter, find_adapter, find_keeper
from stllr_plugin.neurons.base import MembraneTap, NeuronStep, map_tensors
from stllr_plugin.synapses import find_synapse
from stllr_plugin.verify.drive import Clock, Drive


@dataclass(eq=False)
class Cut:
    """A place where the graph ends, and another piece of graph begins.

    Attributes:
        value: The tensor in the graph above.
        leaf: The same values, in the graph below.
        step: Time step.
        order: Number of the call that it is an output of.
    """

    value: Tensor
    leaf: Tensor
    step: int
    order: int


@dataclass(eq=False)
class SynapseCall:
    """One call of a synapse.

    Attributes:
        name: Module name; for weights that a neuron holds itself, the neuron's and the weight's.
        x: The input, as it was.
        given: The input itself, which tells calls on one input from calls on another of the same values.
        output: Where its output was cut off.
        weights: The trainable parameters behind its weight.
        again: Runs the synapse on another input, in the graph of these parameters.
        boundary: Whether it is no synapse but a module that is left alone, behind which no neuron looks for synapses.
    """

    name: str
    x: Tensor
    given: Tensor
    output: Cut
    weights: list[nn.Parameter]
    again: Callable[[Tensor], Tensor]
    boundary: bool = False


@dataclass(eq=False)
class NeuronCall:
    """One call of a neuron.

    Attributes:
        name: Module name.
        module: The neuron.
        adapter: What is known of its kind.
        layer: Which of the layers that the module serves: one per chain of states.
        decided: v = membrane - threshold, in the graph; of a readout, its membrane.
        step: What the adapter read.
        spikes: Where the spikes were cut off; None for readouts.
        states: Where membrane and other states were cut off.
        agrees: Whether the module spiked where v is above zero, and only there.
        step_number: Time step.
        order: Number of this call.
    """

    name: str
    module: nn.Module
    adapter: NeuronAdapter
    layer: int
    decided: Tensor
    step: NeuronStep
    spikes: Cut | None
    states: list[Cut]
    agrees: bool
    step_number: int
    order: int

    @property
    def cuts(self) -> list[Cut]:
        """All outputs."""
        return ([] if self.spikes is None else [self.spikes]) + self.states


Call = SynapseCall | NeuronCall


@dataclass
class Tape:
    """The calls of one sequence, in the order in which they ended, and its loss.

    Attributes:
        calls: All calls.
        loss: The loss, in the graph from the last cuts on.
        clock: What told the steps apart.
        between: Names of other modules (without children) that ran before each call, since the call before it.
    """

    clock: Clock
    calls: list[Call] = field(default_factory=list)
    between: dict[int, list[str]] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def neuron_calls(self) -> list[NeuronCall]:
        """Those of neurons."""
        return [call for call in self.calls if isinstance(call, NeuronCall)]

    @property
    def synapse_calls(self) -> list[SynapseCall]:
        """Those of synapses."""
        return [call for call in self.calls if isinstance(call, SynapseCall)]


def record(model: nn.Module, drive: Drive, clock: Clock, left_alone: set[str], supervised: range | None = None) -> Tape:
    """Runs a batch through a copy of the model.

    Args:
        model: The copy; hooks are removed again.
        drive: How to run it.
        clock: What tells time steps apart.
        left_alone: Names of modules that are no synapses or neurons here, whatever they are.
        supervised: The steps whose losses count, where the model is called once per step.
    """
    recorder = _Recorder(model, clock, left_alone)
    with recorder.attached():
        recorder.tape.loss = drive.loss(model, recorder.at_step, supervised)
    return recorder.tape


class _Recorder:
    def __init__(self, model: nn.Module, clock: Clock, left_alone: set[str]) -> None:
        self.tape = Tape(clock)
        self.model = model
        self.left_alone = left_alone
        self.driven: int | None = None  # the step, where the driver knows it
        self.made: Counter[str] = Counter()  # calls so far, by name
        self.on = True
        self.seen: list[str] = []

    # Which module is what.

    def attached_modules(self) -> Iterator[tuple[str, nn.Module]]:
        hidden: set[int] = set()
        for name, module in self.model.named_modules():
            if name in self.left_alone:
                hidden.update(id(child) for child in module.modules())
            if id(module) not in hidden:
                yield name, module

    def modules_left_alone(self) -> Iterator[tuple[str, nn.Module]]:
        hidden: set[int] = set()
        for name, module in self.model.named_modules():
            if name in self.left_alone and id(module) not in hidden:
                hidden.update(id(child) for child in module.modules())
                yield name, module

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles: list[Any] = []
        undo: list[Callable[[], None]] = []
        for name, module in self.modules_left_alone():
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: self.count(name)))
            handles.append(module.register_forward_hook(lambda m, args, output, name=name: self.boundary(name, output)))
        for name, module in self.attached_modules():
            adapter = find_adapter(module)
            if adapter is not None:
                neuron = _WatchedNeuron(self, name, module, adapter)
                undo.append(neuron.install())
                handles.append(module.register_forward_pre_hook(neuron.before, with_kwargs=True))
                handles.append(module.register_forward_hook(neuron.after))
            elif (kind := find_synapse(module)) is not None:
                hook = _AfterSynapse(self, name, kind.trainable(module), kind.input_name)
                handles.append(module.register_forward_pre_hook(hook.count))
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            elif (keeper := find_keeper(module)) is not None:
                if not keeper.accumulates:  # a running sum that the loss reads later keeps its graph
                    cut = lambda m, args, keeper=keeper: keeper.change(m, Tensor.detach)  # noqa: E731
                    handles.append(module.register_forward_pre_hook(cut))
            elif not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(lambda m, a, o, name=name: self.seen.append(name)))
        try:
            yield
        finally:
            self.on = False
            for handle in handles:
                handle.remove()
            for function in undo:
                function()

    # Time.

    def at_step(self, t: int) -> None:
        """Told by the driver, where it calls the model once per step."""
        self.driven = t

    def count(self, name: str) -> None:
        """A call of a module begins."""
        self.made[name] += 1

    def step_of(self, name: str) -> int:
        """The time step of the running call of a module."""
        if self.driven is not None:
            return self.driven
        return self.tape.clock.step(name, self.made[name] - 1, self.made[self.tape.clock.pace or ""])

    # Cutting.

    def next_order(self) -> int:
        order = len(self.tape.calls)
        self.tape.between[order], self.seen = self.seen, []
        return order

    def synapse(
        self, name: str, step: int, x: Tensor, output: Tensor, weights: list[nn.Parameter], again: Callable[..., Tensor]
    ) -> Tensor:
        """Notes a call and returns what goes on in place of its output."""
        order = self.next_order()
        cut, onwards = _cut(output, step, order)
        # A copy of the input, which the user may change in place afterwards.
        self.tape.calls.append(SynapseCall(name, x.detach().clone(), x.detach(), cut, weights, again))
        return onwards

    def boundary(self, name: str, output: Any) -> Any:
        """Cuts all that a module gives out that is left alone."""
        step = self.step_of(name)

        def cut(tensor: Tensor) -> Tensor:
            if not self.on or not tensor.requires_grad:
                return tensor
            cut, onwards = _cut(tensor, step, self.next_order())
            self.tape.calls.append(
                SynapseCall(name, tensor.detach(), tensor.detach(), cut, [], lambda x: x, boundary=True)
            )
            return onwards

        return map_tensors(output, cut)


def _cut(value: Tensor, step: int, order: int) -> tuple[Cut, Tensor]:
    leaf = value.detach().clone().requires_grad_()
    return Cut(value, leaf, step, order), leaf.clone()  # a clone may be changed in place, a leaf may not


class _AfterSynapse:
    def __init__(self, recorder: _Recorder, name: str, weights: list[nn.Parameter], input_name: str) -> None:
        self.recorder, self.name, self.weights, self.input_name = recorder, name, weights, input_name

    def count(self, module: nn.Module, args: Any) -> None:
        if self.recorder.on:
            self.recorder.count(self.name)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.recorder.on or not isinstance(output, Tensor):
            return None
        x = args[0] if args else kwargs[self.input_name]

        def again(other: Tensor) -> Tensor:
            if args:
                return module.forward(other, *args[1:], **kwargs)  # type: ignore[no-any-return]
            return module.forward(**{**kwargs, self.input_name: other})  # type: ignore[no-any-return]

        return self.recorder.synapse(self.name, self.recorder.step_of(self.name), x, output, self.weights, again)


class _Heard:
    """Stands in for a neuron's spike function and notes the arguments of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.arguments: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            self.arguments.append(args[0])
        return self.function(*args, **kwargs)


class _WatchedNeuron:
    def __init__(self, recorder: _Recorder, name: str, module: nn.Module, adapter: NeuronAdapter) -> None:
        self.recorder, self.name, self.module, self.adapter = recorder, name, module, adapter
        self.heard: _Heard | None = None
        self.tap: MembraneTap
        self.mode: AbstractContextManager[Any] | None = None
        # By layer, the states that its last call returned.
        self.returned: list[list[Tensor]] = []
        self.arriving: list[Tensor] = []
        self.in_step: Counter[int] = Counter()

    def install(self) -> Callable[[], None]:
        """Puts the taps in; returns what takes them out."""
        function = self.adapter.spike_function(self.module) if self.adapter.spiking else None
        name = next((key for key, value in vars(self.module).items() if value is function), None)
        if function is not None and name is not None:
            self.heard = _Heard(function)
            self.module.__dict__[name] = self.heard
        self.tap = self.adapter.make_tap(self.module)
        self.tap.install()

        def out() -> None:
            self.tap.uninstall()
            if name is not None and function is not None:
                self.module.__dict__[name] = function

        return out

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.recorder.on:
            return None
        self.recorder.count(self.name)
        self.arriving = list(_tensors((args[1:], kwargs)))
        args, kwargs, _ = self.adapter.detach_states(module, args, kwargs)
        self.tap.clear()
        self.tap.open = True
        if self.heard is not None:
            self.heard.arguments.clear()
        if self.adapter.weight_names:
            self.mode = _OwnWeights(self)
            self.mode.__enter__()
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.recorder.on:
            return None
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None
        self.tap.open = False
        step = self.adapter.read_step(module, self.tap, output)
        decided, agrees = self._decision(step)
        number, order = self.recorder.step_of(self.name), self.recorder.next_order()
        cuts: dict[int, Cut] = {}
        onwards: dict[int, Tensor] = {}

        def cut(tensor: Tensor) -> Tensor:
            if id(tensor) not in onwards and (tensor is step.spikes or tensor.requires_grad):
                cuts[id(tensor)], onwards[id(tensor)] = _cut(tensor, number, order)
            return onwards.get(id(tensor), tensor)

        result = self.adapter.replace(module, output, cut)
        spikes = None if step.spikes is None else cuts.pop(id(step.spikes))
        layer = self._layer(number, list(onwards.values()))
        states = list(cuts.values())
        call = NeuronCall(self.name, module, self.adapter, layer, decided, step, spikes, states, agrees, number, order)
        self.recorder.tape.calls.append(call)
        self.tap.clear()
        return result

    def _decision(self, step: NeuronStep) -> tuple[Tensor, bool]:
        """What was compared with zero, and whether it explains the spikes.

        The argument of the spike function is asked first: where a subclass compares with a threshold of its own, the
        adapter's membrane - threshold is not what decided.
        """
        if step.spikes is None or step.threshold_distance is None:
            assert step.membrane is not None
            return step.membrane, True
        for argument in reversed([] if self.heard is None else self.heard.arguments):
            if argument.shape == step.spikes.shape and _leads_to(argument, step.spikes):
                if _explains(argument, step):
                    return argument, True
        return step.threshold_distance, _explains(step.threshold_distance, step)

    def _layer(self, number: int, returned: list[Tensor]) -> int:
        """The layer whose states came in: where they are not known (a first step), by the order within the step."""
        place = self.in_step[number]
        self.in_step[number] += 1
        layer = next(
            (n for n, states in enumerate(self.returned) if any(a is s for a in self.arriving for s in states)), None
        )
        if layer is None:
            keeps = self.adapter.keeps_state(self.module) or self.recorder.tape.clock.num_steps is None
            layer = 0 if keeps else place
        while len(self.returned) <= layer:
            self.returned.append([])
        self.returned[layer] = returned
        return layer


def _leads_to(argument: Tensor, spikes: Tensor) -> bool:
    if not argument.requires_grad or not spikes.requires_grad:
        return False
    (found,) = torch.autograd.grad(spikes.sum(), argument, retain_graph=True, allow_unused=True)
    return found is not None


def _explains(v: Tensor, step: NeuronStep) -> bool:
    """Whether the neuron spiked where v > 0 (at 0 libraries differ) and nothing stood against it."""
    assert step.spikes is not None
    fired, above = step.spikes.detach() != 0, v.detach() > 0
    if v.shape != fired.shape:
        return False
    if step.gate is not None:
        above = above & (step.gate != 0)
    return bool(((fired == above) | (v.detach() == 0)).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


class _OwnWeights(TorchFunctionMode):
    """Notes a neuron's ``linear`` calls on weights that it holds itself."""

    def __init__(self, neuron: _WatchedNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def __enter__(self) -> Any:
        self.cache = parametrize.cached()  # a parametrized weight is then one tensor, and can be recognised
        self.cache.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.cache.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        neuron, recorder = self.neuron, self.neuron.recorder
        if func is functional.linear and len(args) >= 2:
            for weight_name in neuron.adapter.weight_names:
                weight = getattr(neuron.module, weight_name)
                if args[1] is weight:
                    output = recorder.synapse(
                        f"{neuron.name}.{weight_name}".lstrip("."),
                        recorder.step_of(neuron.name),
                        args[0],
                        func(*args, **kwargs),
                        _parameters_of(neuron.module, weight_name),
                        partial(_linear, weight),
                    )
                    neuron.tap.currents.append(output)
                    return output
        return func(*args, **kwargs)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, weight)


def _parameters_of(module: nn.Module, name: str) -> list[nn.Parameter]:
    if parametrize.is_parametrized(module, name):
        found = list(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    else:
        found = [module._parameters[name]] if module._parameters.get(name) is not None else []
    return [parameter for parameter in found if parameter.requires_grad]
