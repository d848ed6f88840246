"""An attached snnTorch network reproduces the gradients of the authors' published code.

Their golden files hold float32 gradients; psi is so narrow in most of them that rounding alone makes 3e-5 of it, so the
promise is 2e-4 (norm of the difference over norm) for every parameter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stllr_plugin.nn import weight_standardize
from tests.cases.drive import attach, relative_errors
from tests.cases.modules import CaseNet
from tests.oracles import golden
from tests.oracles.stllr import Rule

pytest.importorskip("snntorch")

TOLERANCE = 2e-4


class PublishedStandardisation(nn.Module):
    """The weights as the authors compute them, with the gain of the file; a parametrization of the test's own."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        return golden.weight_standardised(weight, self.gain, self.eps)


def standardise(model: CaseNet, data: dict[str, Any], own: bool) -> dict[str, str]:
    """Standardise the first two layers; gives golden names of the new parameters by parameter name."""
    names: dict[str, str] = {}
    for i in "12":
        layer = getattr(model, f"fc{i}")
        if own:
            parametrize.register_parametrization(
                layer, "weight", PublishedStandardisation(data[f"gain{i}"], data["eps"])
            )
        else:
            weight_standardize(layer, eps=data["eps"])
            with torch.no_grad():
                layer.parametrizations.weight[0].gain.copy_(data[f"gain{i}"])
        names |= {
            f"fc{i}.parametrizations.weight.original": f"w{i}",
            f"fc{i}.parametrizations.weight.0.gain": f"gain{i}",
        }
    return names


# file, way of use, whether the test brings its own parametrization
VARIANTS = [(name, way, False) for name in golden.NAMES for way in "ab"] + [("dense_weight_standardised", "b", True)]


@pytest.mark.parametrize(("name", "way", "own_parametrization"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_attached_snntorch_network_reproduces_golden(
    name: str, way: str, own_parametrization: bool, dtype: torch.dtype
) -> None:
    data = golden.load(name)
    net = golden.net_of(data)
    model = CaseNet(net, dtype=dtype)
    golden_names = {parameter: key for key, parameter in golden.PARAMETERS[golden.family(data)].items()}
    if "gain1" in data:
        golden_names |= standardise(model, data, own_parametrization)
    model.to(dtype)
    layer_rules = {}
    options: dict[str, Any] = {"supervise_last": data["supervise_last"], "num_steps": len(data["x"])}
    if "readout_lambda_pre" in data:
        layer_rules["fc2"] = Rule(lambda_pre=data["readout_lambda_pre"])
    if "feedback" in data:
        options |= {"learning_signal": golden.signal_of(data), "output": "readout"}
    (output,) = net.outputs
    loss = golden.loss_of(data, output)
    with attach(model, golden.rule_of(data), layer_rules, **options) as learner:
        if "feedback" in data:
            learner.feedback["lif1"] = golden.feedback_of(data)
        state, total = None, torch.zeros(())
        for t, x in enumerate(data["x"].to(dtype)):
            outputs, state = model(x, state)
            torch.testing.assert_close(outputs[output].float(), data["logits"][t], rtol=1e-5, atol=1e-5)
            for key in ("spikes", "spikes1", "spikes2"):
                if key in data:
                    layer = f"lif{key[-1] if key[-1].isdigit() else 1}"
                    assert torch.equal(model.values[layer].float(), data[key][t])
            if way == "a":
                total = total + loss(outputs, t)
            elif t >= len(data["x"]) - data["supervise_last"]:
                loss(outputs, t).backward()
        if way == "a":
            total.backward()
    found = {golden_names[parameter]: p.grad for parameter, p in model.named_parameters()}
    expected = {key: data[f"grad_{key}"].double() for key in found}
    errors = relative_errors(found, expected)
    assert all(error < TOLERANCE for error in errors.values()), errors
