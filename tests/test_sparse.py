"""Sums of rows in place of dense products: the same numbers, and only where they may be used."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from stllr_plugin import STLLRLearner, STLLRRule, sparse

RULE = STLLRRule(1.0, 0.7, -0.5, 0.6, "triangle")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers take part, too."""
    for name, value in {"SMALLEST": 1, "NARROWEST": 1, "_MANY": 1, "_CACHED": 64, "DENSEST": 0.6}.items():
        monkeypatch.setattr(sparse, name, value)


def matrix(rows: int, columns: int, density: float, values: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    filled = torch.rand(rows, columns, generator=generator) < density
    if values == "spikes":
        return filled.float()
    return filled * torch.randn(rows, columns, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    width=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.05, 0.3]),
    values=st.sampled_from(["spikes", "numbers"]),
    transposed=st.booleans(),
)
def test_products(rows: int, columns: int, width: int, density: float, values: str, transposed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMALLEST": 0, "NARROWEST": 1, "_CACHED": 64, "DENSEST": 1.0}.items():
            patch.setattr(sparse, name, value)
        x = matrix(rows, columns, density, values)
        table = torch.randn(rows if transposed else columns, width)
        found = sparse.SparseMatrix.of(x, width, transposed)
        assert found is not None
        assert (found.values is None) == bool(((x == 0) | (x == 1)).all())
        wanted = (x.t() if transposed else x).double() @ table.double()
        torch.testing.assert_close(
            torch.cat(found.times(sparse.in_parts(table)), 1).double(), wanted, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("values", ["spikes", "numbers"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(values: str, bias: bool, small: None) -> None:
    weight, offset = torch.randn(7, 12), torch.randn(7) if bias else None
    x = matrix(20, 12, 0.2, values)
    results = []
    for way in ("dense", "sparse"):
        leaf = x.clone().requires_grad_()
        own = None if offset is None else offset.clone().requires_grad_()
        if way == "dense":
            output = linear(leaf, weight, own)
        else:
            found = sparse.SparseMatrix.of(x, 7)
            assert found is not None
            output = sparse.SparseLinear.apply(leaf, found, weight, own)
        output.square().sum().backward()
        results.append([output, leaf.grad, None if own is None else own.grad])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_many_values_are_multiplied_densely(small: None) -> None:
    x = matrix(40, 30, 0.9, "spikes")
    assert sparse.SparseMatrix.of(x, 5) is None
    assert sparse.sparse_gradient(x, torch.randn(40, 5)) is None


def test_a_sample_that_misleads_is_found_out(small: None) -> None:
    """The rows that are looked at first are empty, the others full."""
    x = torch.ones(512, 8)
    x[:: sparse._SAMPLE] = 0
    assert sparse.SparseMatrix.of(x, 5) is None


@pytest.mark.parametrize(
    ("x", "width"),
    [
        (torch.zeros(4096, 64), 63),
        (torch.zeros(64, 64), 64),
        (torch.zeros(4096, 256, dtype=torch.float64), 256),
        (torch.zeros(256, 4096).t(), 256),
        (torch.zeros(4096, 256, device="meta"), 256),
    ],
    ids=["narrow", "small", "double", "not contiguous", "other device"],
)
def test_where_it_does_not_pay_or_cannot_be(x: Tensor, width: int) -> None:
    assert sparse.SparseMatrix.of(x, width) is None


def test_an_input_of_another_width_is_left_to_the_layer(small: None) -> None:
    """A row sum would take fewer columns than the weight has without a word."""
    layer = nn.Linear(12, 7)
    run = sparse.with_sparse_inputs(layer, layer.forward)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), torch.no_grad():
        run(matrix(20, 10, 0.1, "spikes"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(30, 24),
        snn.Leaky(0.9, threshold=0.6, init_hidden=True),
        nn.Linear(24, 20),
        snn.RLeaky(0.9, linear_features=20, threshold=0.5, init_hidden=True),
        nn.Linear(20, 4),
        snn.Leaky(0.95, init_hidden=True, output=True),
    )


def norse_network() -> nn.Module:
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(0)
    p = norse.LIFParameters(v_th=torch.tensor(0.1))
    net: nn.Module = norse.SequentialState(
        norse.LIFRecurrentCell(30, 24, p), nn.Linear(24, 20), norse.LIFCell(p), nn.Linear(20, 4), norse.LICell()
    )
    return net


@pytest.mark.parametrize("make", [network, norse_network])
@pytest.mark.parametrize("values", ["spikes", "numbers"])
def test_run(make: Any, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.stack([matrix(16, 30, 0.15, values, seed) for seed in range(9)])
    y = torch.arange(16) % 4
    results = []
    used: list[int] = []
    plain = sparse.SparseMatrix.times
    monkeypatch.setattr(sparse.SparseMatrix, "times", lambda self, parts: used.append(1) or plain(self, parts))
    for smallest in (2**60, 1):
        for name, value in {"SMALLEST": smallest, "NARROWEST": 1, "_MANY": 1, "DENSEST": 0.6}.items():
            monkeypatch.setattr(sparse, name, value)
        assert not used
        model = make()
        with STLLRLearner(model, rule=RULE) as learner:
            result = learner.run(
                model, x, y, lambda out, y: cross_entropy(out[1] if isinstance(out, tuple) else out, y), window=4
            )
            assert result.steps_because is None
        results.append({name: p.grad for name, p in model.named_parameters()})
    assert len(used) > 20
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
