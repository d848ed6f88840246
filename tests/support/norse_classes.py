"""Norse 1.1."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from tests.support import nets
from tests.support.entry import APPROXIMATE, EXACT, REFUSED, UNTOUCHED, Build, Entry
from tests.support.nets import BATCH, made, oracle_case, single_precision

TWO_CONSTANTS = "two time constants"
STREAM = "run by `learner.stream`"
DELAYED = (
    "its own weights only, with the trace delayed by a step, as its current is; nothing flows to layers below it; its "
    "threshold adapts"
)
MASKED = "psi is 0 while the neuron is refractory"
BELOW = "its input reaches the membrane one step later, so no signal reaches the layers below and the weights before it"
BASE = "a base class; use the neurons above, or derive from one of them"


def make(name: str, *args: Any, **options: Any) -> Any:
    def build() -> nn.Module:
        import norse.torch as norse

        folder, _, kind = name.rpartition(".")
        module = importlib.import_module(f"norse.torch.{folder}") if folder else norse
        return getattr(module, kind)(*args, **options)

    return build


def neuron(name: str, *cases: str, notes: tuple[str, ...] = (), **more: Any) -> Entry:
    """Compared with the oracle; the synaptic current of all but a few has a time constant of its own."""
    cases = tuple(f"{name}-{case}" for case in cases)
    note = "; ".join(notes)
    return Entry(name, EXACT, note=note, build=oracle_case(cases[0]), cases=cases, **more)


def container(name: str, build: Build, twin: Build | None = None, **more: Any) -> Entry:
    return Entry(name, EXACT, build=build, twin=twin, **more)


def refused(name: str, why: str, *args: Any, **more: Any) -> Entry:
    return Entry(name, REFUSED, why, refused=make(name, *args), **more)


def alone(name: str, why: str, call: tuple[object, ...], *args: Any) -> Entry:
    return Entry(name, UNTOUCHED, why, alone=lambda: (make(name, *args)(), call))


FREED = {
    "per-step backward": "Norse makes the weights, with their graph, once per optimizer step, so that a second "
    "backward pass fails, attached or not",
    "DDP": "as DDP is tested with a backward pass at each step",
    "torch.compile": "attached, it raises an error about donated buffers",
    "deepcopy": "Norse keeps the weights with their graph, which `copy.deepcopy` refuses, attached or not",
}
SAME_STEP = "no synapse of the rule: its parameters get the gradient of the same step"
DATA = "makes the input of a network from data, before the time loop"
VALUES = torch.linspace(0.1, 0.9, 6).view(2, 3)

NORSE: tuple[Entry, ...] = (
    # cells
    neuron("LIFCell", "default", "super", "triangle", "tanh", "circ", notes=(TWO_CONSTANTS,), quick=True),
    neuron("LIFRecurrentCell", "default", "constants", "autapses", notes=(TWO_CONSTANTS,)),
    neuron("LIFBoxCell", "default", "value", "subtract"),
    neuron("IAFCell", "default", "constants"),
    neuron("LIFExCell", "default", "constants", notes=(TWO_CONSTANTS,)),
    neuron("LIFExRecurrentCell", "constants", notes=(TWO_CONSTANTS,)),
    neuron("LIFAdExCell", "default", "constants", notes=(TWO_CONSTANTS,)),
    neuron("LIFAdExRecurrentCell", "constants", notes=(TWO_CONSTANTS,)),
    neuron("LIFRefracCell", "short", "default", "fraction", notes=(MASKED, TWO_CONSTANTS)),
    neuron("LIFRefracRecurrentCell", "short", "default", notes=(MASKED, TWO_CONSTANTS)),
    neuron("LIFAdExRefracCell", "short", "conv", notes=(MASKED, TWO_CONSTANTS)),
    neuron("LIFAdExRefracRecurrentCell", "short", notes=(MASKED, TWO_CONSTANTS)),
    neuron("IzhikevichCell", "volts", "millivolts", "conv"),
    neuron("IzhikevichRecurrentCell", "volts"),
    neuron("LSNNRecurrentCell", "default", "constants", notes=(DELAYED,)),
    neuron("LICell", "default", "constants", notes=("a readout: no spikes, psi = 1",)),
    neuron("LIBoxCell", "constants", notes=("a readout: no spikes, psi = 1",)),
    neuron("LILinearCell", "default", "constants", notes=("a readout: no spikes, psi = 1",)),
    # sequences
    neuron("LIF", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("LIFRecurrent", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("IAF", "sequence", notes=(STREAM,)),
    neuron("LIFEx", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("LIFExRecurrent", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("LIFAdEx", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("LIFAdExRecurrent", "sequence", notes=(STREAM, TWO_CONSTANTS)),
    neuron("LIFRefracRecurrent", "sequence", notes=(STREAM, MASKED, TWO_CONSTANTS)),
    neuron("LIFAdExRefracRecurrent", "sequence", notes=(STREAM, MASKED, TWO_CONSTANTS)),
    neuron("Izhikevich", "sequence", notes=(STREAM,)),
    neuron("IzhikevichRecurrent", "sequence", notes=(STREAM,)),
    neuron("LSNNRecurrent", "sequence", notes=(STREAM, DELAYED)),
    neuron("LI", "sequence", notes=(STREAM, "a readout: no spikes, psi = 1")),
    # containers, layers, whole models
    container("SequentialState", made(nets.sequential_state), made(nets.lifted, drive="stream")),
    container("Lift", made(nets.lifted, drive="stream"), made(nets.sequential_state), note=STREAM),
    container(
        "RecurrentSequential",
        made(nets.FedBack),
        made(nets.FedBackByHand),
        note="what it feeds back is cut off the graph, as states are",
    ),
    container(
        "RegularizationCell",
        made(nets.Regularized, extra=nets.counted),
        made(lambda: nets.Regularized(False), extra=nets.counted_by_hand),
        note="add its sum to the loss of each step, or once at the end",
    ),
    container(
        "LConv2d",
        made(nets.Convolved, (BATCH, 2, 3, 3), drive="stream"),
        made(lambda: nets.Convolved(True), (BATCH, 2, 3, 3), drive="stream"),
        note=STREAM,
    ),
    container(
        "ConvNet",
        made(nets.conv_net("ConvNet"), (BATCH, 1, 16, 16), 1.0, drive="loop", output="out"),
        made(lambda: nets.Looped(nets.conv_net("ConvNet")), (BATCH, 1, 16, 16), 1.0),
        note="its loop is inside: a backward pass at each step by `learner.online`; DDP with one backward pass",
        tolerance=1e-6,
    ),
    container(
        "ConvNet4",
        made(nets.conv_net("ConvNet4"), (BATCH, 1, 16, 16), 1.0, drive="loop", output="out"),
        made(lambda: nets.Looped(nets.conv_net("ConvNet4")), (BATCH, 1, 16, 16), 1.0),
        note="its loop is inside: a backward pass at each step by `learner.online`; DDP with one backward pass",
        tolerance=1e-6,
    ),
    container(
        "VGG",
        made(nets.vgg, (BATCH, 1, 4, 4), 4.0, drive="stream"),
        made(nets.Cells, (BATCH, 1, 4, 4), 4.0),
        note=f"{STREAM}; tested with a small classifier in place of its own, which has 120 million weights",
    ),
    refused(
        "MobileNetV2",
        "it fails in Norse 1.1 itself (TypeError: a block returns the neurons' state with their spikes, and the next "
        "one adds to it)",
        10,
        0.1,
        runs=True,
    ),
    Entry(
        "SpatialReceptiveField2d",
        APPROXIMATE,
        SAME_STEP,
        build=single_precision(made(nets.spatial_field, (BATCH, 2, 4, 4), 1.0)),
        without=FREED,
        tolerance=1e-4,
    ),
    Entry(
        "SampledSpatialReceptiveField2d",
        APPROXIMATE,
        SAME_STEP,
        build=single_precision(made(nets.sampled_field, (BATCH, 2, 4, 4), 1.0)),
        without=FREED,
        tolerance=1e-4,
    ),
    Entry(
        "ParameterizedSpatialReceptiveField2d",
        APPROXIMATE,
        SAME_STEP,
        build=single_precision(made(nets.parameterized_field, (BATCH, 2, 4, 4), 1.0)),
        without=FREED,
        tolerance=1e-4,
    ),
    Entry(
        "TemporalReceptiveField",
        APPROXIMATE,
        f"{SAME_STEP} (its time constants)",
        build=made(nets.TemporalField, gain=3.0),
    ),
    # refused
    refused(
        "CobaLIFCell",
        "its input has no effect on its state in Norse 1.1 (the conductances are overwritten); use LIFCell",
        4,
        4,
    ),
    refused("LIFCorrelation", "its weights are arguments of each call, not parameters; use LIFRecurrentCell", 4, 4),
    refused(
        "LIFMCRecurrentCell",
        "its membrane is coupled between compartments after the spike decision; use LIFRecurrentCell",
        4,
        4,
    ),
    refused(
        "LIFMCRefracRecurrentCell",
        "its input is added after the spike decision, so no signal reaches the layers below; use "
        "LIFRefracRecurrentCell",
        4,
        4,
    ),
    refused("LSNNCell", f"{BELOW}; use LSNNRecurrentCell, whose own weights can be trained, or LIFAdExCell"),
    refused("LSNN", f"{BELOW}; use LSNNRecurrent, whose own weights can be trained, or LIFAdEx"),
    # left alone
    alone("PoissonEncoder", DATA, (VALUES,), 5),
    alone("SignedPoissonEncoder", DATA, (VALUES,), 5),
    alone("ConstantCurrentLIFEncoder", DATA, (10 * VALUES,), 5),
    alone("SpikeLatencyLIFEncoder", DATA, (10 * VALUES,), 5),
    alone("SpikeLatencyEncoder", DATA, ((VALUES > 0.4).float(),)),
    alone("PopulationEncoder", DATA, (VALUES[0],), 4),
    alone(
        "SpikesToTimesDecoder", "reads the spikes of a whole sequence, after the time loop", (torch.eye(4)[:, None],)
    ),
)

NORSE_MODULES: tuple[Entry, ...] = (
    Entry(
        "utils.import_nir.CubaLIF",
        EXACT,
        note="what `from_nir` makes of NIR's CubaLIF: the layer before it feeds its leaky integrator (psi = 1), "
        "through which the signal of the same step arrives",
        build=made(nets.Imported),
    ),
    container(
        "models.mobilenet.ConvBNReLU",
        made(nets.Block, (BATCH, 1, 4, 4), drive="stream"),
        made(nets.BlockOfCells, (BATCH, 1, 4, 4)),
        note=f"{STREAM}; it returns its spikes with the neurons' state",
        without={"DDP": "batch norm: the statistics of half a batch are others"},
    ),
    container(
        "models.mobilenet.InvertedResidual",
        made(nets.Inverted, (BATCH, 2, 4, 4), drive="stream"),
        made(nets.InvertedOfCells, (BATCH, 2, 4, 4)),
        note=STREAM,
        without={"DDP": "batch norm: the statistics of half a batch are others"},
    ),
    Entry(
        "module.exp_filter.ExpFilter",
        UNTOUCHED,
        "a layer and a filter that take a whole sequence, after the time loop; pass its name in `exclude=`, and use "
        "one backward pass: its weights then get their ordinary gradient",
    ),
    Entry(
        "module.encode.PoissonEncoderStep",
        UNTOUCHED,
        "makes the input of a step from data",
        alone=lambda: (make("module.encode.PoissonEncoderStep")(), (VALUES,)),
    ),
    Entry(
        "module.encode.SignedPoissonEncoderStep",
        UNTOUCHED,
        "makes the input of a step from data",
        alone=lambda: (make("module.encode.SignedPoissonEncoderStep")(), (VALUES,)),
    ),
    *(
        Entry(
            f"module.snn.{name}",
            REFUSED,
            BASE,
            refused=make(f"module.snn.{name}", None, None, *sizes, None),
            says="this neuron is not known",
        )
        for name, sizes in (("SNN", ()), ("SNNCell", ()), ("SNNRecurrent", (4, 4)), ("SNNRecurrentCell", (4, 4)))
    ),
)
