"""Operations that the spikes of a trained network really cause, synapse by synapse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_modules.comparison.costs import Learning
from lightning_modules.comparison.signal_costs import price_of
from lightning_modules.tasks.base import SpikingTask
from lightning_modules.tasks.states import spikes_of, spiking_modules
from lightning_modules.tasks.step_weights import step_weights, valid_steps

SAMPLES = 128
"""Test samples that are counted, at most."""

STEPS = 25_000
"""Time steps of samples after which counting ends: long sequences need fewer samples for the same precision."""

AMOUNTS = ("forward_additions", "forward_macs", "dense_macs", "learning_additions", "learning_macs")

_SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_READOUTS = ("readout*", "*.readout*")

Edges = list[dict[str, Any]]


def count_operations(
    task: SpikingTask,
    loader: Iterable[Any],
    edges: Edges | None,
    signal: str = "bp",
    device: torch.device | str = "cpu",
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Run test samples and count, per sample; padding is left out.

    An input of 0 causes no operation. An input of 1 (a spike) causes one addition for each neuron that it reaches, any
    other input one multiplication with addition. The products of learning that make weight gradients are counted in
    the same way, with presynaptic traces, which are not 0 once a spike has come, in place of inputs where the rule has
    them. The product that takes the signal to the layer below counts as dense. So do those that make the signal of a
    hidden layer from a matrix of its own (a classifier, random feedback); products with -1 and 1 alone are additions.

    Args:
        task: The task; its network must be free of a learner.
        loader: Batches (frames, lengths, labels).
        edges: The learner's edges as plain data; None for backpropagation through time.
        signal: Learning signal of hidden layers.
        device: Where to run.
        samples: Count at most so many samples (whole batches, at least one), fewer of long ones (`STEPS`).

    Returns:
        The `AMOUNTS` per sample; ``connections`` and ``neurons`` of the network; ``rates`` by spiking layer; ``layers``
        with the amounts of each synapse; ``samples``, the number that was counted.

    Raises:
        ValueError: What the signal costs is not known.
    """
    meter = _Meter(task, Learning.of(edges, signal), edges or [])
    training, home, seen, steps = task.training, task.device, 0, 0
    task.eval().to(device)
    try:
        with torch.no_grad():
            for batch in loader:
                frames, lengths = (part.to(device) for part in batch[:2])
                meter.begin(lengths, frames.shape[1])
                task(frames, lengths)
                seen += len(frames)
                steps += int(lengths.sum())
                if seen >= samples or steps >= STEPS:
                    break
    finally:
        meter.remove()
        task.train(training).to(home)
    return meter.summary(seen)


