"""The cases: every supported neuron x reset, every synapse, and what may stand between them.

Constants are exact in binary, so that a float32 network and the float64 oracle mean the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.oracles.neurons import look_up
from tests.oracles.spec import NORSE_READOUT, SNNTORCH, Net, Node
from tests.oracles.stllr import Oracle, Rule

RULES: dict[str, Rule] = {
    "default": Rule(),
    "paper": Rule(alpha_pre=0.75, alpha_post=1.0, lambda_post=0.25, psi="sigmoid", convention="paper"),
    "surrogate": Rule(lambda_pre=0.5, alpha_post=-1.0, psi="rational", propagate="surrogate"),
    "own_psi": Rule(alpha_post=-0.5, psi=None),
    "own_all": Rule(lambda_pre=1.0, alpha_post=0.5, psi=None, propagate="surrogate", convention="paper"),
    "callable": Rule(lambda_pre=0.25, psi=lambda v: torch.exp(-v * v)),
    "narrow": Rule(lambda_pre=0.75, alpha_post=-1.0, lambda_post=0.25, psi="inverse_square"),
}
SLTT = Rule(alpha_pre=1.0, lambda_pre=0.0, alpha_post=0.0, lambda_post=0.0, psi=None, propagate="surrogate")

# what the inputs of a neuron must be multiplied with for it to fire in a few steps
_CURRENT = {
    "LIFCell": 8.0,
    "LIFRecurrentCell": 8.0,
    "LIFBoxCell": 10.0,
    "Lapicque": 6.0,
    "LICell": 4.0,
    "LIBoxCell": 4.0,
}


@dataclass(frozen=True)
class Case:
    """A network with an input sequence [T, B, ...]."""

    id: str
    net: Net
    xs: Tensor
    hidden: bool = False

    def loss(self, outputs: Mapping[str, Tensor], t: int) -> Tensor:
        return case_loss(outputs, t)


def case_loss(outputs: Mapping[str, Tensor], t: int = 0) -> Tensor:
    """A smooth function of everything in ``outputs``, another one at every step, with interactions."""
    total: Tensor | float = 0.0
    mixed: Tensor | float = 0.0
    for i, value in enumerate(outputs.values()):
        flat = value.flatten(1)
        position = torch.arange(flat.shape[1], dtype=torch.float64) + 1
        weight = torch.cos(position * (1.3 + i) + t).to(flat)
        target = torch.sin(position * 0.7 + 2 * t).to(flat)
        total = total + 0.5 * ((flat - target) ** 2).sum() / len(flat)
        mixed = mixed + flat @ weight
    assert isinstance(mixed, Tensor)
    return total + torch.tanh(mixed).sum()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _round(values: Tensor) -> Tensor:
    """Values that float32 holds exactly."""
    return values.float().double()


def weight(shape: tuple[int, ...], rng: torch.Generator, scale: float = 1.0) -> Tensor:
    fan_in = max(1, math.prod(shape[1:]))
    values = torch.rand(shape, generator=rng, dtype=torch.float64) * 3.0 - 1.2
    return _round(values * scale / math.sqrt(fan_in))


def bias(size: int, rng: torch.Generator, scale: float = 1.0) -> Tensor:
    return _round((torch.rand(size, generator=rng, dtype=torch.float64) - 0.4) * 0.3 * scale)


def spike_input(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Spikes, some of them graded: the rule holds for real inputs too."""
    spikes = (torch.rand(shape, generator=rng, dtype=torch.float64) < 0.5).double()
    return spikes * (1 + 0.5 * (torch.rand(shape, generator=rng, dtype=torch.float64) < 0.2))


def settle(build: Callable[[int], Case], margin: float = 2e-4, tries: int = 200) -> Case:
    """The first seed whose network fires, is not saturated and keeps every membrane away from its threshold."""
    for seed in range(tries):
        case = build(seed)
        result = Oracle(case.net, RULES["default"]).run(case.xs, None)
        rates = [spikes.mean().item() for spikes in result.spikes.values()]
        if all(0.03 < rate < 0.8 for rate in rates) and result.margin > margin:
            return case
    raise AssertionError(f"no seed settles {build(0).id}")


