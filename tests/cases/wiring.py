"""Networks whose point is how synapses and neurons are wired within a step: shared, tied, residual, skipping."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cases.case import bias, spike_input, weight
from tests.cases.structures import LIF, NOW, Parts, dense, leaky, linear, norm, structure
from tests.oracles.spec import Node


def conv(name: str, *inputs: str, padding: int = 1, stride: int = 1, **options: object) -> Node:
    return Node(name, "Conv2d", inputs, {"padding": padding, "stride": stride, **options})


def kernels(rng: torch.Generator, *shapes: tuple[str, int, int, int], biased: bool = True) -> dict[str, Tensor]:
    """Weights of square convolutions: name, output channels, input channels, extent."""
    params: dict[str, Tensor] = {}
    for name, out_channels, in_channels, extent in shapes:
        params[f"{name}.weight"] = weight((out_channels, in_channels, extent, extent), rng)
        if biased:
            params[f"{name}.bias"] = bias(out_channels, rng)
    return params


# ------------------------------------------------------------------------------------------ one neuron, many calls
@structure
def neuron_called_by_three_layers(rng: torch.Generator) -> Parts:
    """Explicit states: one module, a membrane per layer."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4), ("fc3", 4, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1", **NOW), linear("fc2", "lif1")]
    nodes += [leaky("lif2", "fc2", **NOW, shares="lif1"), linear("fc3", "lif2", "lif1")]
    nodes += [leaky("lif3", "fc3", **NOW, shares="lif1")]
    return nodes, params, ("lif3", "lif3.mem"), spike_input((5, 2, 4), rng)


@structure
def siamese(rng: torch.Generator) -> Parts:
    """Synapse and neuron are called for each of two branches, with a membrane per branch."""
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 8))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), Node("other", "Tanh", ("x",))]
    nodes += [linear("again", "other", shares="fc1"), leaky("lif1b", "again", shares="lif1")]
    nodes += [Node("both", "Concat", ("lif1", "lif1b")), linear("fc2", "both"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 3), rng)


