"""Operations, memory and energy by formulas.

The paper (Apolinario & Roy, TMLR 2025, section 4.3) counts, for one sample, T time steps of which S are supervised,
layers of N_l neurons and fully connected synapses::

    memory for learning   BPTT    T * sum N_l              S-TLLR  2 * sum N_l
    MACs of learning      BPTT    2 T * sum N_l N_(l-1)    S-TLLR  3 S * sum N_l N_(l-1), 2 S without non-causal term

Weights, the forward pass and the unfolding of convolutions are left out there. Here N_l N_(l-1) is, for every kind of
layer, the number of multiplications of its dense forward pass, and other rules are counted in the same way: one product
for each term of the eligibility, one that takes the signal to the layer below, one value per neuron for each trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stllr_plugin.signals import SIGNALS

PICOJOULE_MAC = 4.6
PICOJOULE_AC = 0.9
ENERGY_SOURCE = (
    f"{PICOJOULE_MAC} pJ for a multiplication with addition (MAC) and {PICOJOULE_AC} pJ for an addition (AC), 32-bit "
    "floating point in 45 nm CMOS (Horowitz, Computing's energy problem, ISSCC 2014: multiplication 3.7 pJ, addition "
    "0.9 pJ)"
)


@dataclass(frozen=True)
class Learning:
    """How an algorithm learns, as far as the formulas ask.

    Attributes:
        through_time: Whether it is backpropagation through time.
        causal: Whether there is a causal term (alpha_pre is not 0).
        noncausal: Whether there is a non-causal term.
        trace: Whether the causal term needs a presynaptic trace (lambda_pre is not 0).
        signal: Learning signal.
    """

    through_time: bool
    causal: bool = True
    noncausal: bool = False
    trace: bool = True
    signal: str = "bp"

    @classmethod
    def of(cls, edges: list[dict[str, Any]] | None, signal: str = "bp") -> Learning:
        """From what the learner reported; None is backpropagation through time."""
        if edges is None:
            return cls(through_time=True)
        rules = [edge["rule"] for edge in edges if edge.get("spiking", True)]
        return cls(
            through_time=False,
            causal=any(rule["alpha_pre"] for rule in rules),
            noncausal=any(rule["alpha_post"] for rule in rules),
            trace=any(rule["lambda_pre"] and rule["alpha_pre"] for rule in rules),
            signal=signal,
        )

    @property
    def products(self) -> int:
        """Products with the size of a layer's weights, per supervised step."""
        if self.through_time:
            return 2
        return int(self.causal) + int(self.noncausal) + int(self.taken_down)

    @property
    def taken_down(self) -> bool:
        """Whether layers pass the signal down to those below."""
        return self.through_time or not SIGNALS[self.signal].direct

    @property
    def values(self) -> int:
        """Values per neuron that are kept from step to step; for BPTT per neuron and step."""
        return 1 if self.through_time else int(self.trace) + int(self.noncausal)


def learning_macs(learning: Learning, connections: int, num_steps: int, supervised: int) -> int:
    """Multiplications with addition of learning from one sample.

    Args:
        learning: The algorithm.
        connections: Sum over the layers of N_l N_(l-1).
        num_steps: T.
        supervised: S, the number of supervised steps (T - T_l in the paper).
    """
    steps = num_steps if learning.through_time else supervised
    return learning.products * steps * connections


def learning_values(learning: Learning, neurons: int, num_steps: int) -> int:
    """Values that are kept for learning from one sample."""
    return learning.values * neurons * (num_steps if learning.through_time else 1)


def energy_pj(macs: float, additions: float) -> float:
    """Energy of the arithmetic, in picojoules; moving data to and from memory is not in it."""
    return PICOJOULE_MAC * macs + PICOJOULE_AC * additions


def format_energy(picojoules: float) -> str:
    """``3.2 uJ`` and the like."""
    for unit, scale in (("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3)):
        if picojoules >= scale:
            return f"{picojoules / scale:.3g} {unit}"
    return f"{picojoules:.3g} pJ"


def format_count(count: float) -> str:
    """``1.23 G``, ``4.5 M``, ``67 k``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.3g}"


def counted_energy(counts: Mapping[str, float]) -> dict[str, float]:
    """Energy of one sample from counted operations: "forward", "dense" (every input counts) and "learning"."""
    return {
        "forward": energy_pj(counts["forward_macs"], counts["forward_additions"]),
        "dense": energy_pj(counts["dense_macs"], 0),
        "learning": energy_pj(counts["learning_macs"], counts["learning_additions"]),
    }
