"""Networks whose point is what stands between a synapse and its neuron, or how they are wired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.cases.case import Case, bias, exact, generator, settle, spike_input, weight
from tests.oracles.spec import Net, Node

Parts = tuple[list[Node], dict[str, Tensor], tuple[str, ...], Tensor]  # nodes, parameters, outputs, inputs
Build = Callable[[torch.Generator], Parts]

LIF = {"beta": 0.75, "threshold": 0.75}
NOW = {**LIF, "reset_delay": False, "reset_mechanism": "zero"}
STRUCTURES: dict[str, Build] = {}
# carry something over to the next step with its graph where the learner cannot cut it off exactly
ENTANGLED: dict[str, Build] = {}


def structure(build: Build) -> Build:
    """Register a structure under the name of its function."""
    STRUCTURES[build.__name__] = build
    return build


def entangled(build: Build) -> Build:
    """Register a network that joins time steps in a way that is to be refused."""
    ENTANGLED[build.__name__] = build
    return build


@cache
def structure_case(name: str) -> Case:
    def build(seed: int) -> Case:
        nodes, params, outputs, xs = (STRUCTURES | ENTANGLED)[name](generator(seed))
        return Case(f"structure:{name}", Net(tuple(nodes), params, outputs), xs)

    return settle(build)


def linear(name: str, *inputs: str, **options: Any) -> Node:
    return Node(name, "Linear", inputs, options)


def leaky(name: str, *inputs: str, **options: Any) -> Node:
    return Node(name, "Leaky", inputs, {**LIF, **options})


def conv_stack(rng: torch.Generator, middle: list[Node], features: int, options: Mapping[str, Any]) -> Parts:
    params = {"conv1.weight": weight((4, 2, 3, 3), rng), "conv1.bias": bias(4, rng)}
    params |= {"fc2.weight": weight((3, features), rng, 1.5), "fc2.bias": bias(3, rng)}
    nodes = [Node("conv1", "Conv2d", ("x",), {"padding": 1}), *middle]
    nodes += [Node("lif1", "Leaky", (middle[-1].name,), options), Node("flat", "Flatten", ("lif1",))]
    nodes += [linear("fc2", "flat"), leaky("lif2", "fc2", **options)]
    return nodes, params, ("lif2", "lif2.mem"), spike_input((4, 2, 2, 4, 4), rng)


def norm(rng: torch.Generator, name: str, features: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": exact(0.75 + 0.5 * torch.rand(features, generator=rng).double()),
        f"{name}.bias": bias(features, rng, 2.0),
    }


@structure
def batch_norm2d(rng: torch.Generator) -> Parts:
    nodes, params, outputs, xs = conv_stack(rng, [Node("bn", "BatchNorm2d", ("conv1",))], 64, LIF)
    del params["conv1.bias"]  # its gradient is zero, and rounding noise in practice
    return nodes, params | norm(rng, "bn", 4), outputs, xs


@structure
def batch_norm1d(rng: torch.Generator) -> Parts:
    params = {
        "fc1.weight": weight((4, 3), rng),
        **norm(rng, "bn1", 4),
        "fc2.weight": weight((3, 4), rng),
        **norm(rng, "bn2", 3),
    }
    nodes = [linear("fc1", "x"), Node("bn1", "BatchNorm1d", ("fc1",)), leaky("lif1", "bn1")]
    nodes += [
        linear("fc2", "lif1"),
        Node("bn2", "BatchNorm1d", ("fc2",)),
        leaky("lif2", "bn2", **NOW),
    ]
    return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 4, 3), rng)


@structure
def group_norm(rng: torch.Generator) -> Parts:
    nodes, params, outputs, xs = conv_stack(rng, [Node("gn", "GroupNorm", ("conv1",), {"groups": 2})], 64, NOW)
    del params["conv1.bias"]  # most of its gradient cancels within a group
    return nodes, params | norm(rng, "gn", 4), outputs, xs


@structure
def avg_pool(rng: torch.Generator) -> Parts:
    return conv_stack(rng, [Node("pool", "AvgPool2d", ("conv1",), {"size": 2})], 16, LIF)


@structure
def max_pool(rng: torch.Generator) -> Parts:
    return conv_stack(rng, [Node("pool", "MaxPool2d", ("conv1",), {"size": 2})], 16, NOW)


@structure
def norm_pool_scale(rng: torch.Generator) -> Parts:
    middle = [Node("bn", "BatchNorm2d", ("conv1",)), Node("pool", "MaxPool2d", ("bn",), {"size": 2})]
    middle.append(Node("scale", "Scale", ("pool",), {"factor": 1.5}))
    nodes, params, outputs, xs = conv_stack(rng, middle, 16, LIF)
    del params["conv1.bias"]
    return nodes, params | norm(rng, "bn", 4), outputs, xs


@structure
def pool_after(rng: torch.Generator) -> Parts:
    nodes, params, outputs, xs = conv_stack(rng, [Node("same", "Scale", ("conv1",), {"factor": 1.0})], 16, LIF)
    nodes.insert(3, Node("pool", "MaxPool2d", ("lif1",), {"size": 2}))
    return [replace(n, inputs=("pool",)) if n.name == "flat" else n for n in nodes], params, outputs, xs


@structure
def nonlinear(rng: torch.Generator) -> Parts:
    return conv_stack(rng, [Node("tanh", "Tanh", ("conv1",))], 64, LIF)


def dense(rng: torch.Generator, *shapes: tuple[str, int, int]) -> dict[str, Tensor]:
    params: dict[str, Tensor] = {}
    for name, out_features, in_features in shapes:
        params |= {
            f"{name}.weight": weight((out_features, in_features), rng),
            f"{name}.bias": bias(out_features, rng),
        }
    return params


@structure
def two_synapses(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4), ("skip", 3, 3))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1")]
    nodes += [linear("skip", "x"), Node("scale", "Scale", ("skip",), {"factor": 0.5})]
    nodes += [leaky("lif2", "fc2", "scale")]
    return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 2, 3), rng)


@structure
def one_synapse_two_neurons(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [Node("more", "Scale", ("fc1",), {"factor": 1.25}), leaky("lif1b", "more", **{**NOW, "beta": 0.5})]
    nodes += [linear("fc2", "lif1", "lif1b"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def shared_synapse(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [linear("again", "lif1", shares="fc1"), leaky("lif1b", "again", beta=0.5)]
    nodes += [linear("fc2", "lif1b"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 4), rng)


@structure
def batch_norm_spikes(rng: torch.Generator) -> Parts:
    nodes, params, _, xs = batch_norm1d(rng)
    return nodes, params, ("lif2",), xs


@structure
def mixed_neurons_spikes(rng: torch.Generator) -> Parts:
    nodes, params, _, xs = mixed_neurons(rng)
    return nodes, params, ("lif3",), xs


@structure
def two_inputs_one_synapse(rng: torch.Generator) -> Parts:
    """One module called twice before the neuron that consumes both."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), Node("other", "Tanh", ("x",)), linear("again", "other", shares="fc1")]
    nodes += [leaky("lif1", "fc1", "again"), linear("fc2", "lif1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 4), rng)


@structure
def two_readouts(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("out1", 3, 4), ("fc2", 4, 4), ("out2", 2, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("out1", "lif1")]
    nodes += [linear("fc2", "lif1"), leaky("lif2", "fc2"), linear("out2", "lif2")]
    return nodes, params, ("out1", "out2"), spike_input((5, 2, 3), rng)


@structure
def readout_chain(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("out1", 4, 4), ("out2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("out1", "lif1"), Node("tanh", "Tanh", ("out1",))]
    nodes += [linear("out2", "tanh")]
    return nodes, params, ("out2",), spike_input((5, 2, 3), rng)


@structure
def encoder(rng: torch.Generator) -> Parts:
    """A neuron that no synapse feeds, with a leak and a threshold to learn."""
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    params |= {"lif0.beta": torch.tensor([0.5, 0.75, 0.875]).double(), "lif0.threshold": torch.tensor(0.75).double()}
    nodes = [leaky("lif0", "x"), linear("fc1", "lif0"), leaky("lif1", "fc1"), linear("fc2", "lif1")]
    return [*nodes, leaky("lif2", "fc2", **NOW)], params, ("lif2", "lif2.mem"), spike_input((5, 2, 3), rng)


@structure
def norm_on_input(rng: torch.Generator) -> Parts:
    params = {**norm(rng, "gn", 4), **dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))}
    nodes = [Node("gn", "GroupNorm", ("x",), {"groups": 1}), linear("fc1", "gn"), leaky("lif1", "fc1")]
    xs = exact(torch.randn((5, 2, 4), generator=rng, dtype=torch.float64))
    return [*nodes, linear("fc2", "lif1"), leaky("lif2", "fc2")], params, ("lif2",), xs


@structure
def norm_on_spikes(rng: torch.Generator) -> Parts:
    params = {**norm(rng, "bn", 4), **dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))}
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), Node("bn", "BatchNorm1d", ("lif1",)), linear("fc2", "bn")]
    return [*nodes, leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 4, 3), rng)


