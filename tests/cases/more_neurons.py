"""Neurons beyond the plain ones: inhibition, quantised states, graded spikes, adaptation, refractory periods, and
modules that run sequences.

Each entry: kind, what the case is called besides its kind, options, and further fields of NeuronSetup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Entry = tuple[str, str, Mapping[str, Any], Mapping[str, Any]]

LEAK = {"beta": 0.875, "alpha": 0.75, "threshold": 0.75}
ZERO_NOW = {"reset_mechanism": "zero", "reset_delay": False}
# their levels differ from the thresholds, so that no v is zero
UNIFORM = {"num_bits": 4, "threshold": 0.8125, "lower_limit": 0.0, "upper_limit": 4 / 13}
GEOMETRIC = {"num_bits": 5, "uniform": False, "threshold": 0.6875, "upper_limit": 0.5, "multiplier": 0.75}
AROUND_ZERO = {**GEOMETRIC, "num_bits": 4, "thr_centered": False, "lower_limit": 0.25}
NORSE = {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_leak": 0.125, "v_th": 0.75, "v_reset": -0.25}
ADAPTATION = {"delta_T": 0.375, "tau_ada_inv": 31.25, "adaptation_current": 1.5, "adaptation_spike": 0.25}
# the usual numbers of a bursting neuron for volts in tenths, so that psi is not zero nearly everywhere
IZHIKEVICH = {"a": 0.0625, "b": 0.25, "c": -0.5, "d": 0.0625, "sq": 4.0, "mn": 5.0, "bias": 1.375, "v_th": 0.3125}
IZHIKEVICH |= {"v_rest": -0.625, "u_rest": -0.15625}


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


PER_UNIT = _tensor(0.5, 1.25, 0.875, 1.5)


def more_neurons() -> Iterator[Entry]:
    """All of them."""
    yield from _delta()
    yield from _inhibition()
    yield from _quantised()
    yield from _graded()
    yield from _state_leaky()
    yield from _spatial()
    yield from _norse_cells()
    yield from _norse_sequences()


def _delta() -> Iterator[Entry]:
    options = {"beta": 0.75, "delta_threshold": 0.375}
    yield "DeltaLeaky", "explicit", options, {}
    yield "DeltaLeaky", "hidden", options, {"hidden": True}
    yield "DeltaLeaky", "learned", options, {"learned": {"beta": _tensor(0.5, 0.75, 0.875, 1.25)}}


def _inhibition() -> Iterator[Entry]:
    leak = {k: v for k, v in LEAK.items() if k != "alpha"} | {"inhibition": True}
    yield "Leaky", "inhibition-subtract-late", leak, {}
    yield "Leaky", "inhibition-subtract-now", {**leak, "reset_delay": False}, {}
    yield "Leaky", "inhibition-zero-now", {**leak, **ZERO_NOW}, {}
    yield "Leaky", "inhibition-none", {**leak, "reset_mechanism": "none"}, {}
    yield "Leaky", "inhibition-hidden", leak, {"hidden": True}
    yield "Leaky", "inhibition-graded-now", {**leak, "reset_delay": False, "graded_spikes_factor": 0.625}, {}
    yield "Leaky", "inhibition-learned", {"beta": 0.875, "inhibition": True}, {"learned": {"threshold": PER_UNIT / 2}}
    yield "RLeaky", "inhibition-zero-now", {**leak, **ZERO_NOW, "recurrent": "linear"}, {}
    yield "Synaptic", "inhibition-subtract-now", {**LEAK, "inhibition": True, "reset_delay": False}, {}
    yield "RSynaptic", "inhibition-zero", {**LEAK, "inhibition": True, "reset_mechanism": "zero"} | _LINEAR, {}
    yield "Lapicque", "inhibition-subtract", {"beta": 0.75, "threshold": 0.5, "inhibition": True}, {}


_LINEAR = {"recurrent": "linear"}


def _quantised() -> Iterator[Entry]:
    leak = {k: v for k, v in LEAK.items() if k != "alpha"}
    uniform, geometric, around_zero = ({"state_quant": quant} for quant in (UNIFORM, GEOMETRIC, AROUND_ZERO))
    yield "Leaky", "uniform-subtract-late", {**leak, **uniform}, {}
    yield "Leaky", "geometric-zero-now", {**leak, **ZERO_NOW, **geometric}, {}
    yield "Leaky", "around_zero-hidden", {**leak, **around_zero}, {"hidden": True}
    yield "Leaky", "uniform-inhibition", {**leak, **uniform, "inhibition": True}, {}
    yield "Leaky", "geometric-graded", {**leak, **geometric, "graded_spikes_factor": 0.75, "reset_delay": False}, {}
    yield "RLeaky", "uniform-zero-now", {**leak, **ZERO_NOW, **uniform, **_LINEAR}, {}
    yield "Synaptic", "geometric-subtract-now", {**LEAK, **geometric, "reset_delay": False}, {}
    yield "RSynaptic", "uniform-zero", {**LEAK, **uniform, **_LINEAR, "reset_mechanism": "zero"}, {}
    yield "Lapicque", "around_zero", {"beta": 0.75, "threshold": 0.5, **around_zero}, {}


def _graded() -> Iterator[Entry]:
    leak = {k: v for k, v in LEAK.items() if k != "alpha"}
    for number, reset in enumerate(("subtract", "zero", "none")):
        for delay in (True, False):
            name = f"{reset}-{'late' if delay else 'now'}"
            options = {**leak, "reset_mechanism": reset, "reset_delay": delay}
            fixed, learned = (PER_UNIT, _tensor(0.75)) if number + delay == 1 else (_tensor(0.625), PER_UNIT)
            yield "Leaky", f"graded-{name}", {**options, "graded_spikes_factor": fixed}, {}
            yield "Leaky", f"graded-learned-{name}", options, {"learned": {"graded_spikes_factor": learned}}
    yield "Leaky", "graded-hidden", {**leak, "graded_spikes_factor": PER_UNIT}, {"hidden": True}


def _state_leaky() -> Iterator[Entry]:
    leak = {"beta": 0.75, "threshold": 0.75}
    tau = {"beta": _tensor(0.5, 0.75, 0.875, 0.5), "tau": _tensor(2.0, 4.0, 8.0, 1.5)}
    yield "StateLeaky", "scalar", leak, {}
    yield "StateLeaky", "graded-quantised", {**leak, "graded_spikes_factor": 0.75, "state_quant": GEOMETRIC}, {}
    learned = {**tau, "threshold": _tensor(0.75), "graded_spikes_factor": PER_UNIT}
    yield "StateLeaky", "graded-learned", {}, {"learned": learned}
    yield "LinearLeaky", "per-unit", {**leak, "beta": tau["beta"]}, {}
    yield "LinearLeaky", "learned", leak, {"learned": {name: value[:1] for name, value in tau.items()}}


def _spatial() -> Iterator[Entry]:
    leak = {"beta": 0.875, "threshold": 0.75}
    per_channel = {"graded_spikes_factor": PER_UNIT.reshape(4, 1, 1)}
    yield "DeltaLeaky", "conv", {"beta": 0.75, "delta_threshold": 0.375}, {"spatial": True}
    yield "Leaky", "graded-learned-conv", leak, {"learned": per_channel, "spatial": True}
    yield "Synaptic", "uniform-conv", {**LEAK, "state_quant": UNIFORM}, {"spatial": True}
    yield "LIFAdExRefracCell", "conv", {**NORSE, **ADAPTATION, "rho_reset": 1.0}, {"spatial": True}
    yield "IzhikevichCell", "conv", IZHIKEVICH, {"spatial": True}


def _norse_cells() -> Iterator[Entry]:
    triangle, tanh = {"surrogate": ("triangle", 0.5)}, {"surrogate": ("tanh", 2.0)}
    yield "LIFExCell", "default", {}, {}
    yield "LIFExCell", "constants", {**NORSE, "delta_T": 0.375, **tanh}, {}
    yield "LIFExRecurrentCell", "constants", {**NORSE, "delta_T": 0.375, **triangle}, {}
    yield "LIFAdExCell", "default", {}, {}
    yield "LIFAdExCell", "constants", {**NORSE, **ADAPTATION, **triangle}, {}
    yield "LIFAdExRecurrentCell", "constants", {**NORSE, **ADAPTATION, "autapses": True}, {}
    yield "LIFRefracCell", "default", {}, {}
    yield "LIFRefracCell", "short", {**NORSE, "rho_reset": 1.0, **tanh}, {}
    yield "LIFRefracCell", "fraction", {**NORSE, "rho_reset": 1.5}, {}
    yield "LIFRefracRecurrentCell", "default", {}, {}
    yield "LIFRefracRecurrentCell", "short", {**NORSE, "rho_reset": 2.0, **triangle}, {}
    yield "LIFAdExRefracCell", "short", {**NORSE, **ADAPTATION, "rho_reset": 2.0}, {}
    yield "LIFAdExRefracRecurrentCell", "short", {**NORSE, **ADAPTATION, "rho_reset": 1.0, **tanh}, {}
    yield "IzhikevichCell", "volts", IZHIKEVICH, {}
    yield "IzhikevichCell", "millivolts", {}, {"scale": 600.0}
    yield "IzhikevichRecurrentCell", "volts", {**IZHIKEVICH, **tanh}, {}
    yield "LSNNRecurrentCell", "default", {}, {}
    lsnn = {**NORSE, "beta": 0.375, "tau_adapt_inv": 62.5}
    yield "LSNNRecurrentCell", "constants", {**lsnn, **triangle}, {}


def _norse_sequences() -> Iterator[Entry]:
    triangle = {"surrogate": ("triangle", 0.5)}
    yield "LIF", "sequence", NORSE, {}
    yield "LIFRecurrent", "sequence", {**NORSE, **triangle}, {}
    yield "IAF", "sequence", {"v_th": 0.75, "v_reset": -0.25}, {}
    yield "LIFEx", "sequence", {**NORSE, "delta_T": 0.375}, {}
    yield "LIFExRecurrent", "sequence", {**NORSE, "delta_T": 0.375}, {}
    yield "LIFAdEx", "sequence", {**NORSE, **ADAPTATION}, {}
    yield "LIFAdExRecurrent", "sequence", {**NORSE, **ADAPTATION, **triangle}, {}
    yield "LIFRefracRecurrent", "sequence", {**NORSE, "rho_reset": 2.0}, {}
    yield "LIFAdExRefracRecurrent", "sequence", {**NORSE, **ADAPTATION, "rho_reset": 1.0}, {}
    yield "Izhikevich", "sequence", IZHIKEVICH, {}
    yield "IzhikevichRecurrent", "sequence", IZHIKEVICH, {}
    yield "LSNNRecurrent", "sequence", {**NORSE, "beta": 0.375, "tau_adapt_inv": 62.5}, {}


MORE_READOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LI-sequence": ("LI", {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "v_leak": 0.125}),
    "StateLeaky-membrane": ("StateLeaky", {"beta": 0.75, "output": False, "channels": 3}),
    "LinearLeaky-membrane": ("LinearLeaky", {"beta": 0.875, "output": False}),
}
