"""One time step of every supported neuron, written from its formula.

A step has two halves. :func:`membrane` gives u, the value that is compared with the threshold, before any reset caused
by this step's spike. :func:`after_spike` gives the membrane that the module returns and the state it keeps. Everything
that comes from earlier steps (``state``) is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles import functions
from tests.oracles.spec import NORSE_READOUT, SNNTORCH, Net, Node

State = dict[str, Tensor]

SNNTORCH_DEFAULTS = {
    "beta": 0.9,
    "alpha": 0.8,
    "threshold": 1.0,
    "graded_spikes_factor": 1.0,
    "R": 1.0,
    "time_step": 1.0,
}
NORSE_DEFAULTS = {
    "tau_syn_inv": 200.0,
    "tau_mem_inv": 100.0,
    "v_leak": 0.0,
    "v_th": 1.0,
    "v_reset": 0.0,
    "dt": 0.001,
}


@dataclass(frozen=True)
class Neuron:
    """A neuron node with its constants looked up: parameters where they are learned, options elsewhere."""

    node: Node
    constants: dict[str, Tensor]

    @property
    def kind(self) -> str:
        return self.node.kind

    @property
    def spikes(self) -> bool:
        return self.kind not in NORSE_READOUT

    @property
    def threshold(self) -> Tensor:
        return self.constants["threshold" if self.kind in SNNTORCH else "v_th"]

    @property
    def graded_factor(self) -> Tensor | float:
        return self.constants["graded_spikes_factor"] if self.kind in SNNTORCH else 1.0

    @property
    def surrogate(self) -> functions.Elementwise:
        default = ("atan", 2.0) if self.kind in SNNTORCH else ("super", 100.0)
        return functions.surrogate(*self.node.options.get("surrogate", default))


def look_up(net: Net, node: Node, params: dict[str, Tensor]) -> Neuron:
    """Collect the constants of ``node``; ``params`` (by full name) win over its options."""
    defaults = SNNTORCH_DEFAULTS if node.kind in SNNTORCH else NORSE_DEFAULTS
    constants = {}
    for name, default in defaults.items():
        full = f"{node.name}.{name}"
        value = params[full] if full in params else node.options.get(name, default)
        constants[name] = torch.as_tensor(value, dtype=torch.float64)
    return Neuron(node, constants)


def initial_state(neuron: Neuron, like: Tensor) -> State:
    """State before the first step, for an input current shaped as ``like``."""
    zeros = torch.zeros_like(like)
    if neuron.kind in SNNTORCH:
        return {"mem": zeros, "syn": zeros, "y": zeros}
    rest = neuron.constants["v_reset" if neuron.kind == "IAFCell" else "v_leak"]
    return {"mem": zeros + rest, "syn": zeros, "y": zeros}


def membrane(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """u, and the synaptic current that this step leaves behind (for neurons that have one)."""
    if neuron.kind in SNNTORCH:
        return _snntorch_membrane(neuron, current, state)
    return _norse_membrane(neuron, current, state)


def _snntorch_membrane(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, Tensor]:
    constants, mem, syn = neuron.constants, state["mem"], state["syn"]
    reset = neuron.node.options.get("reset_mechanism", "subtract")
    threshold = constants["threshold"]
    beta, alpha = constants["beta"].clamp(0, 1), constants["alpha"].clamp(0, 1)
    was_above = functions.heaviside((mem - threshold).detach())

    if neuron.kind == "Leaky" and reset == "zero":  # spares the new input
        return beta * (1 - was_above) * mem + current, syn
    if neuron.kind in ("Leaky", "RLeaky"):
        base = beta * mem + current
    elif neuron.kind in ("Synaptic", "RSynaptic"):
        syn = alpha * syn + current
        base = beta * mem + syn
    else:
        resistance, dt = constants["R"], constants["time_step"]
        given = neuron.node.options.get("C")
        if given is None:
            capacity = dt / (resistance * torch.log(1 / constants["beta"]))
        else:
            capacity = torch.as_tensor(given, dtype=torch.float64)
        base = dt / capacity * current + (1 - dt / (resistance * capacity)) * mem
    if reset == "subtract":
        return base - was_above * threshold, syn
    if reset == "zero":
        return base * (1 - was_above), syn
    return base, syn


def _norse_membrane(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, Tensor]:
    constants, v = neuron.constants, state["mem"]
    membrane_rate = constants["dt"] * constants["tau_mem_inv"]
    if neuron.kind == "IAFCell":
        return v + current, state["syn"]
    if neuron.kind in ("LIFBoxCell", "LIBoxCell"):
        return v + membrane_rate * (constants["v_leak"] - v + current), state["syn"]
    jumped = state["syn"] + current
    u = v + membrane_rate * (constants["v_leak"] - v + jumped)
    return u, jumped - constants["dt"] * constants["tau_syn_inv"] * jumped


def after_spike(neuron: Neuron, u: Tensor, spike: Tensor | None, state: State) -> Tensor:
    """The membrane that the module returns; ``spike`` is 0 or 1, without the graded factor."""
    if neuron.kind in NORSE_READOUT:
        return u
    assert spike is not None
    if neuron.kind not in SNNTORCH:
        return _norse_reset(neuron, u, spike)
    options, threshold = neuron.node.options, neuron.threshold
    reset = options.get("reset_mechanism", "subtract")
    if options.get("reset_delay", True) or reset == "none" or neuron.kind == "Lapicque":
        return u
    was_above = functions.heaviside((state["mem"] - threshold).detach())
    do_reset = spike - was_above
    return u - do_reset * threshold if reset == "subtract" else u - do_reset * u


def _norse_reset(neuron: Neuron, u: Tensor, spike: Tensor) -> Tensor:
    if neuron.kind == "LIFRecurrentCell":  # the only one whose reset is outside the graph
        spike = spike.detach()
    if neuron.kind == "LIFBoxCell" and neuron.node.options.get("reset_method", "value") == "subtract":
        return (1 - spike) * u + spike * (u - neuron.constants["v_th"])
    return (1 - spike) * u + spike * neuron.constants["v_reset"]
