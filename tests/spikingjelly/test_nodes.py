"""SpikingJelly nodes against the written-out eligibility: 1e-9 in float64.

float64 runs SpikingJelly's reference equations; float32 runs the fused operators that users get, hence the cases in
float32 (1e-5).
"""

from __future__ import annotations

import itertools
import zlib
from functools import cache

import pytest
import torch
from torch import Tensor

pytest.importorskip("spikingjelly", reason="needs the extra 'spikingjelly'")

from tests.cases.rules import RULES  # noqa: E402
from tests.spikingjelly.networks import assert_same, dense, loss, measure, spatial, with_surrogate  # noqa: E402
from tests.spikingjelly.oracle import SURROGATES, Layer, Node, run  # noqa: E402

W = torch.tensor(0.25, dtype=torch.float64)  # ParametricLIFNode: 1/tau = sigmoid(w)
K = torch.tensor(1.25, dtype=torch.float64)  # KLIFNode


def _nodes() -> dict[str, tuple[Node, float]]:
    """Node and the scale of weights at which it fires, by a name for the test."""
    found: dict[str, tuple[Node, float]] = {}
    resets = {"hard": 0.0, "low": -0.125, "soft": None}
    for (name, reset), detach in itertools.product(resets.items(), (False, True)):
        common = {"v_reset": reset, "detach_reset": detach, "v_threshold": 0.75}
        tag = f"{name}-{'detached' if detach else 'attached'}"
        found[f"IFNode-{tag}"] = Node("IFNode", common), 1.0
        for decay in (True, False):
            options = {**common, "decay_input": decay}
            tag2, scale = f"{tag}-{'decayed' if decay else 'full'}", 1.75 if decay else 1.0
            found[f"LIFNode-{tag2}"] = Node("LIFNode", {"tau": 1.5, **options}), scale
            found[f"ParametricLIFNode-{tag2}"] = Node("ParametricLIFNode", options, {"w": W}), scale
            for scaled in (False, True):
                options_k = {**options, "scale_reset": scaled}
                found[f"KLIFNode-{tag2}-{scaled}"] = Node("KLIFNode", options_k, {"k": K}), scale
        found[f"CUBALIFNode-{tag}"] = Node("CUBALIFNode", common), 0.75
        rest = -0.25 if reset is not None else 0.0
        nonlinear = {**common, "tau": 1.5, "v_rest": 0.0, "v_reset": None if reset is None else rest}
        found[f"QIFNode-{tag}"] = Node("QIFNode", {**nonlinear, "v_c": 0.5, "a0": 0.75}), 2.0
        found[f"EIFNode-{tag}"] = Node("EIFNode", {**nonlinear, "delta_T": 0.5, "theta_rh": 0.875}), 1.75
        izhikevich = {"a": 0.25, "b": 0.375, "tau_w": 4.0, "w_rest": 0.125, "v_rest": -0.125, "v_c": 0.5}
        found[f"IzhikevichNode-{tag}"] = Node("IzhikevichNode", {**common, "tau": 1.5, **izhikevich}), 2.0
        if reset is not None:  # SimpleLIFNode of SpikingJelly 2.0 fails with v_reset=None
            options = {"tau": 1.5, "decay_input": detach, **common}
            found[f"SimpleLIFNode-{tag}"] = Node("SimpleLIFNode", {**options, "v_reset": 0.0}), 1.5
    found["CUBALIFNode-hard-attached"] = Node("CUBALIFNode", {"v_threshold": 0.75}), 0.75
    for name in ("soft-attached", "soft-detached", "hard-detached", "low-attached", "low-detached"):
        del found[f"CUBALIFNode-{name}"]  # its constructor has no detach_reset
    found["CUBALIFNode-soft-attached"] = Node("CUBALIFNode", {"v_threshold": 0.75, "v_reset": None}), 0.75
    found["ComplementaryLIFNode"] = with_surrogate(Node("ComplementaryLIFNode", {"v_threshold": 0.75}), "Rect"), 1.0
    found["HalfThresholdIFNode"] = Node("HalfThresholdIFNode", {"v_threshold": 0.75}), 0.75
    found["SimpleIFNode-soft"] = Node("SimpleIFNode", {"v_reset": None, "detach_reset": True}), 1.0
    found["SimpleIFNode-hard"] = Node("SimpleIFNode", {"v_reset": 0.0}), 1.0
    return found


NODES = _nodes()
FUSED = [
    name
    for name in NODES
    if name.split("-")[0] in ("IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "EIFNode", "IzhikevichNode")
]  # noqa: E501


@cache
def case(name: str, shape: str) -> tuple[list[Layer], Tensor]:
    node, scale = NODES[name]
    return spatial(node, scale) if shape == "conv" else dense(node, scale)


def number(name: str) -> int:
    return zlib.crc32(name.encode())


@pytest.mark.parametrize("name", NODES)
def test_dense(name: str) -> None:
    layers, xs = case(name, "dense")
    names = list(RULES)
    for i in range(3):
        rule, way = names[(number(name) + i) % len(names)], "ab"[i % 2]
        assert_same(measure(layers, xs, RULES[rule], way), run(layers, xs, RULES[rule], loss), 1e-9, f"{rule} {way}")


@pytest.mark.parametrize("name", [name for name in NODES if number(name) % 4 == 0 or "-" not in name])
def test_convolution(name: str) -> None:
    layers, xs = case(name, "conv")
    for rule, way in (("paper", "a"), ("surrogate", "b")):
        assert_same(measure(layers, xs, RULES[rule], way), run(layers, xs, RULES[rule], loss), 1e-9, f"{rule} {way}")


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_in_float32(name: str) -> None:
    layers, xs = case(name, "dense")
    for rule in ("default", "own_all"):
        found = measure(layers, xs, RULES[rule], dtype=torch.float32)
        assert_same(found, run(layers, xs, RULES[rule], loss), 2e-5, rule)


@pytest.mark.parametrize("recurrence", ["join", "add"])
@pytest.mark.parametrize("name", ["LIFNode-hard-attached-full", "IFNode-soft-detached", "IzhikevichNode-hard-attached"])
def test_recurrent_containers(name: str, recurrence: str) -> None:
    node, scale = NODES[name]
    layers, xs = dense(node, scale, recurrence=recurrence)
    for rule, way in (("default", "a"), ("own_all", "b")):
        assert_same(measure(layers, xs, RULES[rule], way), run(layers, xs, RULES[rule], loss), 1e-9, f"{rule} {way}")


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name: str) -> None:
    """psi=None is the derivative of SpikingJelly's surrogate, and propagate="surrogate" carries it."""
    constants = {"Rect": {"alpha": 0.5}, "PiecewiseLeakyReLU": {"w": 0.75, "c": 0.0625}}.get(name, {"alpha": 3.0})
    node = with_surrogate(NODES["LIFNode-soft-attached-full"][0], name, **constants)
    layers, xs = dense(node, 1.0)
    for rule in ("own_psi", "own_all"):
        assert_same(measure(layers, xs, RULES[rule]), run(layers, xs, RULES[rule], loss), 1e-9, rule)


def test_the_comparison_can_fail() -> None:
    layers, xs = case("LIFNode-hard-attached-full", "dense")
    with pytest.raises(AssertionError, match="relative errors"):
        assert_same(measure(layers, xs, RULES["paper"]), run(layers, xs, RULES["default"], loss), 1e-2, "other rule")
