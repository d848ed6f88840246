"""Torch modules of snnTorch and Norse from the networks of tests.oracles.spec."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from stllr_plugin.synapses import Synapse, register_synapse
from tests.cases.neuron_modules import make_neuron
from tests.oracles.between import combine
from tests.oracles.spec import SEQUENCES, SNNTORCH, Net, Node

CONV_OPTIONS = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")


class Standardise(nn.Module):
    """A weight parametrization with a parameter of its own: rows of mean 0 and norm ``gain``."""

    def __init__(self, rows: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(rows, 1))
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        var, mean = torch.var_mean(flat, 1, keepdim=True)
        return (self.gain * (flat - mean) / torch.sqrt(var * flat.shape[1] + self.eps)).reshape(weight.shape)


class TransposedLinear(nn.Module):
    """A linear layer that uses the weight of another one the other way round: weight is [in, out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.t(), self.bias)


@register_synapse(TransposedLinear)
class TransposedSynapse(Synapse):
    input_name = "x"

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).t() @ g.reshape(-1, g.shape[-1])


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class MeanHW(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _synapse(node: Node, net: Net) -> nn.Module:
    bias = f"{node.name}.bias" in net.params
    if "tied" in node.options:
        shape = net.params[f"{node.options['tied']}.weight"].shape
    elif f"{node.name}.weight" in net.params:
        shape = net.params[f"{node.name}.weight"].shape
    else:
        shape = net.params[f"{node.name}.parametrizations.weight.original{node.options.get('original', '')}"].shape
    if node.options.get("transposed"):
        module: nn.Module = TransposedLinear(*shape, bias=bias)
    elif node.kind == "Linear":
        module = nn.Linear(shape[1], shape[0], bias=bias)
    else:
        options = {k: node.options[k] for k in CONV_OPTIONS if k in node.options}
        groups = options.get("groups", 1)
        if node.kind.startswith("ConvTranspose"):
            channels = (shape[0], shape[1] * groups)
        else:
            channels = (shape[1] * groups, shape[0])
        module = getattr(nn, node.kind)(*channels, tuple(shape[2:]), bias=bias, **options)
    if node.options.get("parametrization") == "weight_norm":
        parametrizations.weight_norm(module)
    elif node.options.get("parametrization") == "standardise":
        parametrize.register_parametrization(module, "weight", Standardise(shape[0]))
    return module


def _between(node: Node, net: Net) -> nn.Module:
    if node.kind.startswith("BatchNorm"):
        return getattr(nn, node.kind)(net.params[f"{node.name}.weight"].numel())
    if node.kind == "GroupNorm":
        return nn.GroupNorm(node.options["groups"], net.params[f"{node.name}.weight"].numel())
    if node.kind in ("AvgPool2d", "MaxPool2d"):
        return getattr(nn, node.kind)(node.options["size"])
    if node.kind == "Scale":
        return Scale(node.options["factor"])
    if node.kind == "Upsample":
        return nn.Upsample(scale_factor=node.options["factor"])
    if node.kind in ("Product", "Concat"):
        return nn.Identity()
    return {"Tanh": nn.Tanh, "Flatten": nn.Flatten, "MeanHW": MeanHW}[node.kind]()


def make_module(node: Node, net: Net, dtype: torch.dtype, hidden: bool = False) -> nn.Module:
    if node.is_synapse:
        return _synapse(node, net)
    if node.is_neuron:
        return make_neuron(node, net, dtype, hidden)
    return _between(node, net)


class CaseNet(nn.Module):
    """One time step of a network: ``net(x, state) -> (outputs, state)``.

    The modules carry the names of their nodes. ``hidden`` gives snnTorch neurons ``init_hidden=True``: then their state
    lives in them, and ``state`` only carries what Norse cells return. Where the neurons run sequences, they and all
    layers between them receive a sequence: of one step if ``x`` is [B, F], and what comes out is [B, ...] again.
    """

    def __init__(self, net: Net, *, dtype: torch.dtype = torch.float64, hidden: bool = False) -> None:
        super().__init__()
        self.net, self.hidden = net, hidden
        self.runs_sequences = any(node.kind in SEQUENCES for node in net.nodes)
        for node in net.nodes:
            if "shares" not in node.options:
                self.add_module(node.name, make_module(node, net, dtype, hidden))
        self.to(dtype)
        for node in net.nodes:
            if "tied" in node.options:  # two modules, one Parameter
                getattr(self, node.name).weight = getattr(self, node.options["tied"]).weight
        load(self, net)
        self.values: dict[str, Tensor] = {}

    def forward(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state, new_state = state or {}, {}
        one_step = self.runs_sequences and x.dim() == 2
        values = {"x": x.unsqueeze(0) if one_step else x}
        for node in self.net.nodes:
            value = self._incoming(node, values, state)
            module = getattr(self, node.options.get("shares", node.name))
            if not node.is_neuron:
                values[node.name] = module(value)
                continue
            if node.kind in SNNTORCH:
                out, new_state[node.name], mem = self._call_snntorch(node, module, value, state.get(node.name))
            else:
                out, new_state[node.name] = module(value, state.get(node.name))
                mem = membrane_of(new_state[node.name])
            values[node.name], values[f"{node.name}.mem"] = out, mem
        new_state |= {f"{name}@before": values[name] for name in self.net.shared_from_before()}
        self.values = {k: v.detach() for k, v in values.items() if v is not None}
        outputs = {name: values[name] for name in self.net.outputs}
        if one_step:  # the membranes in Norse's states have no time dimension
            outputs = {k: v.squeeze(0) if v.dim() == values["x"].dim() else v for k, v in outputs.items()}
        return outputs, new_state

    def _incoming(self, node: Node, values: dict[str, Tensor], state: dict[str, Any]) -> Tensor:
        inputs = []
        for name in node.inputs:
            if not name.endswith("@before"):
                inputs.append(values[name])
            elif name in state:
                inputs.append(state[name])
            else:
                inputs.append(values["x"].new_zeros(len(values["x"]), *node.options["start"]))
        return combine(node, inputs)

    def _call_snntorch(self, node: Node, module: nn.Module, current: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        if node.kind in ("StateLeaky", "LinearLeaky"):
            returned = module(current)
            return (returned[0], None, returned[1]) if isinstance(returned, tuple) else (returned, None, returned)
        if node.kind == "DeltaLeaky":  # its state is a pair, also where it keeps one itself
            out, state = module(current) if self.hidden else module(current, state or module.reset_mem())
            return out, None if self.hidden else state, state[0]
        if self.hidden:
            returned = module(current)
            returned = returned if isinstance(returned, tuple) else (returned, None)
            return returned[0], None, returned[-1]
        if state is None:
            state = module.reset_mem()
            state = state if isinstance(state, tuple) else (state,)
        returned = module(current, *state)
        # RLeaky and RSynaptic return the spikes both as output and as the first state
        return returned[0], returned if node.kind.startswith("R") else returned[1:], returned[-1]


def membrane_of(state: Any) -> Tensor:
    """The membrane in a state of Norse's; that of a refractory neuron lies within another state."""
    while not hasattr(state, "v"):
        state = state[0]
    return state.v


def load(module: nn.Module, net: Net, rename: Callable[[str], str] = lambda name: name) -> None:
    """Copy the values of ``net`` into the parameters of ``module``; every parameter must be known."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(net.params[rename(name)])


def as_sequential(net: Net, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same network as an ``nn.Sequential`` of modules with hidden states (a chain without ``.mem`` inputs)."""
    modules = OrderedDict((node.name, make_module(node, net, dtype, hidden=True)) for node in net.nodes)
    sequential = nn.Sequential(modules).to(dtype)
    load(sequential, net)
    return sequential


def as_sequential_state(net: Net, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same network as Norse's ``SequentialState``, whose children are named by their position."""
    import norse.torch as norse

    module = norse.SequentialState(*[make_module(node, net, dtype) for node in net.nodes]).to(dtype)
    names = [node.name for node in net.nodes]
    load(module, net, lambda name: ".".join([names[int(name.split(".")[0])], *name.split(".")[1:]]))
    return module


def fan_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])
