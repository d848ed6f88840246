"""psi(v): values, stability, parameters."""

from __future__ import annotations

import math

import pytest
import torch

from stllr_plugin import RuleError
from stllr_plugin.activations import (
    Dspike,
    InverseSquare,
    Rational,
    SigmoidDerivative,
    Triangle,
    describe_psi,
    resolve_psi,
)

ALL = [Triangle(), InverseSquare(), SigmoidDerivative(), Rational(), Dspike()]
EVERY = pytest.mark.parametrize("psi", ALL, ids=lambda psi: type(psi).__name__)
EXACT = {
    "triangle": lambda v: 0.3 * max(1 - abs(v), 0),
    "inverse_square": lambda v: 1 / (100 * abs(v) + 1) ** 2,
    "sigmoid": lambda v: 4 * math.exp(-4 * abs(v)) / (1 + math.exp(-4 * abs(v))) ** 2,
    "rational": lambda v: 1 / (1 + (10 * v) ** 2),
    "dspike": lambda v: 3 / (2 * math.tanh(1.5)) / math.cosh(3 * v) ** 2 if abs(v) <= 0.5 else 0.0,
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


# -- Dspike


def soft_dspike(x: float, b: float) -> float:
    """The soft step of the paper: a * tanh(b * (x - c)) + d on [0, 1], 0 below, 1 above; the threshold is c = 1/2."""
    c = 0.5
    a = 1 / (math.tanh(b * (1 - c)) - math.tanh(-b * c))
    d = -a * math.tanh(-b * c)
    return a * math.tanh(b * (min(max(x, 0.0), 1.0) - c)) + d


TEMPERATURES = pytest.mark.parametrize("b", [0.01, 0.5, 3.0, 12.0])


@TEMPERATURES
def test_dspike_is_the_derivative_of_the_soft_step(b):
    h = 1e-5
    for v in (-0.7, -0.49, -0.3, -0.05, 0.0, 0.02, 0.4, 0.49, 0.51, 3.0):
        numeric = (soft_dspike(v + 0.5 + h, b) - soft_dspike(v + 0.5 - h, b)) / (2 * h)
        found = Dspike(b)(torch.tensor(v, dtype=torch.float64)).item()
        assert found == pytest.approx(numeric, rel=1e-6, abs=1e-9)


@TEMPERATURES
def test_dspike_integrates_to_one(b):
    v = torch.linspace(-0.5, 0.5, 20_001, dtype=torch.float64)
    assert torch.trapezoid(Dspike(b)(v), v).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("b", [0.0, 1e-320, 1e-7, 1e-3])
def test_dspike_without_temperature_is_a_rectangle(b):
    v = torch.tensor([-0.51, -0.5, -0.2, 0.0, 0.3, 0.5, 0.51], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(Dspike(b)(v), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dspike_at_a_high_temperature_is_a_needle(dtype):
    v = torch.tensor([-60000.0, -0.25, 0.0, 0.25, 60000.0], dtype=dtype)
    expected = torch.tensor([0.0, 0.0, 5000.0, 0.0, 0.0], dtype=dtype)
    torch.testing.assert_close(Dspike(1e4)(v), expected)


@pytest.mark.parametrize("b", [-1.0, 1e5, math.inf, math.nan])
def test_dspike_refuses_temperatures_out_of_range(b):
    with pytest.raises(RuleError, match="expected a number from 0 to 10000"):
        Dspike(b)
