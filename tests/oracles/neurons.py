"""One time step of every supported neuron, written from its formula.

A step has two halves. :func:`decide` gives u, the value that is compared with the threshold, before any reset caused by
this step's spike. :func:`after_spike` gives the membrane that the module returns and the state it keeps. Everything
that comes from earlier steps (``state``) is constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    "delta_threshold": 1.0,
}
NORSE_DEFAULTS = {
    "tau_syn_inv": 200.0,
    "tau_mem_inv": 100.0,
    "v_leak": 0.0,
    "v_th": 1.0,
    "v_reset": 0.0,
    "dt": 0.001,
    "delta_T": 0.5,
    "adaptation_current": 4.0,
    "adaptation_spike": 0.02,
    "tau_ada_inv": 2.0,
    "rho_reset": 5.0,
    "tau_adapt_inv": 1 / 800,
    "beta": 1.8,
}
# the "tonic spiking" behaviour, in mV
IZHIKEVICH_DEFAULTS = {
    "a": 0.02,
    "b": 0.2,
    "c": -65.0,
    "d": 6.0,
    "sq": 0.04,
    "mn": 5.0,
    "bias": 140.0,
    "v_th": 30.0,
    "tau_inv": 250.0,
    "dt": 0.001,
    "v_rest": -70.0,
    "u_rest": -14.0,
}
# Norse holds these in float32, where they are not exact
ROUNDED = ("adaptation_spike", "tau_adapt_inv", "beta")


def defaults_of(node: Node) -> dict[str, float]:
    if node.cell in SNNTORCH:
        return SNNTORCH_DEFAULTS
    if node.cell.startswith("Izhikevich"):
        return IZHIKEVICH_DEFAULTS
    rounded = {name: torch.tensor(NORSE_DEFAULTS[name]).double().item() for name in ROUNDED}
    return NORSE_DEFAULTS | rounded


@dataclass(frozen=True)
class Neuron:
    """A neuron node with its constants looked up: parameters where they are learned, options elsewhere."""

    node: Node
    constants: dict[str, Tensor]

    @property
    def kind(self) -> str:
        return self.node.cell

    @property
    def spikes(self) -> bool:
        if self.kind in ("StateLeaky", "LinearLeaky"):  # which return their membrane alone if asked to
            return bool(self.node.options.get("output", True))
        return self.kind not in NORSE_READOUT

    @property
    def inhibits(self) -> bool:
        return bool(self.node.options.get("inhibition", False))

    @property
    def graded_factor(self) -> Tensor | float:
        """What a spike counts in the output."""
        if self.kind not in SNNTORCH or self.inhibits or self.kind == "DeltaLeaky":
            return 1.0
        factor = self.constants["graded_spikes_factor"]
        return factor * factor if self.kind in ("StateLeaky", "LinearLeaky") else factor  # these apply it twice

    @property
    def surrogate(self) -> functions.Elementwise:
        default = ("atan", 2.0) if self.kind in SNNTORCH else ("super", 100.0)
        return functions.surrogate(*self.node.options.get("surrogate", default))

    def quantise(self, x: Tensor) -> Tensor:
        wanted = self.node.options.get("state_quant")
        return x if wanted is None else functions.quantise(x, functions.quantisation_levels(**wanted))


@dataclass(frozen=True)
class Decision:
    """What a neuron has computed when it decides about its spike.

    ``v`` is u minus the threshold. ``gate`` is 0 where it cannot spike whatever v is. ``mem`` is the membrane and
    ``kept`` the other states, both before this step's spike has acted on them.
    """

    u: Tensor
    v: Tensor
    mem: Tensor
    kept: State = field(default_factory=dict)
    gate: Tensor | None = None

    def gated(self, x: Tensor) -> Tensor:
        return x if self.gate is None else x * self.gate


def look_up(net: Net, node: Node, params: dict[str, Tensor]) -> Neuron:
    """Collect the constants of ``node``; ``params`` (by full name) win over its options."""
    constants = {}
    for name, default in defaults_of(node).items():
        full = f"{node.name}.{name}"
        value = params[full] if full in params else node.options.get(name, default)
        constants[name] = torch.as_tensor(value, dtype=torch.float64)
    if node.cell in ("StateLeaky", "LinearLeaky"):  # learns tau, which begins as this function of beta
        tau = params.get(f"{node.name}.tau")
        constants["tau"] = 1 / (1 - constants["beta"] + 1e-12) if tau is None else tau
    return Neuron(node, constants)


def initial_state(neuron: Neuron, like: Tensor) -> State:
    """State before the first step, for an input current shaped as ``like``."""
    zeros = torch.zeros_like(like)
    state = {name: zeros for name in ("mem", "syn", "y", "y_before", "unrounded", "adaptation", "rho", "recovery")}
    constants = neuron.constants
    if neuron.kind in SNNTORCH:
        return state
    if neuron.kind.startswith("Izhikevich"):
        return state | {"mem": zeros + constants["v_rest"], "recovery": zeros + constants["u_rest"]}
    rest = constants["v_reset" if neuron.kind == "IAFCell" else "v_leak"]
    return state | {"mem": zeros + rest, "threshold": zeros + constants["v_th"]}


def decide(neuron: Neuron, current: Tensor, state: State) -> Decision:
    """The first half of a step."""
    if neuron.kind in SNNTORCH:
        return _snntorch_decision(neuron, current, state)
    if neuron.kind.startswith("Izhikevich"):
        return _izhikevich_decision(neuron, current, state)
    return _norse_decision(neuron, current, state)


def _snntorch_decision(neuron: Neuron, current: Tensor, state: State) -> Decision:
    constants, mem = neuron.constants, state["mem"]
    threshold = constants["threshold"]
    if neuron.kind == "DeltaLeaky":
        new = constants["beta"] * mem + current
        u = (new - mem).abs()
        return Decision(u, u - constants["delta_threshold"], new)
    if neuron.kind in ("StateLeaky", "LinearLeaky"):
        unrounded = torch.exp(-1 / constants["tau"]) * state["unrounded"] + current
        u = neuron.quantise(unrounded)  # of what is returned; the state itself goes on as it is
        return Decision(u, u - threshold, u, {"unrounded": unrounded})
    u, syn = _snntorch_membrane(neuron, current, state)
    u, syn = neuron.quantise(u), neuron.quantise(syn)
    v = u - threshold
    gate = None
    if neuron.inhibits:
        gate = torch.zeros_like(v.detach())
        gate[torch.arange(len(v)), v.detach().argmax(1)] = 1.0
    return Decision(u, v, u, {"syn": syn}, gate)


def _snntorch_membrane(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """The membrane and the synaptic current, for neurons that have one."""
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


def _izhikevich_decision(neuron: Neuron, current: Tensor, state: State) -> Decision:
    constants, v, recovery = neuron.constants, state["mem"], state["recovery"]
    rate = constants["tau_inv"] * constants["dt"]
    u = v + rate * (constants["sq"] * v**2 + constants["mn"] * v + constants["bias"] - recovery + current)
    recovery = recovery + rate * constants["a"] * (constants["b"] * v - recovery)
    return Decision(u, u - constants["v_th"], u, {"recovery": recovery})


def _norse_decision(neuron: Neuron, current: Tensor, state: State) -> Decision:
    constants, v, kind = neuron.constants, state["mem"], neuron.kind
    rate = constants["dt"] * constants["tau_mem_inv"]
    synaptic_decay = 1 - constants["dt"] * constants["tau_syn_inv"]
    leak = constants["v_leak"] - v
    if kind == "IAFCell":
        u = v + current
        return Decision(u, u - constants["v_th"], u)
    if kind in ("LIFBoxCell", "LIBoxCell"):
        u = v + rate * (leak + current)
        return Decision(u, u - constants["v_th"], u)
    jumped = state["syn"] + current
    kept = {"syn": synaptic_decay * jumped}
    if kind == "LSNNRecurrentCell":  # its current is that of the step before; so is what it calls b, its threshold
        u = v + rate * (leak + jumped)
        adapted = state["threshold"] + constants["dt"] * constants["tau_adapt_inv"] * (
            constants["v_th"] - state["threshold"]
        )
        return Decision(u, u - adapted, u, kept | {"threshold": adapted})
    drive = leak + jumped
    if "Ex" in kind:
        drive = drive + constants["delta_T"] * torch.exp((v - constants["v_th"]) / constants["delta_T"])
    if "AdEx" in kind:
        a = state["adaptation"]
        drive = drive - a
        kept["adaptation"] = a + constants["dt"] * constants["tau_ada_inv"] * (
            constants["adaptation_current"] * (v - constants["v_leak"]) - a
        )
    u = v + rate * drive
    gate = 1 - functions.heaviside(state["rho"]) if "Refrac" in kind else None
    return Decision(u, u - constants["v_th"], u, kept, gate)


def after_spike(neuron: Neuron, decision: Decision, spike: Tensor | None, state: State) -> State:
    """The second half of a step: the membrane ``mem`` that the module returns, and the other states it keeps.

    ``spike`` is 1 where v is above zero, else 0: without the gate and the graded factor.
    """
    if spike is None:
        return {"mem": decision.mem, **decision.kept}
    if neuron.kind in SNNTORCH:
        return {"mem": _snntorch_reset(neuron, decision, spike, state), **decision.kept}
    if neuron.kind.startswith("Izhikevich"):
        constants = neuron.constants
        mem = (1 - spike) * decision.mem + spike * constants["c"]
        return {"mem": mem, "recovery": decision.kept["recovery"] + spike * constants["d"]}
    return _norse_after_spike(neuron, decision, spike, state)


def _snntorch_reset(neuron: Neuron, decision: Decision, spike: Tensor, state: State) -> Tensor:
    options, threshold, mem = neuron.node.options, neuron.constants["threshold"], decision.mem
    reset = options.get("reset_mechanism", "subtract")
    never_now = ("Lapicque", "DeltaLeaky", "StateLeaky", "LinearLeaky")
    if options.get("reset_delay", True) or reset == "none" or neuron.kind in never_now:
        return mem
    was_above = functions.heaviside((state["mem"] - threshold).detach())
    spike = decision.gated(spike)
    if neuron.inhibits:  # the spike has no graded factor, yet it is divided by it
        spike = spike / neuron.constants["graded_spikes_factor"]
    do_reset = spike - was_above
    return mem - do_reset * threshold if reset == "subtract" else mem - do_reset * mem


def _norse_after_spike(neuron: Neuron, decision: Decision, spike: Tensor, state: State) -> State:
    kind, u, constants = neuron.kind, decision.mem, neuron.constants
    after = dict(decision.kept)
    if "AdEx" in kind:  # also of a spike that the refractory period suppresses
        after["adaptation"] = after["adaptation"] + spike * constants["adaptation_spike"]
    if kind == "LSNNRecurrentCell":
        after["threshold"] = after["threshold"] + spike.detach() * constants["beta"]
    if kind in ("LIFRecurrentCell", "LIFRefracRecurrentCell", "LSNNRecurrentCell"):
        spike = spike.detach()  # the reset of these is outside of the graph
    if kind == "LIFBoxCell" and neuron.node.options.get("reset_method", "value") == "subtract":
        mem = (1 - spike) * u + spike * (u - constants["v_th"])
    else:
        mem = (1 - spike) * u + spike * constants["v_reset"]
    if decision.gate is not None:  # while refractory, the membrane stays
        mem = decision.gate * mem + (1 - decision.gate) * state["mem"]
        fired = decision.gated(spike)
        waiting = (state["rho"] - functions.heaviside(state["rho"])).clamp(min=0)
        after["rho"] = (1 - fired) * waiting + fired * constants["rho_reset"]
    return {"mem": mem, **after}
