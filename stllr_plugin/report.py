"""What a learner found in a model, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Edge:
    """One synapse feeding one neuron.

    Attributes:
        name: ``"<synapse>-><neuron>"``.
        synapse: Name of the synapse.
        neuron: Name of the neuron.
        rule: The edge's rule as plain data.
        spiking: Whether the neuron spikes. A readout that does not uses lambda_pre alone: its gradient is that of the
            loss on its membrane times the presynaptic trace.
        reached: Whether a gradient came to it before the last update; None before the first update.
    """

    name: str
    synapse: str
    neuron: str
    rule: dict[str, Any]
    spiking: bool = True
    reached: bool | None = None


@dataclass(frozen=True)
class Report:
    """What is trained how. ``str(report)`` is a table.

    Attributes:
        edges: Edges seen so far; empty before the first step in training mode, since connections show when the model
            runs.
        synapses: Name to type of each synapse.
        neurons: Name to type of each neuron.
        readouts: Synapses that no neuron consumed in the steps seen so far; they get their ordinary gradient.
        other_parameters: Trainable parameters that belong to no synapse (norm layers, thresholds, leaks, your own);
            they get their ordinary gradient of the same time step.
        excluded: Modules left alone on request.
        settings: Learning signal, supervision and so on.
    """

    edges: tuple[Edge, ...] = ()
    synapses: dict[str, str] = field(default_factory=dict)
    neurons: dict[str, str] = field(default_factory=dict)
    readouts: tuple[str, ...] = ()
    other_parameters: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The table."""
        lines = ["S-TLLR: " + ", ".join(f"{name}={value}" for name, value in self.settings.items())]
        if self.edges:
            rows: list[tuple[str, ...]] = [_COLUMNS]
            for edge in self.edges:
                r = edge.rule
                numbers = [f"{r[name]:g}" for name in ("alpha_pre", "lambda_pre", "alpha_post", "lambda_post")]
                psi = _short(r["psi"])
                if not edge.spiking:
                    numbers, psi = ["-", numbers[1], "-", "-"], "- (loss on the membrane)"
                rows.append((edge.name, *numbers, psi, _SIGNAL[edge.reached]))
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
            lines += [
                ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
                for row in rows
            ]
        else:
            lines.append("  edges: none seen yet (they show in the first training step)")
            lines += [f"  synapse {name} ({kind})" for name, kind in self.synapses.items()]
            lines += [f"  neuron {name} ({kind})" for name, kind in self.neurons.items()]
        for title, names in (
            ("ordinary gradient (readouts)", self.readouts),
            ("ordinary gradient of the same step (other parameters)", self.other_parameters),
            ("left alone (excluded)", self.excluded),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(names)}")
        return "\n".join(lines)


_COLUMNS = ("edge", "alpha_pre", "lambda_pre", "alpha_post", "lambda_post", "psi", "signal")
_SIGNAL = {None: "-", True: "yes", False: "NONE"}


def _short(psi: Any) -> str:
    if psi is None:
        return "own surrogate"
    if isinstance(psi, dict):
        return f"{psi['name']}({', '.join(f'{k}={v:g}' for k, v in psi.items() if k != 'name')})"
    return str(psi)
