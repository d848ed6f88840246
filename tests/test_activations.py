"""psi(v): values, stability, parameters."""

from __future__ import annotations

import math

import pytest
import torch

from stllr_plugin import RuleError
from stllr_plugin.activations import InverseSquare, Rational, SigmoidDerivative, Triangle, describe_psi, resolve_psi

ALL = [Triangle(), InverseSquare(), SigmoidDerivative(), Rational()]
EVERY = pytest.mark.parametrize("psi", ALL, ids=lambda psi: type(psi).__name__)
EXACT = {
    "triangle": lambda v: 0.3 * max(1 - abs(v), 0),
    "inverse_square": lambda v: 1 / (100 * abs(v) + 1) ** 2,
    "sigmoid": lambda v: 4 * math.exp(-4 * abs(v)) / (1 + math.exp(-4 * abs(v))) ** 2,
    "rational": lambda v: 1 / (1 + (10 * v) ** 2),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(name, dtype):
    v = torch.tensor([-20.0, -3.5, -1.0, -0.3, -0.01, 0.0, 0.01, 0.3, 0.999, 1.0, 3.5, 20.0], dtype=dtype)
    expected = torch.tensor([EXACT[name](value) for value in v.tolist()], dtype=dtype)
    torch.testing.assert_close(resolve_psi(name)(v), expected, rtol=2e-6, atol=1e-37)


@EVERY
def test_it_stays_finite_for_every_finite_v(psi):
    v = torch.tensor([0.0, 1e-30, 1.0, 88.0, 1e4, 1e10, 1e19, 1e30, 3e38])
    for values in (psi(v), psi(-v)):
        assert values.isfinite().all() and (values >= 0).all()
        assert (values.diff() <= 0).all()


@EVERY
def test_it_is_symmetric_with_its_peak_at_the_threshold(psi):
    v = torch.linspace(-3, 3, 61)
    torch.testing.assert_close(psi(v), psi(-v))
    assert psi(v).argmax() == 30


@EVERY
def test_it_maps_element_by_element_and_leaves_its_argument_alone(psi):
    v = torch.randn(2, 3, 4)
    before = v.clone()
    assert psi(v).shape == v.shape
    assert torch.equal(v, before)
    assert psi(torch.ones((), dtype=torch.float64)).dtype == torch.float64


def test_parameters():
    v = torch.tensor([0.0, 0.5, 1.5])
    torch.testing.assert_close(Triangle(height=1.0, width=2.0)(v), torch.tensor([1.0, 0.75, 0.25]))
    torch.testing.assert_close(InverseSquare(slope=2.0)(v), torch.tensor([1.0, 0.25, 0.0625]))
    torch.testing.assert_close(Rational(slope=2.0)(v), torch.tensor([1.0, 0.5, 0.1]))
    torch.testing.assert_close(SigmoidDerivative(slope=1.0, height=0.5)(v)[0], torch.tensor(0.5))


def test_equal_parameters_are_equal():
    assert Triangle() == Triangle(0.3, 1.0) and hash(Triangle()) == hash(Triangle(0.3))
    assert Triangle() != Triangle(0.4)


def test_names_callables_and_none():
    assert resolve_psi("triangle") == Triangle()
    assert resolve_psi(torch.sigmoid) is torch.sigmoid
    assert resolve_psi(None) is None
    with pytest.raises(RuleError, match="not known; use one of"):
        resolve_psi("box")


@EVERY
def test_descriptions_name_the_parameters(psi):
    described = describe_psi(psi)
    assert resolve_psi(described.pop("name")) == psi
    assert type(psi)(**described) == psi
