"""From numbers to verdicts: what counts as equal, and what to do about a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stllr_plugin.verify.result import Row, Verdict
from stllr_plugin.verify.spike_probe import Jump

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Sizes below this part of the largest gradient are rounding: a bias in front of a batch norm, say.
_FLOOR = {torch.float64: 1e-8, torch.float32: 1e-4}

_ADVICE = {
    "forward": "with a learner attached the model computes another loss. Look for something that is not the same from "
    "run to run (random numbers not from torch, counters, files), or that reads the modules' hooks",
    "plain": "with a rule without traces its gradient must be autograd's with states detached between steps. Either "
    "the layer or neuron computes something else than its class (a forward, fire or weight of its own: use "
    "torch.nn.utils.parametrize, or an adapter), or a graph is carried from step to step (detach it), or the learner "
    "is wrong: then please report it with this table",
    "rule": "its gradient is not what the rule gives, written out from inputs, membranes and learning signals. If the "
    "same line under 'plain' is ok, look at psi, traces and the rule of this layer (layer_rules, report()); if a layer "
    "or neuron was changed after the learner was built, build the learner anew; else please report it with this table",
}


def compare(
    check: str,
    found: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    dtype: torch.dtype,
    unchecked: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row for each pair.

    Args:
        check: Name of the check.
        found: What the learner gave; None for no gradient, which equals zero.
        expected: What it should be.
        dtype: What both were computed in.
        unchecked: Reasons not to compare.
        labels: Other names for some rows.
    """
    sizes = [float(value.norm()) for value in expected.values() if value is not None]
    floor = _FLOOR[dtype] * max(sizes, default=0.0)
    rows = []
    for name, want in expected.items():
        label = (labels or {}).get(name, name)
        if name in (unchecked or {}):
            rows.append(Row(check, label, None, "not checked", (unchecked or {})[name]))
            continue
        got = found.get(name)
        if want is None and got is None:
            continue
        error = _relative(got, want, floor)
        good = error <= TOLERANCE[dtype]  # not for NaN
        rows.append(Row(check, label, error, "ok" if good else "FAILED", "" if good else _ADVICE[check]))
    return rows


def _relative(got: Tensor | None, want: Tensor | None, floor: float) -> float:
    like = want if want is not None else got
    assert like is not None
    got = torch.zeros_like(like) if got is None else got
    want = torch.zeros_like(like) if want is None else want
    difference = float((got.double() - want.double()).norm())
    if difference == 0.0:
        return 0.0
    size = max(float(want.double().norm()), floor)
    return difference / size if size > 0.0 else float("inf")


def rows_without_gradient(
    expected: Mapping[str, Tensor | None],
    found: Mapping[str, Tensor | None],
    synaptic: set[str],
    through_time: Callable[[], set[str]],
) -> list[Row]:
    """Trainable parameters that get nothing on either side: cut off by the rule, or not used at all.

    Args:
        expected: Gradients of plain autograd within the steps.
        found: Gradients of the learner.
        synaptic: Names of the weights of layers, which are there to learn.
        through_time: Names of the parameters that backpropagation through time reaches.
    """
    silent = [name for name, value in expected.items() if value is None and found.get(name) is None]
    if not silent:
        return []
    reached = through_time()
    rows = []
    for name in silent:
        if name in reached:
            advice = (
                "it learns nothing: what it does reaches the loss at later time steps only (a delay, spikes of the "
                "step before, an initial state), and the rule passes no signal between steps. Let it reach the loss "
                "within the step, freeze it, or use a learning signal that reaches each layer directly"
            )
            # A threshold or an initial state may well act later only; a layer without a signal is a mistake.
            verdict: Verdict = "FAILED" if name in synaptic else "no gradient"
            rows.append(Row("plain", name, None, verdict, advice))
        else:
            advice = "the loss does not depend on it in this batch, with backpropagation through time neither"
            rows.append(Row("plain", name, None, "no gradient", advice))
    return rows


def rows_of_jumps(jumps: list[Jump]) -> list[Row]:
    """Functions on the way whose derivative is not their own: spiking neurons, and others."""
    rows = []
    for jump in jumps:
        where = f"{jump.synapse}->{jump.target}"
        names = f" (modules in between: {', '.join(jump.modules)})" if jump.modules else ""
        if jump.levels <= 2:
            advice = (
                f"between layer {jump.synapse!r} and {_target(jump)} something jumps between two values although its "
                f"gradient is smooth{names}: a spiking neuron that the learner takes for a plain function. Give it an "
                "adapter (three lines, see 'How to add a neuron adapter' in CONTRIBUTING.md), or name it in exclude"
            )
            rows.append(Row("model", where, None, "FAILED", advice))
        else:
            advice = (
                f"between layer {jump.synapse!r} and {_target(jump)} lies a staircase with the gradient of another "
                f"function{names}, as of a quantiser; the rule takes that gradient as it is"
            )
            rows.append(Row("model", where, None, "ok", advice))
    return rows


def _target(jump: Jump) -> str:
    return jump.target if jump.target == "the loss" else f"neuron {jump.target!r}"
