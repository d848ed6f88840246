"""Networks as data: one description that the oracle steps through and that tests.cases turns into torch modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

SNNTORCH = ("Leaky", "RLeaky", "Synaptic", "RSynaptic", "Lapicque", "DeltaLeaky", "StateLeaky", "LinearLeaky")
NORSE_SPIKING = (
    "LIFCell",
    "LIFBoxCell",
    "LIFRecurrentCell",
    "IAFCell",
    "LIFExCell",
    "LIFExRecurrentCell",
    "LIFAdExCell",
    "LIFAdExRecurrentCell",
    "LIFRefracCell",
    "LIFRefracRecurrentCell",
    "LIFAdExRefracCell",
    "LIFAdExRefracRecurrentCell",
    "IzhikevichCell",
    "IzhikevichRecurrentCell",
    "LSNNRecurrentCell",
)
NORSE_READOUT = ("LICell", "LIBoxCell", "LILinearCell")
# Norse's modules that run a whole sequence, and the cell whose step each of them takes
NORSE_SEQUENCES = {
    "LIF": "LIFCell",
    "LIFRecurrent": "LIFRecurrentCell",
    "IAF": "IAFCell",
    "LIFEx": "LIFExCell",
    "LIFExRecurrent": "LIFExRecurrentCell",
    "LIFAdEx": "LIFAdExCell",
    "LIFAdExRecurrent": "LIFAdExRecurrentCell",
    "LIFRefracRecurrent": "LIFRefracRecurrentCell",
    "LIFAdExRefracRecurrent": "LIFAdExRefracRecurrentCell",
    "Izhikevich": "IzhikevichCell",
    "IzhikevichRecurrent": "IzhikevichRecurrentCell",
    "LSNNRecurrent": "LSNNRecurrentCell",
    "LI": "LICell",
}
# modules whose input has the time as its first dimension
SEQUENCES = (*NORSE_SEQUENCES, "StateLeaky", "LinearLeaky")
NEURONS = SNNTORCH + NORSE_SPIKING + NORSE_READOUT
SYNAPSES = (
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
)


@dataclass(frozen=True)
class Node:
    """One module: a synapse, a neuron or something stateless in between.

    ``inputs`` names earlier nodes; ``"x"`` is the input of the network, ``"lif.mem"`` the returned membrane of the
    neuron ``lif`` and ``"lif@before"`` its spikes at the step before (at first zeros of shape ``options["start"]``).
    Several inputs of a module are summed, except those of Product and Concat.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> str:
        """The kind of neuron whose step this one takes."""
        return NORSE_SEQUENCES.get(self.kind, self.kind)

    @property
    def is_neuron(self) -> bool:
        return self.cell in NEURONS

    @property
    def own_input(self) -> str | None:
        """The synapse inside the neuron that its input passes first."""
        if self.cell == "LILinearCell" or self.has_norse_recurrence:
            return "input_weights"
        return "linear" if self.cell == "LinearLeaky" else None

    @property
    def has_norse_recurrence(self) -> bool:
        return self.cell.endswith("RecurrentCell")

    @property
    def own_synapses(self) -> tuple[str, ...]:
        """Synapses inside the neuron, in order of execution."""
        if self.cell in ("RLeaky", "RSynaptic"):
            return ("recurrent",)
        if self.has_norse_recurrence:
            return ("input_weights", "recurrent_weights")
        return () if self.own_input is None else (self.own_input,)

    @property
    def is_late(self) -> bool:
        """Whether the input of a step only acts at the next one."""
        return self.cell == "LSNNRecurrentCell"

    @property
    def is_synapse(self) -> bool:
        return self.kind in SYNAPSES


@dataclass(frozen=True)
class Net:
    """A network: its modules in order of execution, all parameter values, and what the loss sees.

    ``computed[w] = (function, names)`` says that weight ``w`` is not a parameter but ``function`` of those named.
    """

    nodes: tuple[Node, ...]
    params: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    computed: Mapping[str, tuple[Callable[..., torch.Tensor], tuple[str, ...]]] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def synapses_before(self, neuron: Node) -> list[str]:
        """Names of the synapses that reach ``neuron`` without passing another neuron, in order of execution."""
        found: set[str] = set()
        todo = list(neuron.inputs)
        while todo:
            name = todo.pop().removesuffix(".mem")
            if name == "x" or name.endswith("@before") or self.node(name).is_neuron:
                continue
            node = self.node(name)
            if node.is_synapse:
                found.add(name)
            todo += node.inputs
        return [node.name for node in self.nodes if node.name in found]

    def shared_from_before(self) -> set[str]:
        """Nodes whose output is an input of the next step."""
        return {name.removesuffix("@before") for node in self.nodes for name in node.inputs if name.endswith("@before")}

    def with_params(self, **changes: torch.Tensor) -> Net:
        return replace(self, params={**self.params, **changes})
