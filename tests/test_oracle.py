"""The oracle against something even simpler: loops over single numbers, and torch's own weight gradients."""

from __future__ import annotations

import pytest
import torch

from tests.cases.case import generator, spike_input, weight
from tests.cases.rules import RULES
from tests.cases.synapses import SYNAPSES, synapse_case
from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Oracle, Rule
from tests.oracles.synapses import apply_synapse, weight_jacobian


def by_hand(w: list[list[float]], r: list[list[float]], xs: torch.Tensor, rule: Rule) -> tuple[list[list[float]], ...]:
    """RLeaky with beta 0.75, threshold 0.5 and reset by subtraction at the next step; loss = sum of (i + 1) y_i."""
    steps, batch, inputs = xs.shape
    units = len(w)
    grad_w = [[0.0] * inputs for _ in range(units)]
    grad_r = [[0.0] * units for _ in range(units)]
    factor = rule.lambda_post if rule.convention == "paper" else 1.0
    for b in range(batch):
        mem, y = [0.0] * units, [0.0] * units
        trace_x, trace_y, trace_psi = [0.0] * inputs, [0.0] * units, [0.0] * units
        for t in range(steps):
            x = xs[t, b].tolist()
            before, reset = list(y), [1.0 if m > 0.5 else 0.0 for m in mem]
            for i in range(units):
                current = sum(w[i][j] * x[j] for j in range(inputs)) + sum(r[i][j] * before[j] for j in range(units))
                mem[i] = 0.75 * mem[i] + current - reset[i] * 0.5
                y[i] = 1.0 if mem[i] > 0.5 else 0.0
            trace_x = [rule.lambda_pre * trace_x[j] + x[j] for j in range(inputs)]
            trace_y = [rule.lambda_pre * trace_y[j] + before[j] for j in range(units)]
            psi = [0.3 * max(0.0, 1 - abs(m - 0.5)) for m in mem]
            for i in range(units):
                delta = i + 1.0
                causal, noncausal = rule.alpha_pre * psi[i], rule.alpha_post * factor * trace_psi[i]
                for j in range(inputs):
                    grad_w[i][j] += delta * (causal * trace_x[j] + noncausal * x[j])
                for j in range(units):
                    grad_r[i][j] += delta * (causal * trace_y[j] + noncausal * before[j])
            trace_psi = [rule.lambda_post * trace_psi[i] + psi[i] for i in range(units)]
    return grad_w, grad_r


@pytest.mark.parametrize("convention", ["code", "paper"])
def test_single_numbers(convention: str) -> None:
    rule = Rule(alpha_pre=0.75, lambda_pre=0.5, alpha_post=-0.6, lambda_post=0.3, psi="triangle", convention=convention)
    rng = generator(3)
    params = {"fc.weight": weight((3, 2), rng), "lif.recurrent.weight": weight((3, 3), rng)}
    options = {"beta": 0.75, "threshold": 0.5, "recurrent": "linear"}
    net = Net((Node("fc", "Linear", ("x",)), Node("lif", "RLeaky", ("fc",), options)), params, ("lif",))
    xs = spike_input((6, 2, 2), rng)
    result = Oracle(net, rule).run(xs, lambda outputs, t: (outputs["lif"] * torch.arange(1.0, 4.0).double()).sum())
    assert 0 < result.spikes["lif"].mean() < 1
    grad_w, grad_r = by_hand(params["fc.weight"].tolist(), params["lif.recurrent.weight"].tolist(), xs, rule)
    torch.testing.assert_close(result.grads["fc.weight"], torch.tensor(grad_w, dtype=torch.float64))
    torch.testing.assert_close(result.grads["lif.recurrent.weight"], torch.tensor(grad_r, dtype=torch.float64))


@pytest.mark.parametrize("name", SYNAPSES)
def test_weight_jacobian_gives_the_weight_gradient(name: str) -> None:
    """g . d out/dW is what torch's own module gives its weight for output gradient g."""
    case = synapse_case(name)
    node = case.net.node("syn")
    x = case.xs[0]
    value = Oracle(case.net, RULES["default"]).params["syn.weight"].detach().requires_grad_()
    out = apply_synapse(node, x, value)
    gradient = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(out, value, gradient)
    jacobian = weight_jacobian(lambda x, w: apply_synapse(node, x, w), x, value.detach())
    found = torch.einsum("bo,bow->w", gradient.flatten(1), jacobian).reshape(value.shape)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_traces_of_single_samples_can_be_reset() -> None:
    """A sample that was reset goes on as if the sequence had begun there."""
    case = synapse_case("Linear")
    rule = RULES["paper"]
    alone = Oracle(case.net, rule).run(case.xs[2:, :1], case.loss).grads
    oracle = Oracle(case.net, rule)
    oracle.run(case.xs[:2], case.loss, [False, False])
    oracle.reset(torch.tensor([True, False]))
    only_first = [torch.tensor([True, False])] * len(case.xs[2:])
    found = oracle.run(case.xs[2:], lambda outputs, t: case.loss({k: v[:1] for k, v in outputs.items()}, t), only_first)
    for name, value in alone.items():
        torch.testing.assert_close(found.grads[name], value, rtol=1e-12, atol=1e-12)
