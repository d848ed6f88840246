"""SpikingJelly 2.0, module ``spikingjelly.activation_based.neuron``; its single-step nodes."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.support import nets
from tests.support.entry import EXACT, REFUSED, Entry
from tests.support.nets import jelly_case, made

NOT_SUPPORTED = "this node is not supported"


def bare(name: str) -> Any:
    """An instance without its constructor, whose arguments are tables and the like; attaching looks at the class."""

    def build() -> nn.Module:
        from spikingjelly.activation_based import neuron

        kind = getattr(neuron, name)
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        return module

    return build


def node(name: str, *cases: str, **more: Any) -> Entry:
    cases = tuple(f"{name}-{case}" if case else name for case in cases)
    return Entry(name, EXACT, build=jelly_case(cases[0]), cases=cases, **more)


def refused(name: str, why: str, says: str = "") -> Entry:
    return Entry(name, REFUSED, why, refused=bare(name), says=says)


ONLINE = (
    "it brings an online rule of its own, which would act on top of this one; use LIFNode with the same settings and"
)
ALL_AT_ONCE = "it computes all time steps in one call; use LIFNode"
PAST = "its membrane is a learned sum over past inputs, whose weights have no eligibility; use LIFNode"
TERNARY = "it has two thresholds, the rule knows one; use"
BASE = "a base class without a charging equation; derive from SimpleBaseNode"
DSR = "its gradient is that of a rate over the whole sequence; use IFNode or LIFNode"
FEW = "made for converted networks, it spreads one value over several steps; use IFNode"
POPULATION = "made for decoding populations in reinforcement learning, it takes all time steps in one call; use"
NOISY = "made for exploration in reinforcement learning, it draws noise for all time steps of one call; use"
SILENT = "it takes all time steps in one call; for a readout use LIFNode with a threshold that it never reaches"

JELLY: tuple[Entry, ...] = (
    node("IFNode", "hard-attached", "soft-attached", "low-detached"),
    node("LIFNode", "hard-attached-full", "soft-detached-decayed", "low-attached-decayed", quick=True),
    node("ParametricLIFNode", "hard-attached-full", "soft-attached-decayed", note="w gets its same-step gradient"),
    node("KLIFNode", "hard-attached-full-True", "soft-detached-decayed-False", note="k gets its same-step gradient"),
    node("QIFNode", "hard-attached", "soft-detached"),
    node("EIFNode", "hard-attached", "soft-detached"),
    node("IzhikevichNode", "hard-attached", "soft-detached"),
    node(
        "CUBALIFNode",
        "hard-attached",
        "soft-attached",
        note="two time constants",
    ),
    node("ComplementaryLIFNode", ""),
    node("HalfThresholdIFNode", ""),
    node("SimpleIFNode", "soft", "hard"),
    node("SimpleLIFNode", "hard-attached", "hard-detached", note="`v_reset=None` fails in SpikingJelly itself"),
    Entry(
        "SimpleBaseNode",
        EXACT,
        note="nodes of your own, by overriding `neuronal_charge`",
        build=made(nets.user_node, drive="hidden"),
        twin=made(nets.known_node, drive="hidden"),
    ),
    refused("OTTTLIFNode", f'{ONLINE} rule="ottt" (lambda_pre = 1 - 1/tau)'),
    refused("SLTTLIFNode", f'{ONLINE} rule="sltt"'),
    refused(
        "RAFNode",
        "its membrane does not depend on the input of the same time step (du[t]/dI[t] = 0), so no learning signal "
        "could reach the layers below; use LIFNode",
    ),
    refused("LIAFNode", "it gives out a function of the membrane in place of spikes; use LIFNode"),
    refused("ILIFNode", "it gives out spike counts, not spikes; use LIFNode"),
    refused("TernaryIFNode", f"{TERNARY} IFNode"),
    refused("TernaryLIFNode", f"{TERNARY} LIFNode"),
    refused("ActivationAwareIFNode", "it is made for converted networks; use IFNode"),
    refused(
        "MPBNLIFNode",
        "it normalises the membrane over the batch between charging and firing; use LIFNode and a norm layer before it",
    ),
    refused("MPBNBaseNode", BASE, NOT_SUPPORTED),
    refused("PSN", ALL_AT_ONCE),
    refused("GatedLIFNode", ALL_AT_ONCE),
    refused("MaskedPSN", PAST),
    refused("SlidingPSN", PAST),
    refused("BaseNode", BASE, NOT_SUPPORTED),
    refused("AdaptBaseNode", BASE, NOT_SUPPORTED),
    refused("DSRIFNode", DSR),
    refused("DSRLIFNode", DSR),
    refused("FewSpikeNode", FEW),
    refused("HGNode", FEW),
    refused("OutlierAwareThresholdNode", FEW),
    refused("STBIFNode", "made for converted networks, it fires in both directions; use IFNode"),
    refused("FlexSN", "its step is any function, whose membrane is not known; derive from SimpleBaseNode"),
    refused("ILCBaseNode", BASE, NOT_SUPPORTED),
    refused("ILCIFNode", f"{POPULATION} IFNode"),
    refused("ILCLIFNode", f"{POPULATION} LIFNode"),
    refused("ILCCUBALIFNode", f"{POPULATION} CUBALIFNode"),
    refused("NoisyBaseNode", BASE, NOT_SUPPORTED),
    refused("NoisyCUBALIFNode", f"{NOISY} CUBALIFNode"),
    refused("NoisyILCBaseNode", BASE, NOT_SUPPORTED),
    refused("NoisyILCCUBALIFNode", f"{NOISY} CUBALIFNode"),
    refused("NoisyNonSpikingBaseNode", BASE, NOT_SUPPORTED),
    refused("NoisyNonSpikingIFNode", f"{NOISY} IFNode"),
    refused("NonSpikingBaseNode", SILENT),
    refused("NonSpikingIFNode", SILENT),
    refused("NonSpikingLIFNode", SILENT),
)