# ------------------------------------------------------------------------------------------------ neurons
@dataclass(frozen=True)
class NeuronSetup:
    """One neuron under test: kind, options and which of its constants are learned."""

    id: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learned: Mapping[str, Any] = field(default_factory=dict)
    hidden: bool = False


def _neuron_setups() -> list[NeuronSetup]:
    setups: list[NeuronSetup] = []
    resets = ("subtract", "zero", "none")
    leak = {"beta": 0.875, "alpha": 0.75, "threshold": 0.75}

    def add(kind: str, name: str, options: Mapping[str, Any], **kwargs: Any) -> None:
        options = {k: v for k, v in options.items() if k != "alpha" or "Synaptic" in kind}
        setups.append(NeuronSetup(f"{kind}-{name}", kind, options, **kwargs))

    for reset in resets:
        for delay in (True, False):
            late = "late" if delay else "now"
            common = {**leak, "reset_mechanism": reset, "reset_delay": delay}
            add("Leaky", f"{reset}-{late}", common)
            add("Synaptic", f"{reset}-{late}", common)
            for recurrent in ("linear", "conv", "one_to_one", "scalar"):
                add("RLeaky", f"{reset}-{late}-{recurrent}", {**common, "recurrent": recurrent})
        for recurrent in ("linear", "conv", "one_to_one", "scalar"):
            add("RSynaptic", f"{reset}-{recurrent}", {**leak, "reset_mechanism": reset, "recurrent": recurrent})
        add("Lapicque", reset, {"beta": 0.75, "threshold": 0.5, "reset_mechanism": reset})
    add("Lapicque", "rc", {"beta": 0, "R": 4.0, "C": 1.25, "threshold": 0.5})
    per_unit = torch.tensor([0.5, 0.75, 0.875, 0.625], dtype=torch.float64)
    learned = {"beta": per_unit, "threshold": torch.tensor(0.75, dtype=torch.float64)}
    for reset in resets:
        for delay in (True, False):
            late = "late" if delay else "now"
            options = {"reset_mechanism": reset, "reset_delay": delay}
            add("Leaky", f"{reset}-{late}-learned", options, learned=learned)
    add(
        "RLeaky",
        "zero-now-learned",
        {"reset_mechanism": "zero", "reset_delay": False, "recurrent": "linear"},
        learned=learned,
    )
    more = {**learned, "alpha": torch.tensor(0.5, dtype=torch.float64)}
    add("Synaptic", "subtract-now-learned", {"reset_delay": False}, learned=more)
    add("RSynaptic", "zero-learned", {"reset_mechanism": "zero", "recurrent": "linear"}, learned=more)
    add("Lapicque", "learned", {"beta": 0.75, "reset_mechanism": "zero"}, learned={"threshold": learned["threshold"]})
    add("Leaky", "fast_sigmoid", {**leak, "surrogate": ("fast_sigmoid", 4.0)})
    add("Leaky", "sigmoid", {**leak, "surrogate": ("sigmoid", 3.0)})
    # states inside the modules
    add("Leaky", "hidden", leak, hidden=True)
    add("Leaky", "hidden-now", {**leak, "reset_mechanism": "zero", "reset_delay": False}, hidden=True)
    add("Leaky", "hidden-spikes-only", {**leak, "output": False}, hidden=True)
    add("RLeaky", "hidden", {**leak, "recurrent": "linear", "reset_mechanism": "zero"}, hidden=True)
    add("RLeaky", "hidden-spikes-only", {**leak, "recurrent": "one_to_one", "output": False}, hidden=True)
    add("Synaptic", "hidden", leak, hidden=True)
    add("RSynaptic", "hidden", {**leak, "recurrent": "linear"}, hidden=True)
    add("RSynaptic", "hidden-spikes-only", {**leak, "recurrent": "conv", "output": False}, hidden=True)
    add("Lapicque", "hidden", {"beta": 0.75, "threshold": 0.5}, hidden=True)
    # Norse
    add("LIFCell", "default", {})
    constants = {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_leak": 0.125, "v_th": 0.75, "v_reset": -0.25}
    box = {k: v for k, v in constants.items() if k != "tau_syn_inv"}
    surrogates = {"super": 100.0, "triangle": 0.5, "tanh": 2.0, "circ": 0.5, "heavi_erfc": 1.5}
    for name, alpha in surrogates.items():
        add("LIFCell", name, {**constants, "surrogate": (name, alpha)})
    add("LIFCell", "dt", {**constants, "dt": 1 / 512})
    add("LIFBoxCell", "default", {})
    for reset in ("value", "subtract"):
        add("LIFBoxCell", reset, {**box, "reset_method": reset, "surrogate": ("tanh", 2.0)})
    add("LIFRecurrentCell", "default", {})
    add("LIFRecurrentCell", "constants", {**constants, "surrogate": ("triangle", 0.5)})
    add("LIFRecurrentCell", "autapses", {**constants, "autapses": True})
    add("IAFCell", "default", {})
    add("IAFCell", "constants", {"v_th": 0.75, "v_reset": -0.25, "surrogate": ("triangle", 0.5)})
    return setups


NEURONS: dict[str, NeuronSetup] = {setup.id: setup for setup in _neuron_setups()}


def _recurrent_params(name: str, node: Node, units: int, rng: torch.Generator) -> dict[str, Tensor]:
    recurrent = node.options.get("recurrent")
    if recurrent == "linear":
        return {
            f"{name}.recurrent.weight": weight((units, units), rng, 0.6),
            f"{name}.recurrent.bias": bias(units, rng, 0.3),
        }
    if recurrent == "conv":
        channels = units
        return {
            f"{name}.recurrent.weight": weight((channels, channels, 3, 3), rng, 0.6),
            f"{name}.recurrent.bias": bias(channels, rng, 0.3),
        }
    if recurrent == "one_to_one":
        return {f"{name}.V": _round(torch.rand(units, generator=rng, dtype=torch.float64) - 0.5)}
    if recurrent == "scalar":
        return {f"{name}.V": torch.tensor(-0.375, dtype=torch.float64)}
    return {}


def neuron_case(setup_id: str, outputs: str = "spikes") -> Case:
    """Two layers of the neuron under test; the loss sees spikes, membranes or both of the second, or all of both."""
    return _neuron_case(setup_id, outputs)


@cache
def _neuron_case(setup_id: str, outputs: str) -> Case:
    setup = NEURONS[setup_id]
    seen = {
        "spikes": ("lif2",),
        "membranes": ("lif2.mem",),
        "both": ("lif2", "lif2.mem"),
        "all": ("lif1", "lif1.mem", "lif2", "lif2.mem"),
    }[outputs]
    id_ = f"{setup_id}:{outputs}"
    return settle(lambda seed: replace(_two_layers(setup, seed, seen), id=id_))


def _two_layers(setup: NeuronSetup, seed: int, outputs: tuple[str, ...]) -> Case:
    rng = generator(seed)
    spatial = setup.options.get("recurrent") == "conv"
    scale = _CURRENT.get(setup.kind, 1.0)
    options = {k: v for k, v in setup.options.items()}
    if options.get("recurrent") == "scalar":
        options["recurrent"] = "one_to_one"
    sizes, steps, batch = (3, 4, 4), 6, 2
    params: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for i, source in ((1, "x"), (2, "lif1")):
        lif = f"lif{i}"
        units = sizes[i]
        if setup.kind == "LIFRecurrentCell":
            params[f"{lif}.input_weights"] = weight((units, sizes[i - 1]), rng, scale)
            params[f"{lif}.recurrent_weights"] = weight((units, units), rng, 2.0)
            if not options.get("autapses", False):
                params[f"{lif}.recurrent_weights"].fill_diagonal_(0)
            nodes.append(Node(lif, setup.kind, (source,), options))
            continue
        fc = f"fc{i}"
        if spatial:
            shape, conv = (units, sizes[i - 1], 3, 3), "Conv2d"
            nodes.append(Node(fc, conv, (source,), {"padding": 1}))
        else:
            shape = (units, sizes[i - 1])
            nodes.append(Node(fc, "Linear", (source,)))
        params[f"{fc}.weight"] = weight(shape, rng, scale)
        params[f"{fc}.bias"] = bias(units, rng, scale)
        node = Node(lif, setup.kind, (fc,), options)
        nodes.append(node)
        one_to_one_shape = 1 if setup.options.get("recurrent") == "scalar" else units
        params |= _recurrent_params(lif, node, one_to_one_shape, rng)
        if setup.options.get("recurrent") == "scalar":
            params[f"{lif}.V"] = torch.tensor(-0.375 * i, dtype=torch.float64)
        params |= {f"{lif}.{name}": value.clone() for name, value in setup.learned.items()}
    net = Net(tuple(nodes), params, outputs)
    extent = (2, 3) if spatial else ()
    if spatial:
        batch, steps = 2, 4
    xs = spike_input((steps, batch, sizes[0], *extent), rng)
    return Case(setup.id, net, xs, setup.hidden)


READOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LICell-default": ("LICell", {}),
    "LICell-constants": ("LICell", {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_leak": 0.125}),
    "LIBoxCell-constants": ("LIBoxCell", {"tau_mem_inv": 250.0, "v_leak": 0.125}),
    "LILinearCell-default": ("LILinearCell", {}),
    "LILinearCell-constants": ("LILinearCell", {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_leak": 0.125}),
    "Leaky-none": ("Leaky", {"beta": 0.875, "reset_mechanism": "none"}),
    "Linear": ("", {}),
}


@cache
def readout_case(name: str) -> Case:
    """A layer of spiking neurons below a readout whose membrane (or, for a plain Linear, output) is the loss's input."""
    kind, options = READOUTS[name]
    norse = kind in NORSE_READOUT
    lif = ("LIFCell", {"tau_mem_inv": 250.0}) if norse else ("Leaky", {"beta": 0.875, "threshold": 0.75})

    def build(seed: int) -> Case:
        rng = generator(seed)
        scale = 4.0 if norse else 1.0
        params = {"fc1.weight": weight((4, 3), rng, scale), "fc1.bias": bias(4, rng, scale)}
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", lif[0], ("fc1",), lif[1])]
        if kind == "LILinearCell":
            params["readout.input_weights"] = weight((3, 4), rng)
            nodes.append(Node("readout", kind, ("lif1",), options))
        else:
            params |= {"fc2.weight": weight((3, 4), rng), "fc2.bias": bias(3, rng)}
            nodes.append(Node("fc2", "Linear", ("lif1",)))
            if kind:
                nodes.append(Node("readout", kind, ("fc2",), options))
        output = "fc2" if not kind else ("readout.mem" if kind in SNNTORCH else "readout")
        return Case(f"readout:{name}", Net(tuple(nodes), params, (output,)), spike_input((6, 2, 3), rng))

    if kind == "Leaky":  # its own spikes do not matter
        return build(1)
    return settle(build)


# ------------------------------------------------------------------------------------------------ synapses
@dataclass(frozen=True)
class SynapseSetup:
    """A synapse under test: weight shape and shape of its input (without the batch)."""

    id: str
    kind: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    has_bias: bool = True
    parametrization: str = ""


def _synapse_setups() -> list[SynapseSetup]:
    make = SynapseSetup
    setups = [
        make("Linear", "Linear", (4, 3), (3,)),
        make("Linear-nobias", "Linear", (4, 3), (3,), has_bias=False),
        make("Linear-extra", "Linear", (4, 3), (2, 3)),
        make("Linear-extra2", "Linear", (3, 2), (2, 2, 2)),
        make("Linear-weight_norm", "Linear", (4, 3), (3,), parametrization="weight_norm"),
        make("Linear-standardise", "Linear", (4, 3), (3,), parametrization="standardise"),
        make("Conv2d-weight_norm", "Conv2d", (3, 2, 2, 2), (2, 4, 3), parametrization="weight_norm"),
        make("Conv2d-standardise", "Conv2d", (3, 2, 2, 2), (2, 4, 3), parametrization="standardise"),
        make("ConvTranspose2d-standardise", "ConvTranspose2d", (2, 3, 2, 2), (2, 3, 2), parametrization="standardise"),
    ]
    extents: dict[int, tuple[int, ...]] = {1: (6,), 2: (5, 4), 3: (3, 4, 3)}
    kernels: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}
    odd: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 3), 3: (1, 3, 3)}
    for dims in (1, 2, 3):
        kind, extent, kernel = f"Conv{dims}d", extents[dims], kernels[dims]

        def conv(name: str, options: Mapping[str, Any], kernel: tuple[int, ...] = kernel, **kwargs: Any) -> None:
            groups = options.get("groups", 1)
            shape = (4, 2 // groups, *kernel)  # noqa: B023
            setups.append(make(f"{kind}-{name}", kind, shape, (2, *extent), options, **kwargs))  # noqa: B023

        conv("plain", {})
        conv("nobias", {"padding": 1}, has_bias=False)
        conv("stride", {"stride": 2, "padding": 1})
        conv("dilation", {"dilation": 2, "padding": 2})
        conv("groups", {"groups": 2, "padding": (1,) * dims})
        conv("same", {"padding": "same"})
        conv("same-dilated", {"padding": "same", "dilation": 2})
        conv("valid", {"padding": "valid", "stride": 2})
        for mode in ("reflect", "replicate", "circular"):
            conv(mode, {"padding": tuple(k // 2 for k in odd[dims]), "padding_mode": mode}, odd[dims])
            conv(f"{mode}-same", {"padding": "same", "padding_mode": mode})
        transpose = f"ConvTranspose{dims}d"
        small: tuple[int, ...] = {1: (4,), 2: (3, 2), 3: (2, 2, 2)}[dims]
        variants: dict[str, dict[str, Any]] = {
            "plain": {},
            "stride": {"stride": 2, "padding": 1},
            "output_padding": {"stride": 2, "padding": 1, "output_padding": 1},
            "dilation": {"dilation": 2},
            "groups": {"groups": 2, "stride": 2},
        }
        for name, options in variants.items():
            out = 4 // options.get("groups", 1)
            setups.append(make(f"{transpose}-{name}", transpose, (2, out, *kernel), (2, *small), options))
    setups.append(
        make("Conv2d-mixed", "Conv2d", (4, 1, 3, 2), (2, 5, 6), {"stride": (2, 1), "padding": (2, 0), "groups": 2})
    )
    setups.append(make("Conv2d-depthwise", "Conv2d", (2, 1, 3, 3), (2, 4, 4), {"groups": 2, "padding": 1}))
    return setups


SYNAPSES: dict[str, SynapseSetup] = {setup.id: setup for setup in _synapse_setups()}


def weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Each slice along the first axis with norm g."""
    norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))
    return g * v / norm


def standardise(raw: Tensor, gain: Tensor) -> Tensor:
    flat = raw.flatten(1)
    mean, var = flat.mean(1, keepdim=True), flat.var(1, keepdim=True)
    return (gain * (flat - mean) / torch.sqrt(var * flat.shape[1] + 1e-4)).reshape(raw.shape)


def add_weight(
    params: dict[str, Tensor], computed: dict[str, Any], name: str, value: Tensor, parametrization: str
) -> dict[str, Any]:
    """Put ``value`` into ``params`` as the parametrization stores it; gives the options of the node."""
    prefix = f"{name}.parametrizations.weight"
    if parametrization == "weight_norm":
        rows = value.flatten(1).norm(dim=1).reshape(-1, *[1] * (value.dim() - 1))
        params |= {f"{prefix}.original0": _round(1.25 * rows), f"{prefix}.original1": value}
        computed[f"{name}.weight"] = (weight_norm, (f"{prefix}.original0", f"{prefix}.original1"))
        return {"parametrization": parametrization, "original": "1"}
    if parametrization == "standardise":
        gain = torch.linspace(1.0, 2.0, len(value), dtype=torch.float64)[:, None]
        params |= {f"{prefix}.original": value, f"{prefix}.0.gain": _round(gain)}
        computed[f"{name}.weight"] = (standardise, (f"{prefix}.original", f"{prefix}.0.gain"))
        return {"parametrization": parametrization}
    params[f"{name}.weight"] = value
    return {}


@cache
def synapse_case(setup_id: str) -> Case:
    """The synapse under test feeds a Leaky; a Linear and a second Leaky above it make its learning signal."""
    setup = SYNAPSES[setup_id]

    def build(seed: int) -> Case:
        rng = generator(seed)
        params: dict[str, Tensor] = {}
        computed: dict[str, Any] = {}
        out_features = setup.weight[0]
        fan_in = math.prod(setup.weight[1:])
        if setup.kind.startswith("ConvTranspose"):
            groups = setup.options.get("groups", 1)
            out_features = setup.weight[1] * groups
            fan_in = math.prod(setup.weight) // setup.weight[1] // groups
        value = weight(setup.weight, rng) * math.sqrt(math.prod(setup.weight[1:])) / math.sqrt(fan_in)
        options = dict(setup.options) | add_weight(params, computed, "syn", _round(value), setup.parametrization)
        if setup.has_bias:
            params["syn.bias"] = bias(out_features, rng)
        lif = {"beta": 0.75, "threshold": 0.75}
        nodes = [Node("syn", setup.kind, ("x",), options), Node("lif1", "Leaky", ("syn",), lif)]
        nodes.append(Node("flat", "Flatten", ("lif1",)))
        xs = spike_input((4, 2, *setup.input), rng)
        # the size of the flattened layer, from one step of the oracle
        probe = Net(tuple(nodes), params, ("flat",), computed)
        found = Oracle(probe, RULES["default"]).forward(xs[0], local=True).values["flat"]
        params |= {"fc2.weight": weight((3, found.shape[1]), rng, 1.5), "fc2.bias": bias(3, rng)}
        nodes += [Node("fc2", "Linear", ("flat",)), Node("lif2", "Leaky", ("fc2",), lif)]
        return Case(f"synapse:{setup_id}", Net(tuple(nodes), params, ("lif2",), computed), xs)

    return settle(build)


# ------------------------------------------------------------------------------------------------ in between
def _structures() -> dict[str, Callable[[int], Case]]:
    """Networks whose point is what stands between a synapse and its neuron, or how they are wired."""
    found: dict[str, Callable[[int], Case]] = {}
    lif = {"beta": 0.75, "threshold": 0.75}
    now = {**lif, "reset_delay": False, "reset_mechanism": "zero"}

    def structure(
        build: Callable[[torch.Generator], tuple[list[Node], dict[str, Tensor], tuple[str, ...], Tensor]],
    ) -> None:
        name = build.__name__.strip("_")

        def make(seed: int) -> Case:
            nodes, params, outputs, xs = build(generator(seed))
            return Case(f"structure:{name}", Net(tuple(nodes), params, outputs), xs)

        found[name] = make

    def conv_stack(rng: torch.Generator, middle: list[Node], features: int, options: Mapping[str, Any]) -> Any:
        params = {"conv1.weight": weight((4, 2, 3, 3), rng), "conv1.bias": bias(4, rng)}
        params |= {"fc2.weight": weight((3, features), rng, 1.5), "fc2.bias": bias(3, rng)}
        nodes = [Node("conv1", "Conv2d", ("x",), {"padding": 1}), *middle]
        nodes += [Node("lif1", "Leaky", (middle[-1].name,), options), Node("flat", "Flatten", ("lif1",))]
        nodes += [Node("fc2", "Linear", ("flat",)), Node("lif2", "Leaky", ("fc2",), options)]
        return nodes, params, ("lif2", "lif2.mem"), spike_input((4, 2, 2, 4, 4), rng)

    def norm(rng: torch.Generator, name: str, features: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": _round(0.75 + 0.5 * torch.rand(features, generator=rng).double()),
            f"{name}.bias": bias(features, rng, 2.0),
        }

    def batch_norm2d(rng: torch.Generator) -> Any:
        nodes, params, outputs, xs = conv_stack(rng, [Node("bn", "BatchNorm2d", ("conv1",))], 64, lif)
        del params["conv1.bias"]  # its gradient is zero, and rounding noise in practice
        return nodes, params | norm(rng, "bn", 4), outputs, xs

    def batch_norm1d(rng: torch.Generator) -> Any:
        params = {
            "fc1.weight": weight((4, 3), rng),
            **norm(rng, "bn1", 4),
            "fc2.weight": weight((3, 4), rng),
            **norm(rng, "bn2", 3),
        }
        nodes = [
            Node("fc1", "Linear", ("x",)),
            Node("bn1", "BatchNorm1d", ("fc1",)),
            Node("lif1", "Leaky", ("bn1",), lif),
        ]
        nodes += [
            Node("fc2", "Linear", ("lif1",)),
            Node("bn2", "BatchNorm1d", ("fc2",)),
            Node("lif2", "Leaky", ("bn2",), now),
        ]
        return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 4, 3), rng)

    def group_norm(rng: torch.Generator) -> Any:
        nodes, params, outputs, xs = conv_stack(rng, [Node("gn", "GroupNorm", ("conv1",), {"groups": 2})], 64, now)
        return nodes, params | norm(rng, "gn", 4), outputs, xs

    def avg_pool(rng: torch.Generator) -> Any:
        return conv_stack(rng, [Node("pool", "AvgPool2d", ("conv1",), {"size": 2})], 16, lif)

    def max_pool(rng: torch.Generator) -> Any:
        return conv_stack(rng, [Node("pool", "MaxPool2d", ("conv1",), {"size": 2})], 16, now)

    def norm_pool_scale(rng: torch.Generator) -> Any:
        middle = [Node("bn", "BatchNorm2d", ("conv1",)), Node("pool", "MaxPool2d", ("bn",), {"size": 2})]
        middle.append(Node("scale", "Scale", ("pool",), {"factor": 1.5}))
        nodes, params, outputs, xs = conv_stack(rng, middle, 16, lif)
        del params["conv1.bias"]
        return nodes, params | norm(rng, "bn", 4), outputs, xs

    def pool_after(rng: torch.Generator) -> Any:
        nodes, params, outputs, xs = conv_stack(rng, [Node("same", "Scale", ("conv1",), {"factor": 1.0})], 16, lif)
        nodes.insert(3, Node("pool", "MaxPool2d", ("lif1",), {"size": 2}))
        return [replace(n, inputs=("pool",)) if n.name == "flat" else n for n in nodes], params, outputs, xs

    def nonlinear(rng: torch.Generator) -> Any:
        return conv_stack(rng, [Node("tanh", "Tanh", ("conv1",))], 64, lif)

    def dense(rng: torch.Generator, *shapes: tuple[str, int, int]) -> dict[str, Tensor]:
        params: dict[str, Tensor] = {}
        for name, out_features, in_features in shapes:
            params |= {
                f"{name}.weight": weight((out_features, in_features), rng),
                f"{name}.bias": bias(out_features, rng),
            }
        return params

    def two_synapses(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4), ("skip", 3, 3))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif), Node("fc2", "Linear", ("lif1",))]
        nodes += [Node("skip", "Linear", ("x",)), Node("scale", "Scale", ("skip",), {"factor": 0.5})]
        nodes += [Node("lif2", "Leaky", ("fc2", "scale"), lif)]
        return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 2, 3), rng)

    def one_synapse_two_neurons(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [
            Node("more", "Scale", ("fc1",), {"factor": 1.25}),
            Node("lif1b", "Leaky", ("more",), {**now, "beta": 0.5}),
        ]
        nodes += [Node("fc2", "Linear", ("lif1", "lif1b")), Node("lif2", "Leaky", ("fc2",), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)

    def shared_synapse(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [
            Node("again", "Linear", ("lif1",), {"shares": "fc1"}),
            Node("lif1b", "Leaky", ("again",), {**lif, "beta": 0.5}),
        ]
        nodes += [Node("fc2", "Linear", ("lif1b",)), Node("lif2", "Leaky", ("fc2",), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 4), rng)

    def tied_weights(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4), ("fc3", 3, 4))
        del params["fc2.weight"]
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [
            Node("fc2", "Linear", ("lif1",), {"tied": "fc1"}),
            Node("lif2", "Leaky", ("fc2",), {**lif, "beta": 0.5}),
        ]
        nodes += [Node("fc3", "Linear", ("lif2",)), Node("lif3", "Leaky", ("fc3",), lif)]
        return nodes, params, ("lif3",), spike_input((5, 2, 4), rng)

    def shared_neuron(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [Node("fc2", "Linear", ("lif1",)), Node("lif2", "Leaky", ("fc2",), {**lif, "shares": "lif1"})]
        return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 2, 4), rng)

    def flatten_before(rng: torch.Generator) -> Any:
        params = {"conv1.weight": weight((2, 2, 2, 2), rng), "conv1.bias": bias(2, rng), **dense(rng, ("fc2", 3, 12))}
        nodes = [
            Node("conv1", "Conv2d", ("x",)),
            Node("flat", "Flatten", ("conv1",)),
            Node("lif1", "Leaky", ("flat",), now),
        ]
        nodes += [Node("fc2", "Linear", ("lif1",)), Node("lif2", "Leaky", ("fc2",), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 2, 3, 4), rng)

    def upsample(rng: torch.Generator) -> Any:
        return conv_stack(rng, [Node("up", "Upsample", ("conv1",), {"factor": 2})], 256, lif)

    def early_readout(rng: torch.Generator) -> Any:
        # a readout that runs before the first neuron of the step
        params = dense(rng, ("skip", 3, 3), ("fc1", 4, 3), ("out", 3, 4))
        nodes = [Node("skip", "Linear", ("x",)), Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [Node("out", "Linear", ("lif1",)), Node("sum", "Scale", ("out", "skip"), {"factor": 1.0})]
        return nodes, params, ("sum",), spike_input((6, 2, 3), rng)

    def norm_after_readout(rng: torch.Generator) -> Any:
        params = {**dense(rng, ("fc1", 4, 3), ("out", 4, 4)), **norm(rng, "gn", 4)}
        del params["out.bias"]
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif)]
        nodes += [Node("out", "Linear", ("lif1",)), Node("gn", "GroupNorm", ("out",), {"groups": 1})]
        return nodes, params, ("gn",), spike_input((6, 2, 3), rng)

    def residual_spikes(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("fc3", 3, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif), Node("fc2", "Linear", ("lif1",))]
        nodes += [
            Node("lif2", "Leaky", ("fc2",), now),
            Node("fc3", "Linear", ("lif1", "lif2")),
            Node("lif3", "Leaky", ("fc3",), lif),
        ]
        return nodes, params, ("lif3", "lif1"), spike_input((5, 2, 3), rng)

    def residual_current(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif), Node("fc2", "Linear", ("lif1",))]
        nodes += [Node("lif2", "Leaky", ("fc2", "fc1"), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)

    def linear_chain(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("mid", 4, 4), ("fc2", 3, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("mid", "Linear", ("fc1",)), Node("lif1", "Leaky", ("mid",), lif)]
        nodes += [Node("fc2", "Linear", ("lif1",)), Node("lif2", "Leaky", ("fc2",), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)

    def membrane_as_input(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
        nodes = [
            Node("fc1", "Linear", ("x",)),
            Node("lif1", "Leaky", ("fc1",), lif),
            Node("fc2", "Linear", ("lif1.mem",)),
        ]
        nodes += [Node("lif2", "Leaky", ("fc2",), lif)]
        return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)

    def plain_readout(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("out", 3, 4))
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Leaky", ("fc1",), lif), Node("fc2", "Linear", ("lif1",))]
        nodes += [Node("lif2", "Leaky", ("fc2",), now), Node("out", "Linear", ("lif2",))]
        return nodes, params, ("out",), spike_input((6, 2, 3), rng)

    def mixed_neurons(rng: torch.Generator) -> Any:
        params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("fc3", 3, 4))
        params |= {"lif2.recurrent.weight": weight((4, 4), rng, 0.6)}
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", "Synaptic", ("fc1",), {**lif, "alpha": 0.5})]
        nodes += [Node("fc2", "Linear", ("lif1",)), Node("lif2", "RLeaky", ("fc2",), {**lif, "recurrent": "linear"})]
        nodes += [
            Node("fc3", "Linear", ("lif2",)),
            Node("lif3", "Lapicque", ("fc3",), {"beta": 0.5, "threshold": 0.25}),
        ]
        return nodes, params, ("lif3", "lif3.mem"), spike_input((6, 2, 3), rng)

    for build in (
        batch_norm2d, batch_norm1d, group_norm, avg_pool, max_pool, norm_pool_scale, pool_after, nonlinear, two_synapses,
        one_synapse_two_neurons, shared_synapse, residual_spikes, residual_current, linear_chain, membrane_as_input,
        plain_readout, mixed_neurons, tied_weights, shared_neuron, flatten_before, upsample, early_readout,
        norm_after_readout,
    ):  # fmt: skip
        structure(build)
    return found


STRUCTURES = _structures()


@cache
def structure_case(name: str) -> Case:
    return settle(STRUCTURES[name])


def threshold_of(case: Case, name: str) -> Tensor:
    return look_up(case.net, case.net.node(name), dict(case.net.params)).threshold