class _Meter:
    """Listens to the synapses and neurons of a network."""

    def __init__(self, task: SpikingTask, learning: Learning, edges: Edges) -> None:
        self.task = task
        self.learning = learning
        self._price = price_of(learning.signal)
        self.edges = {edge["synapse"]: edge for edge in edges}
        self.layers: dict[str, dict[str, Any]] = {}
        self.rates: dict[str, list[float]] = {}
        self.neurons: dict[str, int] = {}
        self.signals: dict[str, dict[str, Any]] = {}
        self._traces: dict[str, Tensor] = {}
        self._t = -1
        self._input = 0
        self._modes: list[_OwnLinear] = []
        self._handles = [task.network.register_forward_pre_hook(self._next_step)]
        spiking = spiking_modules(task.network, _READOUTS)
        for name, module in task.network.named_modules():
            if isinstance(module, _SYNAPSES):
                recurrent = any(name.startswith(f"{neuron}.") for neuron in spiking)
                self.layers[name] = {"kind": type(module).__name__.removeprefix("Parametrized"), "recurrent": recurrent}
                self._handles.append(module.register_forward_hook(self._synapse(name)))
            elif own := _own_weights(module):
                for weight in own:
                    self.layers[f"{name}.{weight}"] = {"kind": "own weights", "recurrent": "recurrent" in weight}
                self._handles.append(module.register_forward_pre_hook(self._enter(name, own)))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        for name, module in spiking.items():
            self.rates[name] = [0.0, 0.0]
            self._handles.append(module.register_forward_hook(self._neuron(name)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def begin(self, lengths: Tensor, num_steps: int) -> None:
        """A new batch of sequences."""
        self._traces.clear()
        self._t = -1
        self._valid = valid_steps(lengths, num_steps).to(torch.float64)  # [T, B]
        self._supervised = (step_weights(lengths, num_steps, self.task.supervise_last) > 0).to(torch.float64)
        self._supervised[: getattr(self.task, "skip_first", 0)] = 0

    def _next_step(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._t += 1
        self._input = args[0].untyped_storage().data_ptr()

    def _synapse(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.run(name, module, args[0].detach(), output[0].numel())

        return hook

    def run(self, name: str, module: Any, x: Tensor, outputs: int) -> None:
        """A synapse was used.

        Args:
            name: Its name.
            module: A linear or convolutional layer of its size.
            x: Its input, [B, ...].
            outputs: Number of values that it puts out for a sample.
        """
        layer, valid = self.layers[name], self._valid[self._t]
        if "connections" not in layer:
            layer["outputs"] = outputs
            layer["connections"] = layer["outputs"] * _fan_in(module)
            layer["first"] = x.untyped_storage().data_ptr() == self._input
        spikes, others = _reached(module, x == 1), _reached(module, (x != 0) & (x != 1))
        self._add(layer, "forward_additions", spikes * valid)
        self._add(layer, "forward_macs", others * valid)
        self._add(layer, "dense_macs", layer["connections"] * valid)
        self._learn(name, module, x != 0, spikes, others)

    def _enter(self, name: str, own: dict[str, nn.Parameter]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._modes.append(_OwnLinear(self, name, own))
            self._modes[-1].__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _learn(self, name: str, module: Any, inputs: Tensor, spikes: Tensor, others: Tensor) -> None:
        """Products of one step: weight gradients, and the signal for the layer below."""
        layer, edge = self.layers[name], self.edges.get(name)
        rule = edge["rule"] if edge else {"alpha_pre": 1.0, "lambda_pre": 0.0, "alpha_post": 0.0}
        traced = bool(rule["lambda_pre"])
        if traced:
            inputs = self._traces[name] = self._traces.get(name, inputs) | inputs
        when = self._valid[self._t] if self.learning.through_time else self._supervised[self._t]
        spiking = bool(edge and edge["spiking"] and self._spikes_count(edge["neuron"]))
        terms = int(bool(rule["alpha_pre"] and not traced) or (not spiking and not traced))
        terms += int(spiking and bool(rule["alpha_post"]))
        self._add(layer, "learning_additions", terms * spikes * when)
        self._add(layer, "learning_macs", terms * others * when)
        if traced and (rule["alpha_pre"] or not spiking):
            self._add(layer, "learning_macs", _reached(module, inputs) * when)
        recurrent = layer["recurrent"] and not self.learning.through_time
        if self.learning.taken_down and not recurrent and not layer["first"]:
            self._add(layer, "learning_macs", layer["connections"] * when)

    def _spikes_count(self, neuron: str) -> bool:
        """Whether it is a hidden neuron; of a readout's, the loss sees the membrane alone."""
        return any(neuron == name or neuron.startswith(f"{name}.") for name in self.rates)

    def _neuron(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            spikes, valid = spikes_of(output).detach().flatten(1), self._valid[self._t]
            self.neurons[name] = spikes.shape[1]
            self.rates[name][0] += float((spikes.mean(1, dtype=torch.float64) * valid).sum())
            self.rates[name][1] += float(valid.sum())
            if self.learning.signal != "bp":
                self._make_signal(name, spikes_of(output).detach())

        return hook

    def _make_signal(self, name: str, spikes: Tensor) -> None:
        """Products of one step that make the signal of a hidden layer of [B, n, ...] neurons."""
        when = self._supervised[self._t]
        layer = self.signals.setdefault(name, {"kind": self.learning.signal, "connections": 0})
        cost = self._price(spikes, int(self.task.num_classes))  # type: ignore[arg-type]
        self._add(layer, "learning_additions", cost.additions * when)
        self._add(layer, "learning_macs", cost.macs * when)

    @staticmethod
    def _add(layer: dict[str, Any], what: str, amount: Tensor) -> None:
        layer[what] = layer.get(what, 0.0) + float(amount.sum())

    def summary(self, samples: int) -> dict[str, Any]:
        """All that was counted, per sample."""
        ran = {name: layer for name, layer in self.layers.items() if "connections" in layer}
        readouts = sum(layer["outputs"] for layer in list(ran.values())[-1:])
        ran |= {f"{name}: {layer['kind']}": layer for name, layer in self.signals.items()}
        for layer in ran.values():
            for what in AMOUNTS:
                layer[what] = layer.get(what, 0.0) / max(samples, 1)
        return {
            **{what: sum(layer[what] for layer in ran.values()) for what in AMOUNTS},
            "connections": sum(layer["connections"] for layer in ran.values()),
            "neurons": sum(self.neurons.values()) + readouts,
            "rates": {name: total / max(count, 1.0) for name, (total, count) in self.rates.items()},
            "layers": ran,
            "samples": samples,
        }


class _OwnLinear(TorchFunctionMode):
    """Listens to the ``linear`` calls of a neuron on weights of its own, as Norse's recurrent cells have them."""

    def __init__(self, meter: _Meter, name: str, own: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.meter, self.name, self.own = meter, name, own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is functional.linear and len(args) >= 2:
            for weight, parameter in self.own.items():
                if args[1] is parameter:
                    layer = nn.Linear(parameter.shape[1], parameter.shape[0], bias=False, device="meta")
                    self.meter.run(f"{self.name}.{weight}", layer, args[0].detach(), parameter.shape[0])
        return output


def _own_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that a Norse cell holds itself."""
    if not type(module).__module__.startswith("norse."):
        return {}
    return {name: one for name, one in module.named_parameters(recurse=False) if name.endswith("_weights")}


def _fan_in(module: Any) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    size = 1
    for side in module.kernel_size:
        size *= side
    return int(size * module.in_channels // module.groups)


def _reached(module: Any, inputs: Tensor) -> Tensor:
    """How many pairs of an input and a neuron that it reaches there are, per sample [B]; borders are counted exactly.

    Args:
        module: A linear or convolutional layer.
        inputs: The inputs that count, bool, [B, ...].
    """
    mask = inputs.to(torch.float32)
    if isinstance(module, nn.Linear):
        return mask.flatten(1).sum(1, dtype=torch.float64) * module.out_features
    ones = mask.new_ones(module.groups, module.in_channels // module.groups, *module.kernel_size)
    convolve = _CONVOLUTIONS[len(module.kernel_size)]
    pairs = convolve(mask, ones, None, module.stride, module.padding, module.dilation, module.groups)
    per_group: Tensor = pairs.flatten(1).sum(1, dtype=torch.float64)
    return per_group * int(module.out_channels // module.groups)
