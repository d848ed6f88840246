"""The oracle of the neurons beyond the plain ones, against the libraries' own modules without a learner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cases.case import generator, spike_input, weight
from tests.cases.drive import gradients, relative_errors
from tests.cases.modules import CaseNet
from tests.cases.more_neurons import AROUND_ZERO, GEOMETRIC, MORE_READOUTS, UNIFORM
from tests.cases.neurons import MORE_NEURONS, neuron_case, readout_case
from tests.cases.plain import run_detached, run_detached_late
from tests.cases.rules import RULES, SLTT
from tests.oracles.functions import quantisation_levels, quantise
from tests.oracles.spec import NORSE_SEQUENCES, SEQUENCES, Net, Node
from tests.oracles.stllr import Oracle, Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

CASES = [*[("neuron", name) for name in MORE_NEURONS], *[("readout", name) for name in MORE_READOUTS]]
GATED = [name for name in MORE_NEURONS if "inhibition" in name or "Refrac" in name]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_without_traces_it_is_plain_autograd(kind: str, name: str) -> None:
    """Spikes and membranes of every layer, and gradients with states detached between steps."""
    case = neuron_case(name, "all") if kind == "neuron" else readout_case(name)
    model = CaseNet(case.net, hidden=case.hidden)
    late = any(node.is_late for node in case.net.nodes)
    outputs = (run_detached_late if late else run_detached)(model, case.xs, case.loss)
    oracle = Oracle(case.net, SLTT).run(case.xs, case.loss)
    for output, value in outputs.items():
        torch.testing.assert_close(oracle.outputs[output], value, rtol=1e-12, atol=1e-12)
    errors = relative_errors(oracle.grads, gradients(model))
    assert all(error <= 1e-9 for error in errors.values()), errors


def whole_sequence(model: CaseNet, xs: Tensor) -> Tensor:
    """What the last module gives out if each module runs all steps in one call."""
    with torch.no_grad():
        for node in model.net.nodes:
            out = getattr(model, node.name)(xs)
            xs = out[0] if isinstance(out, tuple) else out
    return xs


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1].partition("-")[0] in SEQUENCES])
def test_whole_sequences_in_one_call(kind: str, name: str) -> None:
    case = neuron_case(name, "spikes") if kind == "neuron" else readout_case(name)
    (output,) = case.net.outputs
    found = Oracle(case.net, SLTT).run(case.xs, None).outputs[output]
    torch.testing.assert_close(found, whole_sequence(CaseNet(case.net), case.xs), rtol=1e-12, atol=1e-12)


def test_every_sequence_module_has_a_case() -> None:
    kinds = {name.partition("-")[0] for _, name in CASES}
    assert kinds >= {*SEQUENCES} and {*NORSE_SEQUENCES} <= kinds


@pytest.mark.parametrize("name", GATED)
def test_some_neurons_are_above_threshold_and_may_not_spike(name: str) -> None:
    """Else these cases would not tell whether psi is zero there."""
    case = neuron_case(name, "spikes")
    result = Oracle(case.net, SLTT).run(case.xs, None)
    assert any(((v > 0) & (result.spikes[lif] == 0)).any() for lif, v in result.membranes.items())


@pytest.mark.parametrize("options", [UNIFORM, GEOMETRIC, AROUND_ZERO], ids=["uniform", "geometric", "around_zero"])
def test_levels_of_quantised_states(options: dict[str, float]) -> None:
    from snntorch.functional import quant

    levels = quantisation_levels(**options)
    assert len(levels) == 2 ** options["num_bits"]
    x = torch.randn(500, generator=generator(0))
    torch.testing.assert_close(quantise(x.double(), levels).float(), quant.state_quant(**options)(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(quantise(levels, levels), levels, rtol=0, atol=0)


def lsnn_by_hand(
    w: list[list[float]], r: list[list[float]], xs: Tensor, rule: Rule, p: dict[str, float]
) -> tuple[list[list[float]], list[list[float]]]:
    """LSNNRecurrentCell in single numbers, dt = 1/1000; loss = sum of (i + 1) y_i + (i + 2) v_i over the steps."""
    steps, batch, inputs = xs.shape
    units = len(w)
    grad_w, grad_r = [[0.0] * inputs for _ in range(units)], [[0.0] * units for _ in range(units)]
    mem_rate, syn_rate, ada_rate = (p[name] / 1000 for name in ("tau_mem_inv", "tau_syn_inv", "tau_adapt_inv"))
    for b in range(batch):
        v, i, th = [0.0] * units, [0.0] * units, [p["v_th"]] * units
        y, y_entered, x_entered = [0.0] * units, [0.0] * units, [0.0] * inputs
        trace_x, trace_y, trace_psi = [0.0] * inputs, [0.0] * units, [0.0] * units
        for t in range(steps):
            # what entered the current at the step before acts on the membrane now
            trace_x = [rule.lambda_pre * trace_x[j] + x_entered[j] for j in range(inputs)]
            trace_y = [rule.lambda_pre * trace_y[j] + y_entered[j] for j in range(units)]
            u = [v[n] + mem_rate * (i[n] - v[n]) for n in range(units)]
            th = [th[n] + ada_rate * (p["v_th"] - th[n]) for n in range(units)]
            fired = [1.0 if u[n] > th[n] else 0.0 for n in range(units)]
            psi = [0.3 * max(0.0, 1 - abs(u[n] - th[n])) for n in range(units)]
            for n in range(units):
                spike = (n + 1.0) * mem_rate
                membrane = (n + 2.0) * mem_rate * (1 - fired[n])
                causal = spike * rule.alpha_pre * psi[n] + membrane
                noncausal = spike * rule.alpha_post * trace_psi[n]
                for j in range(inputs):
                    grad_w[n][j] += causal * trace_x[j] + noncausal * x_entered[j]
                for j in range(units):
                    if j != n:
                        grad_r[n][j] += causal * trace_y[j] + noncausal * y_entered[j]
            trace_psi = [rule.lambda_post * trace_psi[n] + psi[n] for n in range(units)]
            x_entered, y_entered = xs[t, b].tolist(), list(y)
            i = [
                i[n] * (1 - syn_rate)
                + sum(w[n][j] * x_entered[j] for j in range(inputs))
                + sum(r[n][j] * y_entered[j] for j in range(units))
                for n in range(units)
            ]
            v = [0.0 if fired[n] else u[n] for n in range(units)]
            th = [th[n] + fired[n] * p["beta"] for n in range(units)]
            y = fired
    return grad_w, grad_r


def test_a_late_neuron_in_single_numbers() -> None:
    constants = {"tau_syn_inv": 125.0, "tau_mem_inv": 250.0, "tau_adapt_inv": 62.5, "v_th": 0.75, "beta": 0.375}
    rng = generator(2)
    params = {"lif.input_weights": weight((3, 2), rng, 6.0), "lif.recurrent_weights": weight((3, 3), rng, 2.0)}
    params["lif.recurrent_weights"].fill_diagonal_(0)
    net = Net((Node("lif", "LSNNRecurrentCell", ("x",), constants),), params, ("lif", "lif.mem"))
    xs = spike_input((7, 2, 2), rng)
    factor = torch.arange(1.0, 4.0).double()

    def loss(outputs: dict[str, Tensor], t: int) -> Tensor:
        return (outputs["lif"] * factor + outputs["lif.mem"] * (factor + 1)).sum()

    rule = RULES["default"]
    result = Oracle(net, rule).run(xs, loss)
    assert 0 < result.spikes["lif"].mean() < 1
    by_hand = lsnn_by_hand(*[params[name].tolist() for name in params], xs, rule, constants)
    for name, expected in zip(params, by_hand, strict=True):
        torch.testing.assert_close(result.grads[name], torch.tensor(expected, dtype=torch.float64))
