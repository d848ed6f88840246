"""The oracle alone reproduces the gradients of the authors' published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.oracles import golden

SHARED = Path(__file__).parent.parent.parent / "shared" / "golden"
# the rounding of a float32 reference, which the very narrow psi amplifies
TOLERANCE = {"inverse_square_100": 2e-4, "triangle_0.3": 2e-6, "sigmoid_4": 2e-6}


@pytest.mark.parametrize("name", golden.NAMES)
def test_oracle_reproduces_golden_gradients(name: str) -> None:
    data = golden.load(name)
    tolerance = TOLERANCE[data["psi"]]
    oracle = golden.oracle_of(data)
    (output,) = oracle.net.outputs
    result = oracle.run(data["x"], golden.loss_of(data, output), golden.supervised_of(data))
    for key in ("spikes", "spikes1", "spikes2"):
        if key in data:
            assert torch.equal(result.spikes[f"lif{key[-1] if key[-1].isdigit() else 1}"], data[key].double())
    torch.testing.assert_close(result.outputs[output], data["logits"].double(), rtol=1e-5, atol=1e-5)
    for parameter, gradient in golden.gradients(data, result.grads).items():
        expected = data[f"grad_{parameter}"].double()
        error = (gradient - expected).norm() / expected.norm()
        assert error < tolerance, (parameter, error)


def test_test_data_are_the_shared_files() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/golden is not here; tests/data/golden holds a copy")
    for name in golden.NAMES:
        ours, theirs = golden.load(name), golden.load(name, SHARED)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]
            assert same, (name, key)
    assert {path.stem for path in SHARED.glob("*.npz")} == set(golden.NAMES)
