"""Random networks, rules and sequences against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.cases.case import Case, bias, generator, spike_input, weight
from tests.cases.strategies import check, norse_neurons, snntorch_neurons, ways
from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

# the default run tries the same examples every time; the slow one looks for new ones
FEW = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
MANY = settings(deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))


@st.composite
def dense_cases(draw: st.DrawFn) -> Case:
    """Up to three layers of one kind of neuron, with or without a plain readout."""
    kind, options = draw(st.one_of(snntorch_neurons(), norse_neurons()))
    layers = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 5), min_size=layers + 1, max_size=layers + 1))
    steps, batch = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    rng = generator(draw(st.integers(0, 2**31)))
    params: dict[str, torch.Tensor] = {}
    nodes: list[Node] = []
    scale = 2.0 if kind in ("Lapicque", "LIFCell", "LIFBoxCell") else 1.0
    source = "x"
    for i in range(layers):
        units = sizes[i + 1]
        params[f"fc{i}.weight"] = weight((units, sizes[i]), rng, scale)
        if draw(st.booleans()):
            params[f"fc{i}.bias"] = bias(units, rng)
        if options.get("recurrent") == "linear":
            params[f"lif{i}.recurrent.weight"] = weight((units, units), rng, 0.5)
        elif options.get("recurrent") == "one_to_one":
            params[f"lif{i}.V"] = weight((units, 1), rng, 0.5).flatten()
        nodes += [Node(f"fc{i}", "Linear", (source,)), Node(f"lif{i}", kind, (f"fc{i}",), options)]
        source = f"lif{i}"
    outputs = draw(
        st.sampled_from([(source,), (f"{source}.mem",), (source, f"{source}.mem"), ("lif0", f"{source}.mem"), ("out",)])
    )
    if "out" in outputs:
        params["out.weight"] = weight((3, sizes[-1]), rng)
        nodes.append(Node("out", "Linear", (source,)))
    xs = spike_input((steps, batch, sizes[0]), rng)
    return Case("property", Net(tuple(nodes), params, tuple(dict.fromkeys(outputs))), xs)


@st.composite
def conv_cases(draw: st.DrawFn) -> Case:
    """One convolution of any dimension and any options that fit, below a plain readout."""
    dims = draw(st.integers(1, 3))
    transpose = draw(st.booleans())
    extent = draw(st.tuples(*[st.integers(2, 4)] * dims))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * dims))
    groups = draw(st.sampled_from([1, 2]))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = draw(st.tuples(*[st.integers(1, 2)] * dims))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    options: dict[str, Any] = {"groups": groups, "dilation": dilation}
    if transpose:
        options |= {"stride": stride, "padding": draw(st.tuples(*[st.integers(0, 1)] * dims))}
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        grown = [
            (e - 1) * s - 2 * p + d * (k - 1) + o + 1
            for e, s, p, d, k, o in zip(
                extent, stride, options["padding"], dilation, kernel, options["output_padding"], strict=True
            )
        ]
        assume(all(1 <= size <= 7 for size in grown))
        shape = (into, out // groups, *kernel)
    else:
        same = draw(st.booleans())
        padding: Any = "same" if same else draw(st.tuples(*[st.integers(0, 1)] * dims))
        options |= {"padding": padding} | ({} if same else {"stride": stride})
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(s + 1) // 2 for s in spans] if same else padding
        assume(all(p < e for p, e in zip(pads, extent, strict=True)))
        assume(same or all(e + 2 * p > s for e, p, s in zip(extent, padding, spans, strict=True)))
        shape = (out, into // groups, *kernel)
    rng = generator(draw(st.integers(0, 2**31)))
    batch, steps = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    params = {"conv.weight": weight(shape, rng)}
    if draw(st.booleans()):
        params["conv.bias"] = bias(out, rng)
    kind = "ConvTranspose" if transpose else "Conv"
    nodes = [
        Node("conv", f"{kind}{dims}d", ("x",), options),
        Node("lif", "Leaky", ("conv",), {"beta": 0.75, "threshold": 0.5}),
    ]
    return Case(
        "property", Net(tuple(nodes), params, ("lif", "lif.mem")), spike_input((steps, batch, into, *extent), rng)
    )


@FEW
@given(case=dense_cases(), **ways)
def test_dense_networks(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


@FEW
@given(case=conv_cases(), **ways)
def test_convolutions(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


@pytest.mark.slow
@MANY
@given(case=dense_cases(), **ways)
def test_many_dense_networks(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


@pytest.mark.slow
@MANY
@given(case=conv_cases(), **ways)
def test_many_convolutions(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float64)


@FEW
@given(case=dense_cases(), **ways)
def test_dense_networks_in_float32(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float32)


@pytest.mark.slow
@MANY
@given(case=dense_cases(), **ways)
def test_many_dense_networks_in_float32(case: Case, rule: Rule, way: str, last: int | None) -> None:
    check(case, rule, way, last, torch.float32)
