"""The networks: snnTorch's from lightning_modules, and the same layers in SpikingJelly."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

import lightning_modules.networks as library
from benchmarks.speed.settings import SettingsError, Workload
from lightning_modules.networks.blocks import LeakyReadout

CHAINS = ("RecurrentSNN", "SpikingMLP", "SpikingVGG")  # their modules run in the order in which they are listed
NO_THRESHOLD = 1e9  # of a node that never fires; with infinity SpikingJelly's reset gives NaN


def build_network(workload: Workload) -> nn.Module:
    """The snnTorch network of a workload, always with the same weights.

    Raises:
        SettingsError: If there is no such network, or its arguments do not fit.
    """
    arguments = dict(workload.network)
    name = arguments.pop("class")
    if name not in library.__all__:
        raise SettingsError(f"network: no class {name!r} in lightning_modules.networks; {', '.join(library.__all__)}.")
    torch.manual_seed(0)
    try:
        network: nn.Module = getattr(library, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"network: {error}") from error
    return network


def firing_rates(network: nn.Module, x: Tensor) -> dict[str, float]:
    """Share of ones in the output of each spiking layer, over a forward pass of the sequence x [T, B, ...].

    The states are those of a sequence that has ended: reset them afterwards.
    """
    sums: dict[str, list[float]] = {}
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            sums.setdefault(name, []).append(float(output.float().mean()))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, (snn.Leaky, snn.RLeaky)) and not module.output:
            handles.append(module.register_forward_hook(watch(name)))
    with torch.no_grad():
        for frame in x:
            network(frame)
    for handle in handles:
        handle.remove()
    return {name: sum(values) / len(values) for name, values in sums.items()}


def has_spikingjelly() -> bool:
    """Whether SpikingJelly is installed."""
    return importlib.util.find_spec("spikingjelly") is not None


class _Membrane(nn.Module):
    """A node that never fires, read out at its membrane."""

    def __init__(self, node: nn.Module, multi_step: bool) -> None:
        super().__init__()
        self.node, self.multi_step = node, multi_step

    def forward(self, x: Tensor) -> Tensor:
        self.node(x)
        membrane: Tensor = self.node.v_seq if self.multi_step else self.node.v  # type: ignore[assignment]
        return membrane


class _RecurrentNode(nn.Module):
    """A node whose last spikes come back through a linear layer; SpikingJelly's own container joins input and spikes.

    The input projection before it has all steps at once in multi-step mode; what comes back must go step by step.
    """

    def __init__(self, node: nn.Module, recurrent: nn.Module, multi_step: bool) -> None:
        super().__init__()
        self.node, self.recurrent, self.multi_step = node, recurrent, multi_step
        self.spikes: Tensor | None = None

    def reset_spikes(self) -> None:
        """Before a new sequence."""
        self.spikes = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.multi_step:
            self.spikes = self._step(x, None if self.spikes is None else self.spikes.detach())
            return self.spikes
        record, spikes = [], None
        for current in x:
            spikes = self._step(current, spikes)
            record.append(spikes)
        return torch.stack(record)

    def _step(self, current: Tensor, spikes: Tensor | None) -> Tensor:
        back = self.recurrent(torch.zeros_like(current) if spikes is None else spikes)
        new: Tensor = self.node(current + back)
        return new


def build_spikingjelly(workload: Workload, online: bool) -> nn.Module:
    """The same layers with SpikingJelly's nodes.

    Decay, threshold, surrogate and weights are the same. Two things differ: snnTorch takes the threshold off one step
    after the spike, SpikingJelly at once; and fast_sigmoid's derivative has another height in SoftSign.

    Args:
        workload: The workload; its network must be a chain.
        online: With SLTT's nodes, and one step per call; else multi-step, [T, B, ...] per call.

    Raises:
        SettingsError: If the network is none that can be translated.
    """
    if workload.network["class"] not in CHAINS:
        raise SettingsError(f"for SpikingJelly the network must be one of {', '.join(CHAINS)}.")
    from spikingjelly.activation_based import layer, neuron, surrogate

    network = build_network(workload)
    defaults = inspect.signature(type(network)).parameters
    kind = workload.network.get("surrogate", defaults["surrogate"].default)
    slope = float(workload.network.get("slope", defaults["slope"].default))
    surrogates = {"atan": surrogate.ATan, "fast_sigmoid": surrogate.SoftSign, "sigmoid": surrogate.Sigmoid}

    def node(leaky: Any, fires: bool) -> nn.Module:
        options: dict[str, Any] = {} if online else {"store_v_seq": not fires}
        in_one_call = not online and not isinstance(leaky, snn.RLeaky)
        made: nn.Module = (neuron.SLTTLIFNode if online else neuron.LIFNode)(
            tau=1 / (1 - float(leaky.beta)),
            decay_input=False,
            v_threshold=float(leaky.threshold) if fires else NO_THRESHOLD,
            v_reset=None,
            surrogate_function=surrogates[kind](alpha=slope),
            detach_reset=True,
            step_mode="m" if in_one_call else "s",
            **options,
        )
        return made

    modules: list[nn.Module] = []
    stateless: list[nn.Module] = []

    def close() -> None:
        if stateless and online:
            modules.extend(stateless)
        elif stateless:
            modules.append(layer.SeqToANNContainer(*stateless))
        stateless.clear()

    for module in _chain(network):
        if isinstance(module, snn.RLeaky):
            close()
            modules.append(_RecurrentNode(node(module, True), copy.deepcopy(module.recurrent), not online))
        elif isinstance(module, snn.Leaky):
            close()
            fires = not module.output
            made = node(module, fires)
            modules.append(made if fires else _Membrane(made, not online))
        else:
            stateless.append(copy.deepcopy(module))
    close()
    return nn.Sequential(*modules)


def reset_spikingjelly(network: nn.Module) -> None:
    """Before a new sequence."""
    from spikingjelly.activation_based import functional

    functional.reset_net(network)
    for module in network.modules():
        if isinstance(module, _RecurrentNode):
            module.reset_spikes()


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """The layers, one after the other."""
    for child in module.children():
        if isinstance(child, (nn.Sequential, LeakyReadout)):
            yield from _chain(child)
        else:
            yield child
