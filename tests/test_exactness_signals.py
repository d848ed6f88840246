"""Signals that reach hidden layers directly, against the oracle: from the output error or from the target.

The matrices are given to both, but for the square waves of "tess", which the oracle writes out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import wiring  # noqa: F401  registers more structures
from tests.cases.case import Case, exact, generator
from tests.cases.drive import assert_equal, attach, gradients, measure, reference, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.neurons import neuron_case, readout_case
from tests.cases.rules import RULES
from tests.cases.structures import structure_case
from tests.cases.synapses import synapse_case
from tests.oracles.signals import OF_TARGET, Target, square_waves
from tests.oracles.stllr import Oracle, Result, Rule

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
    "convolutions": (lambda: structure_case("residual_of_strided_spikes"), "lif3"),
    "convolution and norm": (lambda: structure_case("residual_spikes_to_currents"), "fc"),
    "one block in depth": (lambda: structure_case("one_block_in_depth"), "lif2"),
}
OF_ERROR = ("dfa", "sign_dfa")
SOME = ("RLeaky", "plain readout", "leaky readout", "hidden states", "convolutions")


def feedback_for(case: Case, classes: int | None = None) -> dict[str, Tensor]:
    """A matrix [outputs or classes, *neuron shape] for every hidden spiking neuron module."""
    run = Oracle(case.net, RULES["default"]).run(case.xs, None)
    (output,) = case.net.outputs
    size = classes or run.outputs[output][0, 0].numel()
    rng = generator(7)
    hidden = [name for name in run.spikes if name != output.removesuffix(".mem")]
    return {
        name: exact(torch.randn((size, *run.spikes[name].shape[2:]), generator=rng, dtype=torch.float64))
        for name in hidden
        if "shares" not in case.net.node(name).options
    }


def classes_of(case: Case) -> int:
    (output,) = case.net.outputs
    return Oracle(case.net, RULES["default"]).run(case.xs, None).outputs[output][0, 0].numel()


def labels_for(case: Case) -> Tensor:
    return torch.arange(case.xs.shape[1]) % classes_of(case)


def oracle_run(
    case: Case,
    rule: Rule,
    signal: str,
    feedback: dict[str, Tensor],
    target: Target | None = None,
    supervised: Any = None,
) -> tuple[Result, Oracle]:
    oracle = Oracle(case.net, rule, signal=signal, feedback=feedback, target=target)
    return oracle.run(case.xs, case.loss, supervised), oracle


def compare(
    name: str,
    rule: str,
    way: str,
    signal: str,
    target: Target | None = None,
    supervised: Any = None,
    first: int = 0,
    lengths: Tensor | None = None,
    **options: Any,
) -> None:
    """One sequence; the gradients of the network and, where they are trained, of the readouts.

    ``supervised="drawn"`` takes the steps that the learner has drawn.
    """
    build, output = CASES[name]
    case = build()
    classes = None if target is None or target.y.dim() == 1 else target.y.shape[1]
    feedback = feedback_for(case, classes)
    model = CaseNet(case.net, hidden=case.hidden)
    if signal == "local":
        options["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, RULES[rule], learning_signal=signal, output=output, **options) as learner:
        if signal != "tess":
            for neuron, matrix in feedback.items():
                learner.feedback[neuron] = matrix
        if lengths is not None:
            learner.reset(lengths=lengths)
        if target is not None:
            learner.set_target(target.y, target.scale)
        if supervised == "drawn":
            supervised = [learner.supervision.is_supervised(t) for t in range(len(case.xs))]
        run_steps(model, case.xs, case.loss, way, first)
        expected, oracle = oracle_run(case, RULES[rule], signal, feedback, target, supervised)
        errors = relative_errors(gradients(model), expected.grads)
        if signal == "local":
            found = {neuron: matrix.grad for neuron, matrix in learner.feedback.items()}
            errors |= {f"readout of {n}": e for n, e in relative_errors(found, oracle.readout_grads).items()}
    assert max(errors.values()) <= 1e-9, (rule, way, errors)


FOUR = (("default", "a"), ("paper", "b"), ("surrogate", "a"), ("own_all", "b"))


@pytest.mark.parametrize("signal", OF_ERROR)
@pytest.mark.parametrize("name", CASES)
def test_direct_feedback(name: str, signal: str) -> None:
    for rule, way in FOUR:
        compare(name, rule, way, signal)


@pytest.mark.parametrize("signal", OF_TARGET)
@pytest.mark.parametrize("name", CASES)
def test_signals_of_the_target(name: str, signal: str) -> None:
    """Classes in two rules, values in the others, with one factor or one per sample."""
    case = CASES[name][0]()
    batch = case.xs.shape[1]
    values = exact(torch.rand((batch, classes_of(case)), generator=generator(3), dtype=torch.float64))
    targets = [
        Target(labels_for(case)),
        Target(values, 0.25),
        Target(labels_for(case), torch.linspace(0.5, 2.0, batch, dtype=torch.float64)),
        Target(values),
    ]
    # the rule does not know where delta comes from, and a readout gives the same delta whether it is trained or not
    few = {"local": 4, "local_random": 1}.get(signal, 2)
    for (rule, way), target in zip(FOUR[:few], targets[:few], strict=True):
        compare(name, rule, way, signal, target)


@pytest.mark.parametrize("signal", OF_TARGET)
def test_a_target_of_another_width_than_the_output(signal: str) -> None:
    """The number of classes is that of the target, whatever the loss sees."""
    case = CASES["convolutions"][0]()
    values = exact(torch.rand((case.xs.shape[1], 5), generator=generator(3), dtype=torch.float64))
    compare("convolutions", "default", "b", signal, Target(values))


@pytest.mark.parametrize("signal", [*OF_ERROR, *OF_TARGET])
@pytest.mark.parametrize("name", SOME)
def test_direct_signals_of_the_last_steps(name: str, signal: str) -> None:
    case = CASES[name][0]()
    steps = len(case.xs)
    target = Target(labels_for(case), 0.5) if signal in OF_TARGET else None
    supervised = [t >= steps - 2 for t in range(steps)]
    for way in "ab":
        for told in ({"num_steps": steps}, {}):
            compare(name, "paper", way, signal, target, supervised, steps - 2, supervise_last=2, **told)


@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("signal", ["dfa", "drtp", "local", "tess"])
@pytest.mark.parametrize("name", SOME[1:])
def test_direct_signals_and_lengths(name: str, signal: str, supervise_last: int | None) -> None:
    """Samples that have ended teach nothing, readouts neither; B stays the size of the batch."""
    case = CASES[name][0]()
    steps, batch = case.xs.shape[:2]
    lengths = torch.tensor([steps - 2, steps, steps - 1][:batch])
    first = torch.zeros_like(lengths) if supervise_last is None else lengths - supervise_last
    supervised = [(t < lengths) & (t >= first) for t in range(steps)]
    target = Target(labels_for(case)) if signal in OF_TARGET else None
    for way in "ab":
        compare(
            name,
            "default",
            way,
            signal,
            target,
            supervised,
            int(first.min()),
            lengths,
            supervise_last=supervise_last,
        )


@pytest.mark.parametrize("signal", OF_TARGET)
def test_only_steps_with_a_loss_teach(signal: str) -> None:
    """The target is known all the time; what decides is which steps a backward pass reaches."""
    case, output = structure_case("plain_readout"), "out"
    target, feedback = Target(labels_for(case)), feedback_for(case)
    chosen = (1, 4)
    expected, _ = oracle_run(case, RULES["paper"], signal, feedback, target, [t in chosen for t in range(len(case.xs))])
    model = CaseNet(case.net)
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with attach(model, RULES["paper"], learning_signal=signal, output=output, **options) as learner:
        if signal != "tess":
            learner.feedback.update(feedback)
        learner.set_target(target.y)
        state: Any = None
        for t, x in enumerate(case.xs):
            outputs, state = model(x, state)
            if t in chosen:
                case.loss(outputs, t).backward()
    assert max(relative_errors(gradients(model), expected.grads).values()) <= 1e-9


def test_square_waves_are_those_of_the_paper() -> None:
    case = CASES["convolutions"][0]()
    model = CaseNet(case.net)
    with attach(model, RULES["default"], learning_signal="tess", output="lif3") as learner:
        learner.set_target(labels_for(case))
        run_steps(model, case.xs, case.loss)
        assert learner.feedback.keys() == {"lif0", "lif1", "lifs"}
        for name, matrix in learner.feedback.items():
            channels = case.net.params[{"lif0": "stem", "lif1": "c1", "lifs": "short"}[name] + ".weight"].shape[0]
            assert torch.equal(matrix.double(), square_waves(3, channels)), name


# ------------------------------------------------------------------------------------------------ convention "current"
CURRENT = Rule(lambda_pre=0.5, alpha_post=-0.75, lambda_post=0.25, psi="sigmoid", convention="current")
CURRENT_CASES = ("RLeaky", "LIFRecurrentCell", "hidden states", "batch norm", "shared synapse", "convolutions")


@pytest.mark.parametrize("lambda_post", [0.25, 0.0, 1.0])
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", CURRENT_CASES)
def test_the_second_term_with_the_newest_sample(name: str, way: str, lambda_post: float) -> None:
    """tr_psi[t] in place of tr_psi[t-1], from the first step on."""
    case, rule = CASES[name][0](), replace(CURRENT, lambda_post=lambda_post)
    assert_equal(measure(case, rule, way=way), reference(case, rule), 1e-9, name)


def test_the_second_term_with_the_newest_sample_of_the_last_steps() -> None:
    case = CASES["RLeaky"][0]()
    supervised = [t >= len(case.xs) - 2 for t in range(len(case.xs))]
    expected = reference(case, CURRENT, supervised=supervised)
    assert_equal(measure(case, CURRENT, supervise_last=2), expected, 1e-9)


# ------------------------------------------------------------------------------------------------ random steps
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", ["RLeaky", "LIFRecurrentCell", "plain readout", "hidden states", "convolutions"])
def test_random_steps(name: str, way: str) -> None:
    case, rule = CASES[name][0](), RULES["paper"]
    steps, chosen = len(case.xs), []
    for seed in range(3):
        torch.manual_seed(seed)
        model = CaseNet(case.net, hidden=case.hidden)
        with attach(model, rule, supervise_random=2, num_steps=steps) as learner:
            supervised = [learner.supervision.is_supervised(t) for t in range(steps)]
            state: Any = None
            total: Any = 0.0
            for t, x in enumerate(case.xs):
                outputs, state = model(x, state)
                if way == "a":
                    total = total + case.loss(outputs, t)
                elif supervised[t]:
                    case.loss(outputs, t).backward()
            if way == "a":
                total.backward()
        expected = reference(case, rule, supervised=supervised)
        assert max(relative_errors(gradients(model), expected.grads).values()) <= 1e-9, supervised
        chosen.append(supervised)
    assert all(sum(supervised) == 2 for supervised in chosen)
    assert len({tuple(supervised) for supervised in chosen}) > 1


@pytest.mark.parametrize("signal", ["dfa", "local", "tess"])
def test_random_steps_of_direct_signals(signal: str) -> None:
    case = CASES["convolutions"][0]()
    steps, target = len(case.xs), Target(labels_for(case)) if signal in OF_TARGET else None
    compare("convolutions", "default", "a", signal, target, "drawn", supervise_random=2, num_steps=steps)
