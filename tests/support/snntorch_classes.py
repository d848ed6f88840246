"""snnTorch 1.0."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.support.entry import APPROXIMATE, EXACT, REFUSED, UNTOUCHED, Entry
from tests.support.nets import Graded, made, oracle_case

TWO_CONSTANTS = "two time constants"


def make(name: str, *args: Any, **options: Any) -> Any:
    def build() -> nn.Module:
        import snntorch

        return getattr(snntorch, name)(*args, **options)

    return build


def neuron(name: str, *cases: str, **more: Any) -> Entry:
    cases = tuple(f"{name}-{case}" for case in cases)
    return Entry(name, EXACT, build=oracle_case(cases[0]), cases=cases, **more)


def spike_time() -> tuple[nn.Module, tuple[object, ...]]:
    from snntorch.functional.loss import SpikeTime

    return SpikeTime(), ()


SNNTORCH: tuple[Entry, ...] = (
    neuron("Leaky", "subtract-late", "subtract-now", "zero-late", "zero-now", "none-late", "none-now", quick=True),
    neuron("RLeaky", "subtract-late-linear", "zero-now-conv", "zero-now-one_to_one", "none-late-scalar"),
    neuron("Synaptic", "subtract-late", "subtract-now", "zero-late", note=TWO_CONSTANTS),
    neuron("RSynaptic", "subtract-linear", "zero-conv", "none-one_to_one", "zero-scalar", note=TWO_CONSTANTS),
    neuron("Lapicque", "subtract", "zero", "none", "rc"),
    neuron("DeltaLeaky", "explicit", "hidden", "learned", "conv"),
    neuron(
        "StateLeaky",
        "scalar",
        "graded-quantised",
        "graded-learned",
        note="run by `learner.stream`",
    ),
    neuron("LinearLeaky", "per-unit", "learned", note="run by `learner.stream`"),
    Entry(
        "GradedSpikes",
        APPROXIMATE,
        "a layer without an eligibility: its factors get the gradient of the same step",
        build=made(Graded),
    ),
    Entry(
        "Alpha",
        REFUSED,
        "its membrane does not depend on the input of the same time step (du[t]/dI[t] = 0), so no learning signal "
        "could reach the layers below; use snntorch.Synaptic",
        refused=make("Alpha", 0.9, 0.8),
    ),
    Entry(
        "SLSTM",
        REFUSED,
        "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
        refused=make("SLSTM", 4, 4),
    ),
    Entry(
        "SConv2dLSTM",
        REFUSED,
        "its gates multiply, so its weights have no eligibility psi * trace; use snntorch.RSynaptic",
        refused=make("SConv2dLSTM", 1, 1, 3),
    ),
    Entry(
        "LeakyParallel",
        REFUSED,
        "it hides all time steps, and its weights, in one torch.nn.RNN; use nn.Linear and snntorch.Leaky",
        refused=make("LeakyParallel", 4, 4),
    ),
    Entry(
        "AssociativeLeaky",
        REFUSED,
        "its state is an outer product of its inputs, so its weights have no eligibility psi * trace; use "
        "snntorch.Leaky",
        refused=make("AssociativeLeaky", 4, 2, 2, 4),
    ),
    Entry(
        "LIF",
        REFUSED,
        "the base class, which has no forward pass; derive from a neuron above",
        refused=make("LIF", 0.9),
        says="this neuron is not known",
    ),
    Entry(
        "SpikingNeuron",
        REFUSED,
        "the base class, which has no forward pass; derive from a neuron above",
        refused=make("SpikingNeuron"),
        says="this neuron is not known",
    ),
    Entry("functional.loss.SpikeTime", UNTOUCHED, "a part of the loss", alone=spike_time),
    Entry(
        "functional.stdp_learner.STDPLearner",
        UNTOUCHED,
        'another learning rule, no part of a model; the preset "stdp" is the same on this engine',
    ),
)