@structure
def gated_current(rng: torch.Generator) -> Parts:
    """du/do of each synapse is the output of the other."""
    params = dense(rng, ("fc1", 4, 3), ("gate", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("gate", "x"), Node("product", "Product", ("fc1", "gate"))]
    nodes += [leaky("lif1", "product"), linear("fc2", "lif1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def concatenated(rng: torch.Generator) -> Parts:
    """Currents and spikes of two branches side by side."""
    params = dense(rng, ("a", 2, 3), ("b", 2, 3), ("fc2", 3, 6), ("skip", 2, 3))
    nodes = [linear("a", "x"), linear("b", "x"), Node("currents", "Concat", ("a", "b")), leaky("lif1", "currents")]
    nodes += [linear("skip", "x"), leaky("lif1b", "skip", **NOW), Node("spikes", "Concat", ("lif1", "lif1b"))]
    return [*nodes, linear("fc2", "spikes"), leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def own_recurrence(rng: torch.Generator) -> Parts:
    """A recurrence that the user wrote: cur = fc(x) + rec(spikes of the step before)."""
    params = dense(rng, ("fc1", 4, 3), ("rec", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("rec", "lif1@before", start=(4,)), leaky("lif1", "fc1", "rec")]
    return [*nodes, linear("fc2", "lif1"), leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def feedback_from_above(rng: torch.Generator) -> Parts:
    """The upper layer's spikes of the step before feed the lower layer."""
    params = dense(rng, ("fc1", 4, 3), ("down", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("down", "lif2@before", start=(3,)), leaky("lif1", "fc1", "down")]
    return [*nodes, linear("fc2", "lif1"), leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 2, 3), rng)


@entangled
def smoothed_spikes(rng: torch.Generator) -> Parts:
    """One synapse sees the spikes of this step and of the step before."""
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1", "lif1@before", start=(4,))]
    return [*nodes, leaky("lif2", "fc2")], params, ("lif2", "lif2.mem"), spike_input((5, 2, 3), rng)


@entangled
def membrane_before(rng: torch.Generator) -> Parts:
    """A membrane of the step before, through a synapse and through a plain scaling."""
    params = dense(rng, ("fc1", 4, 3), ("rec", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("rec", "lif1.mem@before", start=(4,))]
    nodes += [Node("decayed", "Scale", ("lif1@before",), {"factor": -0.25, "start": (4,)})]
    nodes += [leaky("lif1", "fc1", "rec", "decayed"), linear("fc2", "lif1")]
    return [*nodes, leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 2, 3), rng)


@entangled
def recurrence_behind_a_norm(rng: torch.Generator) -> Parts:
    """The norm learns, the neuron before it gets nothing from the step after."""
    params = dense(rng, ("fc1", 4, 3), ("rec", 4, 4), ("fc2", 3, 4)) | norm(rng, "gn", 4)
    nodes = [linear("fc1", "x"), Node("gn", "GroupNorm", ("lif1@before",), {"groups": 1, "start": (4,)})]
    nodes += [linear("rec", "gn"), leaky("lif1", "fc1", "rec"), linear("fc2", "lif1")]
    return [*nodes, leaky("lif2", "fc2")], params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def recurrent_readout(rng: torch.Generator) -> Parts:
    """A plain readout that also sees the spikes of the step before."""
    params = dense(rng, ("fc1", 4, 3), ("out", 3, 4), ("late", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("out", "lif1")]
    nodes += [linear("late", "lif1@before", start=(4,)), Node("sum", "Scale", ("out", "late"), {"factor": 1.0})]
    return nodes, params, ("sum",), spike_input((5, 2, 3), rng)


@structure
def tied_weights(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4), ("fc3", 3, 4))
    del params["fc2.weight"]
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [linear("fc2", "lif1", tied="fc1"), leaky("lif2", "fc2", beta=0.5)]
    nodes += [linear("fc3", "lif2"), leaky("lif3", "fc3")]
    return nodes, params, ("lif3",), spike_input((5, 2, 4), rng)


@structure
def shared_neuron(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [linear("fc2", "lif1"), leaky("lif2", "fc2", shares="lif1")]
    return nodes, params, ("lif2", "lif2.mem"), spike_input((5, 2, 4), rng)


@structure
def flatten_before(rng: torch.Generator) -> Parts:
    params = {"conv1.weight": weight((2, 2, 2, 2), rng), "conv1.bias": bias(2, rng), **dense(rng, ("fc2", 3, 12))}
    nodes = [Node("conv1", "Conv2d", ("x",)), Node("flat", "Flatten", ("conv1",)), leaky("lif1", "flat", **NOW)]
    nodes += [linear("fc2", "lif1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 2, 3, 4), rng)


@structure
def upsample(rng: torch.Generator) -> Parts:
    return conv_stack(rng, [Node("up", "Upsample", ("conv1",), {"factor": 2})], 256, LIF)


@structure
def early_readout(rng: torch.Generator) -> Parts:
    # a readout that runs before the first neuron of the step
    params = dense(rng, ("skip", 3, 3), ("fc1", 4, 3), ("out", 3, 4))
    nodes = [linear("skip", "x"), linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [linear("out", "lif1"), Node("sum", "Scale", ("out", "skip"), {"factor": 1.0})]
    return nodes, params, ("sum",), spike_input((6, 2, 3), rng)


@structure
def norm_after_readout(rng: torch.Generator) -> Parts:
    params = {**dense(rng, ("fc1", 4, 3), ("out", 4, 4)), **norm(rng, "gn", 4)}
    del params["out.bias"]
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1")]
    nodes += [linear("out", "lif1"), Node("gn", "GroupNorm", ("out",), {"groups": 1})]
    return nodes, params, ("gn",), spike_input((6, 2, 3), rng)


@structure
def residual_spikes(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("fc3", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1")]
    nodes += [leaky("lif2", "fc2", **NOW), linear("fc3", "lif1", "lif2"), leaky("lif3", "fc3")]
    return nodes, params, ("lif3", "lif1"), spike_input((5, 2, 3), rng)


@structure
def residual_current(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1")]
    nodes += [leaky("lif2", "fc2", "fc1")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def linear_chain(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("mid", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("mid", "fc1"), leaky("lif1", "mid")]
    nodes += [linear("fc2", "lif1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def membrane_as_input(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1.mem")]
    nodes += [leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def plain_readout(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("out", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1")]
    nodes += [leaky("lif2", "fc2", **NOW), linear("out", "lif2")]
    return nodes, params, ("out",), spike_input((6, 2, 3), rng)


@structure
def mixed_neurons(rng: torch.Generator) -> Parts:
    params = dense(rng, ("fc1", 4, 3), ("fc2", 4, 4), ("fc3", 3, 4))
    params |= {"lif2.recurrent.weight": weight((4, 4), rng, 0.6)}
    nodes = [linear("fc1", "x"), Node("lif1", "Synaptic", ("fc1",), {**LIF, "alpha": 0.5})]
    nodes += [linear("fc2", "lif1"), Node("lif2", "RLeaky", ("fc2",), {**LIF, "recurrent": "linear"})]
    nodes += [linear("fc3", "lif2"), Node("lif3", "Lapicque", ("fc3",), {"beta": 0.5, "threshold": 0.25})]
    return nodes, params, ("lif3", "lif3.mem"), spike_input((6, 2, 3), rng)
