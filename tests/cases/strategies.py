"""Hypothesis strategies that several tests share, and the comparison with its stated reasons to leave a network out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import assume, event
from hypothesis import strategies as st
from torch import Tensor

from tests.cases.case import Case, generator, sensitivity
from tests.cases.drive import TOLERANCE, assert_equal, measure, reference, relative_errors
from tests.oracles.stllr import Oracle, Result, Rule, _Pass

unit = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.9375, 1.0])
rules = st.builds(
    Rule,
    alpha_pre=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    lambda_pre=unit,
    alpha_post=st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]),
    lambda_post=unit,
    psi=st.sampled_from(["triangle", "sigmoid", "rational", "inverse_square", None]),
    propagate=st.sampled_from(["psi", "surrogate"]),
    convention=st.sampled_from(["code", "paper", "current"]),
)
resets = st.sampled_from(["subtract", "zero", "none"])
constants = st.sampled_from([0.25, 0.5, 0.75, 0.875, 1.0])
ways = {"rule": rules, "way": st.sampled_from("ab"), "last": st.one_of(st.none(), st.integers(1, 5))}


@st.composite
def snntorch_neurons(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(st.sampled_from(["Leaky", "RLeaky", "Synaptic", "RSynaptic", "Lapicque"]))
    options: dict[str, Any] = {"beta": draw(constants), "threshold": draw(constants), "reset_mechanism": draw(resets)}
    if kind == "Lapicque":
        return kind, {**options, "beta": draw(st.sampled_from([0.25, 0.5, 0.75])), "threshold": 0.25}
    if "Synaptic" in kind:
        options["alpha"] = draw(constants)
    if kind != "RSynaptic":
        options["reset_delay"] = draw(st.booleans())
    if kind.startswith("R"):
        options["recurrent"] = draw(st.sampled_from(["linear", "one_to_one"]))
    options["surrogate"] = draw(st.sampled_from([("atan", 2.0), ("fast_sigmoid", 4.0), ("sigmoid", 3.0)]))
    return kind, options


@st.composite
def norse_neurons(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(st.sampled_from(["LIFCell", "LIFBoxCell", "IAFCell"]))
    options: dict[str, Any] = {
        "v_th": draw(constants),
        "v_reset": draw(st.sampled_from([-0.25, 0.0, 0.125])),
        "surrogate": draw(st.sampled_from([("super", 100.0), ("triangle", 0.5), ("tanh", 2.0)])),
    }
    if kind != "IAFCell":
        options |= {"tau_mem_inv": draw(st.sampled_from([125.0, 250.0, 500.0])), "v_leak": 0.125}
    if kind == "LIFBoxCell":
        options["reset_method"] = draw(st.sampled_from(["value", "subtract"]))
    return kind, options


class RoundingOracle(Oracle):
    """The oracle with an error of a float32 rounding in everything that a synapse gives out.

    It is one of the largest element, also where the exact value is zero: it stands for what a norm behind rounds too.
    """

    rng: torch.Generator

    def _synapse(self, step: _Pass, synapse: str, x: Tensor) -> Tensor:
        out = super()._synapse(step, synapse, x)
        noise = torch.randn(out.shape, generator=self.rng, dtype=torch.float64)
        step.synapse_out[synapse] = out = out + 6e-8 * noise * out.detach().abs().max()
        return out


def moved_by_rounding(case: Case, rule: Rule, expected: Result, supervised: Sequence[bool] | None) -> float:
    """How far rounding within the step moves the exact gradients (as before a norm that takes out what it added)."""
    worst = 0.0
    for seed in range(2):
        oracle = RoundingOracle(case.net, rule)
        oracle.rng = generator(seed)
        found = oracle.run(case.xs, case.loss, supervised)
        worst = max(worst, *relative_errors(found.grads, expected.grads).values())
        for name, value in expected.outputs.items():
            worst = max(worst, (found.outputs[name] - value).abs().max().item())
    return worst


class NormWatch(Oracle):
    """The oracle, noting whether a norm ever had just two values to work on (as behind one neuron that spikes or not).

    It turns those into constants, whatever they are: the exact gradient before it is zero but for eps, and what is
    found in any precision is the rounding of large terms that cancel.
    """

    two_values = False

    def forward(self, x: Tensor, *, local: bool) -> _Pass:
        step = super().forward(x, local=local)
        for node in self.net.nodes:
            if "Norm" in node.kind:
                values = step.values[node.inputs[0]].detach()
                rows = values.flatten(1) if node.kind == "GroupNorm" else values.transpose(0, 1).flatten(1)
                self.two_values |= any(len((row * 2**40).round().unique()) == 2 for row in rows)
        return step


def beyond_float64(case: Case, rule: Rule, expected: Result, supervised: Sequence[bool] | None) -> str | None:
    """Why not even float64 knows a gradient of this network to 1e-9; None if it does."""
    watch = NormWatch(case.net, rule)
    watch.run(case.xs, None)
    if watch.two_values:
        return "a norm over two values, which makes constants of them"
    # a rounding of float64 is some 1e-9 of that of float32, with the same factor in front
    if moved_by_rounding(case, rule, expected, supervised) >= 0.05:
        return "terms that cancel almost completely"
    return None


def beyond_float32(case: Case, rule: Rule, expected: Result, supervised: Sequence[bool] | None) -> str | None:
    """Why float32 cannot know the gradients of this network to 1e-5, whoever computes them; None if it can."""
    if rule.psi == "inverse_square":
        return "psi multiplies a rounding by up to 200"
    if expected.margin <= 1e-4:
        return "a membrane so near its threshold that rounding may flip a spike"
    # Norse computes 1 - tanh^2, which cancels far from the threshold; that is the neuron's own surrogate
    far = max(v.abs().max().item() for v in expected.membranes.values()) > 1
    if far and any(node.options.get("surrogate", "")[:1] == ("tanh",) for node in case.net.nodes):
        return "1 - tanh^2 cancels"
    if sensitivity(case, rule, supervised, tries=3) >= 1e-6:
        return "a rounding of the weights already changes the exact gradients too much (terms that cancel)"
    if moved_by_rounding(case, rule, expected, supervised) >= 1e-6:
        return "a rounding of the currents already changes outputs or exact gradients too much"
    return None


def check(
    case: Case, rule: Rule, way: str, last: int | None, dtype: torch.dtype, tally: Counter[str] | None = None
) -> float:
    """Compare with the oracle; gives the largest relative error. ``tally`` counts what was compared and what not."""
    steps = len(case.xs)
    last = None if last is None else min(last, steps)
    supervised = None if last is None else [t >= steps - last for t in range(steps)]
    expected = reference(case, rule, supervised=supervised)
    reason = beyond_float64(case, rule, expected, supervised)
    if reason is None and dtype == torch.float32:
        reason = beyond_float32(case, rule, expected, supervised)
    if tally is not None:
        tally[reason or "compared"] += 1
    event(reason or "compared")
    assume(reason is None)
    found = measure(case, rule, way=way, supervise_last=last, dtype=dtype)
    # a gradient that is zero but for rounding has no relative error
    for name, value in expected.grads.items():
        if value.norm() < 1e-12:
            assert found.grads[name].norm() < 1e-6
            found.grads[name] = value.to(dtype)
    return assert_equal(found, expected, TOLERANCE[dtype], f"{case.net} {rule} {way} {last}")