@structure
def one_block_in_depth(rng: torch.Generator) -> Parts:
    """Synapse and neuron are called again on the block's own spikes of the same step."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("again", "lif1", shares="fc1")]
    nodes += [leaky("lif1b", "again", shares="lif1"), linear("fc2", "lif1b"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((5, 2, 4), rng)


@structure
def one_block_three_times(rng: torch.Generator) -> Parts:
    """Twice in depth and once beside, each with its own membrane; the neuron resets at once and is read out as well."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1", **NOW), linear("again", "lif1", shares="fc1")]
    nodes += [leaky("lif1b", "again", **NOW, shares="lif1"), Node("other", "Tanh", ("x",))]
    nodes += [linear("beside", "other", shares="fc1"), leaky("lif1c", "beside", **NOW, shares="lif1")]
    nodes += [linear("fc2", "lif1b", "lif1c"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2", "lif1.mem", "lif1c"), spike_input((5, 2, 4), rng)


@structure
def convolutional_block_in_depth(rng: torch.Generator) -> Parts:
    """With a residual connection around each of its runs, as in a network that is unrolled in depth."""
    params = kernels(rng, ("c1", 2, 2, 3)) | dense(rng, ("fc", 3, 8))
    nodes = [conv("c1", "x"), Node("lif1", "Leaky", ("c1",), LIF), conv("c2", "x", "lif1", shares="c1")]
    nodes += [Node("lif2", "Leaky", ("c2",), {**LIF, "shares": "lif1"})]
    nodes += [Node("sum", "Scale", ("lif1", "lif2"), {"factor": 1.0})]
    nodes = [*readout_of(nodes, "sum"), linear("fc", "flat"), leaky("lif3", "fc")]
    return nodes, params, ("lif3",), spike_input((4, 2, 2, 4, 4), rng)


# ------------------------------------------------------------------------------------------ one synapse, many calls
@structure
def synapse_called_three_times(rng: torch.Generator) -> Parts:
    """Its calls meet in two neurons; the first reaches both."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("again", "lif1", shares="fc1")]
    nodes += [Node("soft", "Tanh", ("lif1",)), linear("third", "soft", shares="fc1")]
    nodes += [Node("less", "Scale", ("third",), {"factor": -0.5}), leaky("lif1b", "fc1", "again", "less", beta=0.5)]
    return (
        [*nodes, linear("fc2", "lif1b", "lif1"), leaky("lif2", "fc2")],
        params,
        ("lif2",),
        spike_input((5, 2, 4), rng),
    )


@structure
def synapse_called_twice_on_one_input(rng: torch.Generator) -> Parts:
    """Into one neuron, with another factor each time, and into a second one."""
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("again", "x", shares="fc1")]
    nodes += [Node("less", "Scale", ("again",), {"factor": 0.5}), leaky("lif1", "fc1", "less")]
    nodes += [linear("third", "x", shares="fc1"), leaky("lif1b", "third", **NOW)]
    return (
        [*nodes, linear("fc2", "lif1", "lif1b"), leaky("lif2", "fc2")],
        params,
        ("lif2",),
        spike_input((5, 2, 3), rng),
    )


@structure
def convolution_called_twice(rng: torch.Generator) -> Parts:
    params = kernels(rng, ("conv1", 2, 2, 3)) | dense(rng, ("fc2", 3, 32))
    nodes = [conv("conv1", "x"), Node("lif1", "Leaky", ("conv1",), LIF), conv("again", "lif1", shares="conv1")]
    nodes += [Node("lif1b", "Leaky", ("again", "conv1"), NOW), Node("flat", "Flatten", ("lif1b",))]
    return [*nodes, linear("fc2", "flat"), leaky("lif2", "fc2")], params, ("lif2",), spike_input((4, 2, 2, 4, 4), rng)


# ------------------------------------------------------------------------------------------ many to one, one to many
@structure
def three_synapses(rng: torch.Generator) -> Parts:
    """Two convolutions behind pooling and a linear layer of another input feed one neuron."""
    params = kernels(rng, ("wide", 2, 2, 3), ("narrow", 2, 2, 1)) | dense(rng, ("skip", 8, 32), ("fc2", 3, 8))
    nodes = [conv("wide", "x"), Node("pooled", "AvgPool2d", ("wide",), {"size": 2})]
    nodes += [Node("less", "MaxPool2d", ("x",), {"size": 2}), conv("narrow", "less", padding=0)]
    nodes += [
        Node("together", "Flatten", ("pooled", "narrow")),
        Node("flat", "Flatten", ("x",)),
        linear("skip", "flat"),
    ]
    nodes += [leaky("lif1", "together", "skip"), linear("fc2", "lif1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def one_synapse_three_neurons(rng: torch.Generator) -> Parts:
    """Neurons of three kinds; one of them also sees another synapse."""
    params = dense(rng, ("fc1", 4, 3), ("skip", 4, 3), ("fc2", 3, 4))
    nodes = [linear("fc1", "x"), linear("skip", "x"), leaky("lif1", "fc1")]
    nodes += [Node("syn1", "Synaptic", ("fc1", "skip"), {**NOW, "alpha": 0.5})]
    nodes += [Node("lap1", "Lapicque", ("fc1",), {"beta": 0.5, "threshold": 0.125})]
    nodes += [linear("fc2", "lif1", "syn1", "lap1"), leaky("lif2", "fc2")]
    return nodes, params, ("lif2", "syn1.mem"), spike_input((5, 2, 3), rng)


# ------------------------------------------------------------------------------------------------ tied weights
@structure
def tied_three_times(rng: torch.Generator) -> Parts:
    """One weight in three layers, with biases of their own, one of them a readout."""
    params = dense(rng, ("fc1", 4, 4), ("fc2", 4, 4), ("out", 4, 4))
    del params["fc2.weight"], params["out.weight"]
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1", tied="fc1")]
    nodes += [leaky("lif2", "fc2", "lif1", **NOW), linear("out", "lif2", tied="fc1")]
    return nodes, params, ("out",), spike_input((5, 2, 4), rng)


@structure
def tied_transposed(rng: torch.Generator) -> Parts:
    """An autoencoder whose decoder uses the encoder's weight the other way round."""
    params = dense(rng, ("fc1", 4, 3)) | {"fc2.bias": bias(3, rng)}
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), linear("fc2", "lif1", tied="fc1", transposed=True)]
    return [*nodes, leaky("lif2", "fc2", **NOW)], params, ("lif2", "lif2.mem"), spike_input((5, 2, 3), rng)


