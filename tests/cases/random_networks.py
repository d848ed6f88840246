"""Random small networks: blocks of every kind of wiring, each with another neuron.

Hypothesis draws the architecture. The weights come from the first of some seeds with which every neuron spikes now and
then, so that few of the networks are silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from tests.cases.case import Case, bias, exact, generator, spike_input, weight
from tests.cases.strategies import constants, norse_neurons, snntorch_neurons
from tests.oracles.spec import NORSE_READOUT, Net, Node
from tests.oracles.stllr import Oracle, Rule

Shape = tuple[int, ...]
Make = Callable[[torch.Generator], Tensor]

# what the currents of a neuron are multiplied with for it to spike in a few steps
GAIN = {"Lapicque": 2.0, "LIFCell": 4.0, "LIFBoxCell": 3.0, "LIFRecurrentCell": 4.0, "LICell": 4.0, "LIBoxCell": 4.0}
SEEDS = 30
LAYOUTS = ("contiguous", "expanded", "every second", "transposed", "channels_last")


@dataclass
class Plan:
    """An architecture whose parameters are still recipes."""

    nodes: list[Node] = field(default_factory=list)
    params: dict[str, Make] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    mixes_samples: bool = False
    grown: bool = False  # with what only the slow test and its like try

    def add(self, node: Node, shape: Shape) -> str:
        self.nodes.append(node)
        self.shapes[node.name] = shape
        return node.name

    def synapse(self, name: str, inputs: tuple[str, ...], out: int, gain: float, options: dict[str, Any]) -> str:
        """A linear layer, or a convolution where the input has an extent."""
        shape = self.shapes[inputs[0]]
        biased, into = options.pop("biased"), shape[0]
        if len(shape) == 1:
            self.params[f"{name}.weight"] = lambda rng: weight((out, into), rng, gain)
            node, grown = Node(name, "Linear", inputs), (out,)
        else:
            extent, stride = options.pop("extent"), options.get("stride", 1)
            options["padding"] = extent // 2
            groups = options.get("groups", 1)
            self.params[f"{name}.weight"] = lambda rng: weight((out, into // groups, extent, extent), rng, gain)
            node = Node(name, "Conv2d", inputs, options)
            grown = (out, *[(size - 1) // stride + 1 for size in shape[1:]])
        if biased:
            self.params[f"{name}.bias"] = lambda rng: bias(out, rng, gain)
        return self.add(node, grown)

    def norm(self, name: str, kind: str, source: str, gain: float) -> str:
        shape = self.shapes[source]
        # the first affine weight carries what the currents must be multiplied with
        self.params[f"{name}.weight"] = lambda rng: exact(gain * (0.5 + torch.rand(shape[0], generator=rng).double()))
        self.params[f"{name}.bias"] = lambda rng: bias(shape[0], rng, 2 * gain)
        self.mixes_samples = self.mixes_samples or kind.startswith("Batch")
        return self.add(Node(name, kind, (source,), {"groups": 1} if kind == "GroupNorm" else {}), shape)


@st.composite
def neurons(draw: st.DrawFn, shape: Shape) -> tuple[str, dict[str, Any]]:
    """A spiking neuron for a layer of this shape."""
    kind, options = draw(st.one_of(snntorch_neurons(), snntorch_neurons(), norse_neurons()))
    if len(shape) == 1 and draw(st.integers(0, 9)) == 0:
        kind, options = (
            "LIFRecurrentCell",
            {"v_th": draw(constants), "tau_mem_inv": 250.0, "autapses": draw(st.booleans())},
        )
    if options.get("recurrent") and len(shape) == 3:
        options["recurrent"] = "conv"
    return kind, options


def per_unit(plan: Plan, draw: st.DrawFn, name: str, units: int, options: dict[str, Any]) -> None:
    """Leaks and thresholds that differ from unit to unit, learnt or not."""
    for key in draw(st.sampled_from([("beta",), ("threshold",), ("beta", "threshold")])):
        value = options[key] * (0.75 + 0.25 * torch.arange(units, dtype=torch.float64) / units)
        if draw(st.booleans()):
            plan.params[f"{name}.{key}"] = lambda rng, value=value: exact(value)
        else:
            options[key] = exact(value)


def add_neuron(
    plan: Plan, draw: st.DrawFn, name: str, inputs: tuple[str, ...], kind: str, options: dict[str, Any]
) -> str:
    shape = plan.shapes[inputs[0]]
    units = shape[0]
    recurrent = options.get("recurrent")
    if kind == "LIFRecurrentCell":
        into, out = units, draw(st.integers(2, 4))
        plan.params[f"{name}.input_weights"] = lambda rng: weight((out, into), rng, GAIN[kind])

        def recurrent_weights(rng: torch.Generator) -> Tensor:
            value = weight((out, out), rng, 2.0)
            return value if options["autapses"] else value * (1 - torch.eye(out, dtype=torch.float64))

        plan.params[f"{name}.recurrent_weights"] = recurrent_weights
        shape = (out,)
    elif recurrent == "linear":
        plan.params[f"{name}.recurrent.weight"] = lambda rng: weight((units, units), rng, 0.5)
        plan.params[f"{name}.recurrent.bias"] = lambda rng: bias(units, rng, 0.3)
    elif recurrent == "conv":
        plan.params[f"{name}.recurrent.weight"] = lambda rng: weight((units, units, 3, 3), rng, 0.5)
    elif recurrent == "one_to_one":
        plan.params[f"{name}.V"] = lambda rng: weight((units, 1), rng, 0.5).flatten()
    if "beta" in options and kind != "Lapicque" and plan.grown and len(shape) == 1 and draw(st.booleans()):
        per_unit(plan, draw, name, units, options)
    elif "beta" in options and kind != "Lapicque" and draw(st.integers(0, 4)) == 0:
        beta, threshold = options["beta"], options["threshold"]
        plan.params[f"{name}.beta"] = lambda rng: torch.tensor(beta, dtype=torch.float64)
        plan.params[f"{name}.threshold"] = lambda rng: torch.tensor(threshold, dtype=torch.float64)
    return plan.add(Node(name, kind, inputs, options), shape)


def add_block(plan: Plan, draw: st.DrawFn, i: int, sources: tuple[str, ...], layers: list[str]) -> tuple[str, ...]:
    """Synapses, what stands behind them, and a neuron; gives the inputs of the next block."""
    shape = plan.shapes[sources[0]]
    if len(shape) == 3 and draw(st.integers(0, 3)) == 0:
        if len(sources) > 1:
            sources = (plan.add(Node(f"sum{i}", "Scale", sources, {"factor": 1.0}), shape),)
        kind = draw(st.sampled_from(["Flatten", "MeanHW"]))
        size = shape[0] * (shape[1] * shape[2] if kind == "Flatten" else 1)
        sources = (plan.add(Node(f"flat{i}", kind, sources), (size,)),)
        shape = (size,)
    kind, options = draw(neurons(shape))
    if kind == "LIFRecurrentCell":
        lif = add_neuron(plan, draw, f"lif{i}", sources, kind, options)
        layers.append(lif)
        return (lif,)

    gain = GAIN.get(kind, 1.0)
    norm = draw(st.sampled_from(["", "", "", "BatchNorm", "GroupNorm"]))
    spatial = len(shape) == 3
    same = draw(st.booleans())
    out = shape[0] if same else draw(st.integers(2, 4))
    conv: dict[str, Any] = {"biased": not norm and draw(st.booleans())}
    if spatial:
        conv |= {"extent": draw(st.sampled_from([1, 3])), "stride": draw(st.sampled_from([1, 1, 2]))}
        if shape[0] % 2 == 0 and out % 2 == 0 and draw(st.booleans()):
            conv["groups"] = 2
    if spatial and shape[1] < 2:
        conv["stride"] = 1
    stride = conv.get("stride", 1)
    currents = [plan.synapse(f"fc{i}", sources, out, gain, conv)]
    if norm == "GroupNorm" and math.prod(plan.shapes[currents[0]]) < 4:  # of two elements it makes 1 and -1
        norm = ""
    if norm:
        kind_of_norm = norm if norm == "GroupNorm" else f"BatchNorm{2 if spatial else 1}d"
        currents = [plan.norm(f"norm{i}", kind_of_norm, currents[0], gain)]
    if spatial and min(plan.shapes[currents[0]][1:]) >= 2 and draw(st.integers(0, 3)) == 0:
        pooled = plan.shapes[currents[0]]
        pooled = (pooled[0], *[size // 2 for size in pooled[1:]])
        pool = draw(st.sampled_from(["AvgPool2d", "MaxPool2d"]))
        currents = [plan.add(Node(f"pool{i}", pool, (currents[0],), {"size": 2}), pooled)]
    here = plan.shapes[currents[0]]

    extra = draw(st.sampled_from(["", "", "shortcut", "identity", "again", "own recurrence", "pooled input"]))
    factor = draw(st.sampled_from([-0.5, 0.5, 1.0]))
    strided = (out, *[(size - 1) // stride + 1 for size in shape[1:]])
    if extra == "shortcut" and strided == here:
        biased = draw(st.booleans())
        short = {"biased": biased, "extent": 1, "stride": stride} if spatial else {"biased": biased}
        currents.append(plan.synapse(f"short{i}", sources[:1], out, gain, short))
    elif extra == "identity" and here == shape:
        currents.append(plan.add(Node(f"same{i}", "Scale", sources, {"factor": factor}), shape))
    elif extra == "again" and not norm and strided == here:  # the same synapse on another input
        other = plan.add(Node(f"other{i}", "Tanh", sources), shape)
        node = next(node for node in plan.nodes if node.name == f"fc{i}")
        again = Node(f"again{i}", node.kind, (other,), {**node.options, "shares": f"fc{i}"})
        currents.append(plan.add(again, here))
    elif extra == "own recurrence" and len(here) == 1:
        plan.params[f"rec{i}.weight"] = lambda rng: weight((out, out), rng, 0.5 * gain)
        currents.append(plan.add(Node(f"rec{i}", "Linear", (f"lif{i}@before",), {"start": here}), here))
    elif extra == "pooled input" and spatial and out == shape[0] and here[1:] == tuple(s // 2 for s in shape[1:]):
        currents.append(plan.add(Node(f"less{i}", "AvgPool2d", sources, {"size": 2}), here))
    lif = add_neuron(plan, draw, f"lif{i}", tuple(currents), kind, options)
    layers.append(lif)
    following = draw(st.sampled_from(["spikes", "spikes", "residual", "concat", "unpooled"]))
    older = [name for name in (*sources, *layers[:-1]) if plan.shapes[name] == here]
    if following == "residual" and older:
        return (lif, draw(st.sampled_from(older)))
    if following == "concat" and older:
        both = (lif, draw(st.sampled_from(older)))
        return (plan.add(Node(f"cat{i}", "Concat", both), (2 * here[0], *here[1:])),)
    larger = [n for n in layers[:-1] if plan.shapes[n][1:] == tuple(2 * s for s in here[1:]) and spatial]
    if following == "unpooled" and larger:
        grown = (here[0], *[2 * size for size in here[1:]])
        up = plan.add(Node(f"up{i}", "Upsample", (lif,), {"factor": 2}), grown)
        skip = draw(st.sampled_from(larger))
        return (plan.add(Node(f"cat{i}", "Concat", (up, skip)), (grown[0] + plan.shapes[skip][0], *grown[1:])),)
    return (lif,)


def add_outputs(plan: Plan, draw: st.DrawFn, sources: tuple[str, ...], layers: list[str]) -> tuple[str, ...]:
    last = layers[-1]
    choice = draw(st.sampled_from(["spikes", "membrane", "both", "several", "plain", "plain", "leaky"]))
    if choice in ("spikes", "membrane", "both"):
        return {"spikes": (last,), "membrane": (f"{last}.mem",), "both": (last, f"{last}.mem")}[choice]
    shape = plan.shapes[sources[0]]
    if choice == "several":
        return tuple(dict.fromkeys((draw(st.sampled_from(layers)), f"{draw(st.sampled_from(layers))}.mem", last)))
    if len(shape) == 3:
        whole = plan.add(Node("whole", "Scale", sources, {"factor": 1.0}), shape)
        sources = (plan.add(Node("flat", "Flatten", (whole,)), (shape[0] * shape[1] * shape[2],)),)
    plan.synapse("out", sources, draw(st.integers(1, 3)), 1.0, {"biased": draw(st.booleans())})
    if choice == "plain":
        return ("out", f"{last}.mem") if draw(st.booleans()) else ("out",)
    kind = draw(st.sampled_from([*sorted(set(NORSE_READOUT) - {"LILinearCell"}), "Leaky"]))
    options = {"beta": 0.75, "reset_mechanism": "none"} if kind == "Leaky" else {}
    plan.add(Node("readout", kind, ("out",), options), plan.shapes["out"])
    return ("readout.mem",) if kind == "Leaky" else ("readout",)


def laid_out(xs: Tensor, layout: str) -> Tensor:
    """The inputs with other strides; "expanded" has the same sample several times, and the same memory for it."""
    if layout == "expanded":
        return xs[:, :1].expand_as(xs)
    if layout == "every second":
        return xs.repeat_interleave(2, 1)[:, ::2]
    if layout == "transposed":
        return xs.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and xs.dim() == 5:
        return xs.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return xs


@st.composite
def random_networks(draw: st.DrawFn, grown: bool = False) -> Case:
    """One to four layers, dense, convolutional or both, of up to four kinds of neuron.

    ``grown`` adds constants per unit, several outputs more often, and inputs of other layouts.
    """
    plan, layers = Plan(grown=grown), list[str]()
    plan.shapes["x"] = draw(st.sampled_from([(2,), (3,), (5,), (2, 4, 4), (1, 4, 2), (2, 3, 3)]))
    sources: tuple[str, ...] = ("x",)
    for i in range(draw(st.integers(1, 4))):
        sources = add_block(plan, draw, i, sources, layers)
    outputs = add_outputs(plan, draw, sources, layers)
    steps, batch = draw(st.integers(2, 6)), draw(st.integers(4, 5) if plan.mixes_samples else st.integers(1, 3))
    hidden, start = draw(st.booleans()), draw(st.integers(0, 2**31))
    layout = draw(st.sampled_from(LAYOUTS)) if grown and not plan.mixes_samples else "contiguous"
    for seed in range(start, start + SEEDS):
        rng = generator(seed)
        params = {name: make(rng) for name, make in plan.params.items()}
        xs = laid_out(spike_input((steps, batch, *plan.shapes["x"]), rng), layout)
        case = Case("random", Net(tuple(plan.nodes), params, outputs), xs, hidden)
        found = Oracle(case.net, Rule()).run(xs, None)
        rates = [spikes.mean().item() for name, spikes in found.spikes.items() if name != "readout"]
        if all(0.02 < rate < 0.9 for rate in rates):
            return case
    assume(False)
    raise AssertionError
