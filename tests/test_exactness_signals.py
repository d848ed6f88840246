"""Direct feedback alignment against the oracle: delta of a hidden layer is a fixed matrix times the output error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases.case import Case, exact, generator
from tests.cases.drive import attach, gradients, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.neurons import neuron_case, readout_case
from tests.cases.rules import RULES
from tests.cases.structures import structure_case
from tests.cases.synapses import synapse_case
from tests.oracles.stllr import Oracle

pytest.importorskip("snntorch")
pytest.importorskip("norse")

CASES = {
    "spiking output": (lambda: neuron_case("Leaky-zero-now", "spikes"), "lif2"),
    "membrane output": (lambda: neuron_case("Leaky-subtract-now", "membranes"), "lif2"),
    "RLeaky": (lambda: neuron_case("RLeaky-zero-late-linear", "spikes"), "lif2"),
    "one to one": (lambda: neuron_case("RSynaptic-subtract-one_to_one", "spikes"), "lif2"),
    "learned constants": (lambda: neuron_case("Leaky-subtract-now-learned", "spikes"), "lif2"),
    "hidden states": (lambda: neuron_case("Synaptic-hidden", "spikes"), "lif2"),
    "LIFCell": (lambda: neuron_case("LIFCell-triangle", "spikes"), "lif2"),
    "LIFRecurrentCell": (lambda: neuron_case("LIFRecurrentCell-constants", "spikes"), "lif2"),
    "plain readout": (lambda: structure_case("plain_readout"), "out"),
    "leaky readout": (lambda: readout_case("Leaky-none"), "readout"),
    "LICell": (lambda: readout_case("LICell-constants"), "readout"),
    "LILinearCell": (lambda: readout_case("LILinearCell-constants"), "readout"),
    "convolution": (lambda: synapse_case("Conv2d-groups"), "lif2"),
    "weight_norm": (lambda: synapse_case("Conv2d-weight_norm"), "lif2"),
    "mixed": (lambda: structure_case("mixed_neurons_spikes"), "lif3"),
    "batch norm": (lambda: structure_case("batch_norm_spikes"), "lif2"),
    "shared synapse": (lambda: structure_case("shared_synapse"), "lif2"),
    "own recurrence": (lambda: structure_case("own_recurrence"), "lif2"),
    "feedback from above": (lambda: structure_case("feedback_from_above"), "lif2"),
    "residual": (lambda: structure_case("residual_current"), "lif2"),
    "membrane as input": (lambda: structure_case("membrane_as_input"), "lif2"),
}


def feedback_for(case: Case) -> dict[str, Tensor]:
    """A matrix [outputs, *neuron shape] for every hidden spiking neuron."""
    run = Oracle(case.net, RULES["default"]).run(case.xs, None)
    (output,) = case.net.outputs
    size = run.outputs[output][0, 0].numel()
    rng = generator(7)
    hidden = [name for name in run.spikes if name != output.removesuffix(".mem")]
    return {
        name: exact(torch.randn((size, *run.spikes[name].shape[2:]), generator=rng, dtype=torch.float64))
        for name in hidden
    }


@pytest.mark.parametrize("signal", ["dfa", "sign_dfa"])
@pytest.mark.parametrize("name", CASES)
def test_direct_feedback(name: str, signal: Any) -> None:
    build, output = CASES[name]
    case = build()
    feedback = feedback_for(case)
    for rule, way in (("default", "a"), ("paper", "b"), ("surrogate", "a"), ("own_all", "b")):
        expected = Oracle(case.net, RULES[rule], signal=signal, feedback=feedback).run(case.xs, case.loss)
        model = CaseNet(case.net, hidden=case.hidden)
        with attach(model, RULES[rule], learning_signal=signal, output=output) as learner:
            for neuron, matrix in feedback.items():
                learner.feedback[neuron] = matrix
            run_steps(model, case.xs, case.loss, way)
        errors = relative_errors(gradients(model), expected.grads)
        assert max(errors.values()) <= 1e-9, (rule, way, errors)


@pytest.mark.parametrize("signal", ["dfa", "sign_dfa"])
@pytest.mark.parametrize("name", ["RLeaky", "plain readout", "leaky readout", "hidden states"])
def test_direct_feedback_of_the_last_steps(name: str, signal: Any) -> None:
    build, output = CASES[name]
    case, steps = build(), len(build().xs)
    feedback = feedback_for(case)
    supervised = [t >= steps - 2 for t in range(steps)]
    expected = Oracle(case.net, RULES["paper"], signal=signal, feedback=feedback).run(case.xs, case.loss, supervised)
    for way in "ab":
        for told in ({"num_steps": steps}, {}):
            model = CaseNet(case.net, hidden=case.hidden)
            options = {"learning_signal": signal, "output": output, "supervise_last": 2, **told}
            with attach(model, RULES["paper"], **options) as learner:
                for neuron, matrix in feedback.items():
                    learner.feedback[neuron] = matrix
                run_steps(model, case.xs, case.loss, way, steps - 2)
            errors = relative_errors(gradients(model), expected.grads)
            assert max(errors.values()) <= 1e-9, (way, told, errors)