@structure
def tied_transposed_convolution(rng: torch.Generator) -> Parts:
    params = kernels(rng, ("conv1", 3, 2, 2)) | {"conv2.bias": bias(2, rng)}
    nodes = [conv("conv1", "x", padding=0, stride=2), Node("lif1", "Leaky", ("conv1",), LIF)]
    nodes += [Node("conv2", "ConvTranspose2d", ("lif1",), {"stride": 2, "tied": "conv1"})]
    nodes += [Node("lif2", "Leaky", ("conv2",), NOW)]
    return nodes, params, ("lif2", "lif2.mem"), spike_input((4, 2, 2, 4, 4), rng)


# ------------------------------------------------------------------------------------------------ residual blocks
def readout_of(nodes: list[Node], source: str) -> list[Node]:
    return [*nodes, Node("pool", "AvgPool2d", (source,), {"size": 2}), Node("flat", "Flatten", ("pool",))]


@structure
def residual_spikes_to_spikes(rng: torch.Generator) -> Parts:
    """The block's spikes are added to those that went in, twice."""
    params = kernels(rng, ("stem", 2, 2, 3), ("c1", 2, 2, 3), ("c2", 2, 2, 3)) | dense(rng, ("fc", 3, 8))
    nodes = [conv("stem", "x"), Node("lif0", "Leaky", ("stem",), LIF)]
    nodes += [conv("c1", "lif0"), Node("lif1", "Leaky", ("c1",), NOW)]
    nodes += [conv("c2", "lif0", "lif1"), Node("lif2", "Leaky", ("c2",), LIF)]
    nodes += [Node("sum", "Scale", ("lif0", "lif1", "lif2"), {"factor": 1.0})]
    nodes = [*readout_of(nodes, "sum"), linear("fc", "flat"), leaky("lif3", "fc")]
    return nodes, params, ("lif3",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def residual_spikes_to_currents(rng: torch.Generator) -> Parts:
    """The spikes that went in are added to the current of the block's last neuron, past its synapse."""
    params = kernels(rng, ("stem", 2, 2, 3), ("c1", 2, 2, 3), ("c2", 2, 2, 3), biased=False)
    params |= norm(rng, "bn1", 2) | norm(rng, "bn2", 2) | dense(rng, ("fc", 3, 8))
    nodes = [conv("stem", "x"), Node("lif0", "Leaky", ("stem",), LIF), conv("c1", "lif0")]
    nodes += [Node("bn1", "BatchNorm2d", ("c1",)), Node("lif1", "Leaky", ("bn1",), NOW), conv("c2", "lif1")]
    nodes += [Node("bn2", "BatchNorm2d", ("c2",)), Node("lif2", "Leaky", ("bn2", "lif0"), LIF)]
    return [*readout_of(nodes, "lif2"), linear("fc", "flat")], params, ("fc",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def residual_with_strided_shortcut(rng: torch.Generator) -> Parts:
    """The shortcut of a block that halves the extent: a strided 1x1 convolution with its own norm."""
    params = kernels(rng, ("stem", 2, 2, 3), ("c1", 3, 2, 3), ("c2", 3, 3, 3), ("short", 3, 2, 1), biased=False)
    params |= norm(rng, "bn1", 3) | norm(rng, "bn2", 3) | norm(rng, "bns", 3) | dense(rng, ("fc", 3, 3))
    nodes = [conv("stem", "x"), Node("lif0", "Leaky", ("stem",), LIF)]
    nodes += [conv("c1", "lif0", stride=2), Node("bn1", "BatchNorm2d", ("c1",)), Node("lif1", "Leaky", ("bn1",), LIF)]
    nodes += [conv("c2", "lif1"), Node("bn2", "BatchNorm2d", ("c2",))]
    nodes += [conv("short", "lif0", stride=2, padding=0), Node("bns", "BatchNorm2d", ("short",))]
    nodes += [Node("lif2", "Leaky", ("bn2", "bns"), LIF)]
    nodes += [Node("mean", "MeanHW", ("lif2",)), linear("fc", "mean"), leaky("lif3", "fc")]
    return nodes, params, ("lif3", "lif3.mem"), spike_input((4, 3, 2, 4, 4), rng)


@structure
def residual_of_strided_spikes(rng: torch.Generator) -> Parts:
    """The shortcut has a neuron too: spikes are added to spikes behind a change of the extent."""
    params = kernels(rng, ("stem", 2, 2, 3), ("c1", 3, 2, 3), ("short", 3, 2, 1)) | dense(rng, ("fc", 3, 12))
    nodes = [conv("stem", "x"), Node("lif0", "Leaky", ("stem",), LIF)]
    nodes += [conv("c1", "lif0", stride=2), Node("lif1", "Leaky", ("c1",), NOW)]
    nodes += [conv("short", "lif0", stride=2, padding=0), Node("lifs", "Leaky", ("short",), LIF)]
    nodes += [Node("flat", "Flatten", ("lif1", "lifs")), linear("fc", "flat"), leaky("lif3", "fc")]
    return nodes, params, ("lif3",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def densely_connected(rng: torch.Generator) -> Parts:
    """Each layer sees the input and the spikes of all layers before it."""
    params = dense(rng, ("fc1", 3, 3), ("fc2", 3, 6), ("fc3", 2, 9))
    nodes = [linear("fc1", "x"), leaky("lif1", "fc1"), Node("cat1", "Concat", ("x", "lif1")), linear("fc2", "cat1")]
    nodes += [leaky("lif2", "fc2"), Node("cat2", "Concat", ("cat1", "lif2")), linear("fc3", "cat2")]
    return [*nodes, leaky("lif3", "fc3", **NOW)], params, ("lif3", "lif3.mem"), spike_input((5, 2, 3), rng)


# ------------------------------------------------------------------------------------------------ skips over pooling
@structure
def u_net(rng: torch.Generator) -> Parts:
    """Spikes that were pooled and upsampled again beside those that went past the pooling."""
    params = kernels(rng, ("down", 2, 2, 3), ("low", 2, 2, 3), ("up", 2, 4, 3), ("out", 1, 2, 1))
    nodes = [
        conv("down", "x"),
        Node("lif1", "Leaky", ("down",), LIF),
        Node("pool", "MaxPool2d", ("lif1",), {"size": 2}),
    ]
    nodes += [
        conv("low", "pool"),
        Node("lif2", "Leaky", ("low",), NOW),
        Node("grown", "Upsample", ("lif2",), {"factor": 2}),
    ]
    nodes += [Node("both", "Concat", ("grown", "lif1")), conv("up", "both"), Node("lif3", "Leaky", ("up",), LIF)]
    return [*nodes, conv("out", "lif3", padding=0)], params, ("out",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def u_net_with_learned_upsampling(rng: torch.Generator) -> Parts:
    """The current of a transposed convolution beside spikes, in front of one neuron."""
    params = kernels(rng, ("down", 2, 2, 3), ("low", 2, 2, 3), ("up", 2, 2, 2)) | dense(rng, ("fc", 3, 16))
    nodes = [
        conv("down", "x"),
        Node("lif1", "Leaky", ("down",), LIF),
        Node("pool", "AvgPool2d", ("lif1",), {"size": 2}),
    ]
    nodes += [conv("low", "pool"), Node("lif2", "Leaky", ("low",), LIF)]
    nodes += [Node("up", "ConvTranspose2d", ("lif2",), {"stride": 2})]
    nodes += [Node("both", "Concat", ("up", "lif1")), Node("lif3", "Leaky", ("both",), NOW)]
    nodes = [*readout_of(nodes, "lif3"), linear("fc", "flat"), leaky("lif4", "fc")]
    return nodes, params, ("lif4",), spike_input((4, 2, 2, 4, 4), rng)


@structure
def skip_beside_pooling(rng: torch.Generator) -> Parts:
    """Currents that were pooled meet those of a strided convolution of the same input, and the pooled input itself."""
    params = kernels(rng, ("c1", 2, 2, 3), ("c2", 2, 2, 2)) | dense(rng, ("fc", 3, 8))
    nodes = [conv("c1", "x"), Node("pool", "MaxPool2d", ("c1",), {"size": 2}), conv("c2", "x", stride=2, padding=0)]
    nodes += [Node("small", "AvgPool2d", ("x",), {"size": 2}), Node("lif1", "Leaky", ("pool", "c2", "small"), LIF)]
    nodes += [Node("flat", "Flatten", ("lif1",)), linear("fc", "flat"), leaky("lif2", "fc")]
    return nodes, params, ("lif2", "lif1.mem"), spike_input((4, 2, 2, 4, 4), rng)
