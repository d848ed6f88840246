"""Every supported neuron with every reset mechanism, and the readouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.cases.case import Case, bias, exact, generator, settle, spike_input, weight
from tests.cases.more_neurons import MORE_READOUTS, more_neurons
from tests.oracles.spec import NORSE_READOUT, SEQUENCES, SNNTORCH, Net, Node

# what the inputs of a neuron must be multiplied with for it to fire in a few steps
_CURRENT = {
    "LIFCell": 8.0,
    "LIFRecurrentCell": 8.0,
    "LIFBoxCell": 10.0,
    "LIFExCell": 8.0,
    "LIFExRecurrentCell": 8.0,
    "LIFAdExCell": 8.0,
    "LIFAdExRecurrentCell": 8.0,
    "LIFRefracCell": 8.0,
    "LIFRefracRecurrentCell": 8.0,
    "LIFAdExRefracCell": 8.0,
    "LIFAdExRefracRecurrentCell": 8.0,
    "IzhikevichCell": 6.0,
    "IzhikevichRecurrentCell": 6.0,
    "LSNNRecurrentCell": 8.0,
    "Lapicque": 6.0,
    "LICell": 4.0,
    "LIBoxCell": 4.0,
}


@dataclass(frozen=True)
class NeuronSetup:
    """One neuron under test: kind, options and which of its constants are learned."""

    id: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learned: Mapping[str, Any] = field(default_factory=dict)
    hidden: bool = False
    scale: float | None = None  # of the weights, where those of its kind do not suit
    spatial: bool = False  # behind convolutions

    @property
    def weight_scale(self) -> float:
        return _CURRENT.get(Node("", self.kind, ()).cell, 1.0) if self.scale is None else self.scale


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
MORE_NEURONS: dict[str, NeuronSetup] = {
    f"{kind}-{name}": NeuronSetup(f"{kind}-{name}", kind, options, **more)
    for kind, name, options, more in more_neurons()
}


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
        return {f"{name}.V": exact(torch.rand(units, generator=rng, dtype=torch.float64) - 0.5)}
    if recurrent == "scalar":
        return {f"{name}.V": torch.tensor(-0.375, dtype=torch.float64)}
    return {}


def neuron_case(setup_id: str, outputs: str = "spikes") -> Case:
    """Two layers of the neuron under test; the loss sees spikes, membranes or both of the second, or all of both."""
    return _neuron_case(setup_id, outputs)


@cache
def _neuron_case(setup_id: str, outputs: str) -> Case:
    setup = (NEURONS | MORE_NEURONS)[setup_id]
    seen = {
        "spikes": ("lif2",),
        "membranes": ("lif2.mem",),
        "both": ("lif2", "lif2.mem"),
        "all": ("lif1", "lif1.mem", "lif2", "lif2.mem"),
    }[outputs]
    id_ = f"{setup_id}:{outputs}"
    # the gradient of a constant or of V sums over a layer: often what is left of large terms that cancel
    single = bool(setup.learned) or setup.options.get("recurrent") in ("one_to_one", "scalar")
    return settle(lambda seed: replace(_two_layers(setup, seed, seen), id=id_), well_conditioned=single)


def _two_layers(setup: NeuronSetup, seed: int, outputs: tuple[str, ...]) -> Case:
    rng = generator(seed)
    spatial = setup.spatial or setup.options.get("recurrent") == "conv"
    scale = setup.weight_scale
    options = {k: v for k, v in setup.options.items()}
    if options.get("recurrent") == "scalar":
        options["recurrent"] = "one_to_one"
    sizes, steps, batch = (3, 4, 4), 6, 2
    params: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for i, source in ((1, "x"), (2, "lif1")):
        lif = f"lif{i}"
        units = sizes[i]
        node = Node(lif, setup.kind, (source,), options)
        if node.is_late and i == 2:  # passes no signal on, so it stands below another neuron
            above = "LIF" if setup.kind in SEQUENCES else "LIFCell"
            node = Node(lif, above, (source,), {"tau_mem_inv": 250.0})
        if node.has_norse_recurrence:
            params[f"{lif}.input_weights"] = weight((units, sizes[i - 1]), rng, scale)
            params[f"{lif}.recurrent_weights"] = weight((units, units), rng, scale / 4)
            if not options.get("autapses", False):
                params[f"{lif}.recurrent_weights"].fill_diagonal_(0)
            nodes.append(node)
            continue
        if node.kind == "LinearLeaky":
            params[f"{lif}.linear.weight"] = weight((units, sizes[i - 1]), rng, scale)
            params[f"{lif}.linear.bias"] = bias(units, rng, scale)
            params |= {f"{lif}.{name}": value.clone() for name, value in setup.learned.items()}
            nodes.append(node)
            continue
        if node.kind == "StateLeaky":
            node = replace(node, options={**options, "channels": units})
        fc = f"fc{i}"
        if spatial:
            shape, conv = (units, sizes[i - 1], 3, 3), "Conv2d"
            nodes.append(Node(fc, conv, (source,), {"padding": 1}))
        else:
            shape = (units, sizes[i - 1])
            nodes.append(Node(fc, "Linear", (source,)))
        params[f"{fc}.weight"] = weight(shape, rng, scale)
        params[f"{fc}.bias"] = bias(units, rng, scale)
        node = replace(node, inputs=(fc,))
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
    """A layer of spiking neurons below a readout; the loss sees its membrane, or the output of a plain Linear."""
    kind, options = (READOUTS | MORE_READOUTS)[name]
    norse = Node("", kind, ()).cell in NORSE_READOUT
    lif = ("LIFCell", {"tau_mem_inv": 250.0}) if norse else ("Leaky", {"beta": 0.875, "threshold": 0.75})
    if kind in SEQUENCES:
        lif = ("LIF", lif[1]) if norse else ("StateLeaky", {"beta": 0.75, "threshold": 0.75, "channels": 4})

    def build(seed: int) -> Case:
        rng = generator(seed)
        scale = 4.0 if norse else 1.0
        params = {"fc1.weight": weight((4, 3), rng, scale), "fc1.bias": bias(4, rng, scale)}
        nodes = [Node("fc1", "Linear", ("x",)), Node("lif1", lif[0], ("fc1",), lif[1])]
        if kind == "LILinearCell":
            params["readout.input_weights"] = weight((3, 4), rng)
            nodes.append(Node("readout", kind, ("lif1",), options))
        elif kind == "LinearLeaky":
            params |= {"readout.linear.weight": weight((3, 4), rng), "readout.linear.bias": bias(3, rng)}
            nodes.append(Node("readout", kind, ("lif1",), options))
        else:
            params |= {"fc2.weight": weight((3, 4), rng), "fc2.bias": bias(3, rng)}
            nodes.append(Node("fc2", "Linear", ("lif1",)))
            if kind:
                nodes.append(Node("readout", kind, ("fc2",), options))
        returns_spikes = kind in SNNTORCH and options.get("output", True)
        output = "fc2" if not kind else ("readout.mem" if returns_spikes else "readout")
        return Case(f"readout:{name}", Net(tuple(nodes), params, (output,)), spike_input((6, 2, 3), rng))

    if kind == "Leaky":  # its own spikes do not matter
        return build(1)
    return settle(build)
