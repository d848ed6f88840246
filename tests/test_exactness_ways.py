"""The same gradients by every way of use, for sequences of any length, and across resets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin.errors import StateError
from tests.cases import wiring  # noqa: F401  registers more structures
from tests.cases.case import Case
from tests.cases.drive import assert_equal, attach, gradients, measure, reference, relative_errors, run_steps
from tests.cases.modules import CaseNet, as_sequential, as_sequential_state
from tests.cases.neurons import neuron_case, readout_case
from tests.cases.plain import run_detached
from tests.cases.rules import RULES
from tests.cases.structures import ENTANGLED, STRUCTURES, structure_case
from tests.oracles.stllr import Oracle, Rule

pytest.importorskip("snntorch")
pytest.importorskip("norse")

CASES = {
    "Leaky": lambda: neuron_case("Leaky-zero-now", "both"),
    "RLeaky": lambda: neuron_case("RLeaky-zero-late-linear", "both"),
    "RSynaptic-hidden": lambda: neuron_case("RSynaptic-hidden", "all"),
    "LIFCell": lambda: neuron_case("LIFCell-triangle", "both"),
    "LIFRecurrentCell": lambda: neuron_case("LIFRecurrentCell-constants", "spikes"),
    "LILinearCell": lambda: readout_case("LILinearCell-constants"),
    "plain readout": lambda: readout_case("Linear"),
    "leaky readout": lambda: readout_case("Leaky-none"),
    **{name: lambda name=name: structure_case(name) for name in STRUCTURES},
}
HIDDEN = ("Leaky-hidden-now", "RLeaky-hidden", "Synaptic-hidden", "RSynaptic-hidden", "Lapicque-hidden")


def last(case: Case, count: int) -> list[bool]:
    return [t >= len(case.xs) - count for t in range(len(case.xs))]


def check_supervise_last(name: str, way: str, tell_num_steps: bool = True) -> None:
    case, rule = CASES[name](), RULES["paper"]
    expected = reference(case, rule, supervised=last(case, 2))
    assert_equal(measure(case, rule, way=way, supervise_last=2, tell_num_steps=tell_num_steps), expected, 1e-9, name)


@pytest.mark.parametrize("tell_num_steps", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("name", CASES)
def test_supervise_last_with_one_backward(name: str, tell_num_steps: bool) -> None:
    """The loss contains every step; those that are not supervised teach nothing."""
    check_supervise_last(name, "a", tell_num_steps)


@pytest.mark.parametrize("name", CASES)
def test_supervise_last_with_a_backward_per_step(name: str) -> None:
    check_supervise_last(name, "b")


@pytest.mark.parametrize("name", CASES)
def test_only_some_steps_have_a_loss(name: str) -> None:
    """Without supervise_last it is the caller who decides, here steps 1 and 3."""
    case, rule = CASES[name](), RULES["default"]
    steps = (1, 3)
    expected = reference(case, rule, supervised=[t in steps for t in range(len(case.xs))])
    for way in "ab":
        model = CaseNet(case.net, hidden=case.hidden)
        with attach(model, rule):
            state, losses = None, []
            for t, x in enumerate(case.xs):
                outputs, state = model(x, state)
                if t in steps:
                    losses.append(case.loss(outputs, t))
                    if way == "b":
                        losses.pop().backward()
            if way == "a":
                torch.stack(losses).sum().backward()
        errors = relative_errors(gradients(model), expected.grads)
        assert max(errors.values()) <= 1e-9, (way, errors)


# ------------------------------------------------------------------------------------------------ lengths
MIXES_SAMPLES = ("batch_norm1d", "batch_norm2d", "batch_norm_spikes", "norm_pool_scale", "norm_on_spikes")
MIXES_SAMPLES += ("residual_spikes_to_currents", "residual_with_strided_shortcut")
LENGTHS = [name for name in CASES if name not in MIXES_SAMPLES]


@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", LENGTHS)
def test_lengths(name: str, way: str, supervise_last: int | None) -> None:
    """supervise_last counts from each sample's own end, and nothing after the end teaches.

    Not with batch norm, which mixes the samples.
    """
    case, rule = CASES[name](), RULES["paper"]
    steps, batch = case.xs.shape[:2]
    lengths = torch.tensor([steps - 2, steps, steps - 1, steps][:batch])
    first = 0 if supervise_last is None else lengths - supervise_last
    supervised = [(t < lengths) & (t >= torch.as_tensor(first)) for t in range(steps)]
    expected = reference(case, rule, supervised=supervised)
    model = CaseNet(case.net, hidden=case.hidden)
    with attach(model, rule, supervise_last=supervise_last) as learner:
        learner.reset(lengths=lengths)
        run_steps(model, case.xs, case.loss, way, 0 if supervise_last is None else int(lengths.min()) - supervise_last)
    errors = relative_errors(gradients(model), expected.grads)
    assert max(errors.values()) <= 1e-9, errors


# ------------------------------------------------------------------------------------------------ new sequences
@pytest.mark.parametrize("name", HIDDEN)
def test_reset_begins_a_new_sequence(name: str) -> None:
    case, rule = neuron_case(name, "both"), RULES["default"]
    expected = reference(case, rule)
    model = CaseNet(case.net, hidden=True)
    with attach(model, rule) as learner:
        run_steps(model, case.xs, case.loss)
        learner.zero_grad()
        learner.reset()
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected.grads).values()) <= 1e-9


@pytest.mark.parametrize("name", ["LIFCell-default", "LIFRecurrentCell-autapses", "RLeaky-zero-now-linear"])
def test_new_states_begin_a_new_sequence_without_reset(name: str) -> None:
    """Norse's state None and fresh snnTorch states are evident; two sequences accumulate their gradients."""
    case, rule = neuron_case(name, "both"), RULES["default"]
    expected = {key: 2 * value for key, value in reference(case, rule).grads.items()}
    model = CaseNet(case.net)
    with attach(model, rule):
        run_steps(model, case.xs, case.loss)
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


@pytest.mark.parametrize("name", HIDDEN)
def test_reset_of_some_samples(name: str) -> None:
    case, rule = neuron_case(name, "both"), RULES["paper"]
    mask = torch.tensor([True, False])
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=True)
    with attach(model, rule) as learner:
        for part in (case.xs[:3], case.xs[3:]):
            oracle.run(part, case.loss)
            run_steps(model, part, case.loss)
            oracle.reset(mask)
            learner.reset(mask)
    assert max(relative_errors(gradients(model), oracle.raw_grads()).values()) <= 1e-9


@pytest.mark.parametrize("name", HIDDEN)
def test_gradients_of_a_sequence_in_two_calls(name: str) -> None:
    """Without a reset the second part goes on where the first ended."""
    case, rule = neuron_case(name, "both"), RULES["default"]
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=True)
    with attach(model, rule):
        for part in (case.xs[:2], case.xs[2:]):
            oracle.run(part, case.loss)
            run_steps(model, part, case.loss, "a")
    assert max(relative_errors(gradients(model), oracle.raw_grads()).values()) <= 1e-9


@pytest.mark.parametrize("name", ["Leaky-hidden-now", "RSynaptic-hidden"])
def test_weights_updated_at_every_step(name: str) -> None:
    """optimizer.step() at each supervised step: the traces go on, with the new weights."""
    case, rule, rate = neuron_case(name, "both"), RULES["default"], 0.01
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with attach(model, rule, optimizer=optimizer, reset_after_step=False) as learner:
        for t, x in enumerate(case.xs):
            outputs, _ = model(x)
            learner.zero_grad()
            case.loss(outputs, t).backward()
            oracle.grads = {key: torch.zeros_like(value) for key, value in oracle.grads.items()}
            oracle.run(x[None], lambda outputs, _, t=t: case.loss(outputs, t))
            assert max(relative_errors(gradients(model), oracle.grads).values()) <= 1e-9, t
            learner.step()
            with torch.no_grad():
                for key, parameter in oracle.params.items():
                    parameter -= rate * oracle.grads[key]


# ------------------------------------------------------------------------------------------------ loops inside forward
class Sequence(nn.Module):
    """The time loop inside forward; returns the outputs of all steps."""

    def __init__(self, net: CaseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, xs: Tensor) -> dict[str, Tensor]:
        state: Any = None
        record: dict[str, list[Tensor]] = {}
        for x in xs:
            outputs, state = self.net(x, state)
            for name, value in outputs.items():
                record.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in record.items()}


ONLINE = {
    "Leaky": (lambda: neuron_case("Leaky-zero-now", "both"), "lif2"),
    "RLeaky": (lambda: neuron_case("RLeaky-subtract-late-linear", "both"), "lif2"),
    "Leaky-hidden": (lambda: neuron_case("Leaky-hidden-now", "both"), "lif2"),
    "plain readout": (lambda: readout_case("Linear"), "fc2"),
    "LICell": (lambda: readout_case("LICell-constants"), "readout"),
    "batch_norm2d": (lambda: structure_case("batch_norm2d"), "lif2"),
}


def named_outputs(case: Case, returned: tuple[Any, ...]) -> dict[str, Tensor]:
    """What a module returned, as the outputs of the case."""
    return {name: returned[-1] if name.endswith(".mem") else returned[0] for name in case.net.outputs}


@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("name", ONLINE)
def test_online(name: str, supervise_last: int | None) -> None:
    build, output = ONLINE[name]
    case, rule = build(), RULES["paper"]
    steps = len(case.xs)
    supervised = last(case, supervise_last or steps)
    expected = reference(case, rule, supervised=supervised)
    model = Sequence(CaseNet(case.net, hidden=case.hidden))
    times = iter([t for t in range(steps) if supervised[t]])
    with attach(model, rule, supervise_last=supervise_last) as learner:

        def loss(*returned: Any) -> Tensor:
            return case.loss(named_outputs(case, returned), next(times))

        with learner.online(f"net.{output}", loss, num_steps=steps) as run:
            model(case.xs)
    assert float(run.loss) == pytest.approx(expected.loss, rel=1e-12)
    assert max(relative_errors(gradients(model.net), expected.grads).values()) <= 1e-9


@pytest.mark.parametrize("name", ONLINE)
def test_two_pass(name: str) -> None:
    """A loss on sums over time: its gradient at each step is known only at the end."""
    build, output = ONLINE[name]
    case, rule = build(), RULES["paper"]

    def count_loss(outputs: dict[str, Tensor]) -> Tensor:
        return sum(torch.exp(-values.sum(0)).sum() + (values.sum(0) ** 2).sum() for values in outputs.values())

    recorded = {name: value.clone().requires_grad_() for name, value in reference(case, rule).outputs.items()}
    total = count_loss(recorded)
    total.backward()

    def loss_of_step(outputs: dict[str, Tensor], t: int) -> Tensor:
        return sum((value * recorded[name].grad[t]).sum() for name, value in outputs.items())

    expected = Oracle(case.net, rule).run(case.xs, loss_of_step)
    model = Sequence(CaseNet(case.net, hidden=case.hidden))
    with attach(model, rule) as learner:
        loss = learner.two_pass(f"net.{output}", count_loss, lambda: model(case.xs))
    assert float(loss) == pytest.approx(total.item(), rel=1e-12)
    assert max(relative_errors(gradients(model.net), expected.grads).values()) <= 1e-9


# ------------------------------------------------------------------------------------------------ containers
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", ["Leaky-hidden-now", "RLeaky-hidden", "RSynaptic-hidden-spikes-only"])
def test_inside_nn_sequential(name: str, way: str) -> None:
    case, rule = neuron_case(name, "spikes"), RULES["default"]
    nodes = tuple(
        replace(node, options={**node.options, "output": False}) if node.is_neuron else node for node in case.net.nodes
    )
    expected = reference(case, rule)
    model = as_sequential(replace(case.net, nodes=nodes))

    def step(x: Tensor, state: Any) -> tuple[dict[str, Tensor], Any]:
        return {"lif2": model(x)}, None

    with attach(model, rule):
        run_steps(step, case.xs, case.loss, way)
    assert max(relative_errors(gradients(model), expected.grads).values()) <= 1e-9


def sequential_state_nets() -> dict[str, Case]:
    cell, recurrent = neuron_case("LIFCell-triangle", "spikes"), neuron_case("LIFRecurrentCell-constants", "spikes")
    return {"LIFCell": cell, "LIFRecurrentCell": recurrent, "LICell": readout_case("LICell-constants")}


@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", ["LIFCell", "LIFRecurrentCell", "LICell"])
def test_inside_norse_sequential_state(name: str, way: str) -> None:
    case, rule = sequential_state_nets()[name], RULES["default"]
    (output,) = case.net.outputs
    expected = reference(case, rule)
    model = as_sequential_state(case.net)

    def step(x: Tensor, state: Any) -> tuple[dict[str, Tensor], Any]:
        out, state = model(x, state)
        return {output: out}, state

    with attach(model, rule):
        run_steps(step, case.xs, case.loss, way)
    names = [node.name for node in case.net.nodes]
    found = {}
    for name_, gradient in gradients(model).items():
        position, rest = name_.split(".", 1)
        found[f"{names[int(position)]}.{rest}"] = gradient
    assert max(relative_errors(found, expected.grads).values()) <= 1e-9


# ------------------------------------------------------------------------------------------------ rules by layer
LAYER_RULES: dict[str, dict[str, Rule]] = {
    "synapse": {"fc1": RULES["default"], "fc2": Rule(0.5, 0.25, 1.0, 0.75, "triangle")},
    "neuron": {"lif1": RULES["own_all"], "lif2": RULES["surrogate"]},
    "synapse before neuron": {"fc2": Rule(0.5, 0.25, 1.0, 0.75, "sigmoid"), "lif2": RULES["paper"]},
    "recurrent": {"lif1.recurrent": Rule(0.5, 0.25, 1.0, 0.75, "triangle"), "lif2.recurrent": RULES["default"]},
}


@pytest.mark.parametrize("which", LAYER_RULES)
@pytest.mark.parametrize("base", ["default", "paper"])
def test_layer_rules(which: str, base: str) -> None:
    """A rule for a synapse changes its eligibility; how delta travels on stays with the neuron's rule."""
    case = neuron_case("RLeaky-zero-now-linear", "both")
    rules = LAYER_RULES[which]
    expected = reference(case, RULES[base], layer_rules=rules)
    for way in "ab":
        assert_equal(measure(case, RULES[base], way=way, layer_rules=rules), expected, 1e-9, which)


def test_two_synapses_of_one_neuron_with_rules_of_their_own() -> None:
    case = structure_case("two_synapses")
    rules = {"skip": Rule(0.5, 0.25, 1.0, 0.75, "sigmoid", convention="paper"), "fc2": RULES["callable"]}
    expected = reference(case, RULES["default"], layer_rules=rules)
    assert_equal(measure(case, RULES["default"], layer_rules=rules), expected, 1e-9)


# ------------------------------------------------------------------------------------------------ frozen parts
@pytest.mark.parametrize("frozen", ["fc1.weight", "fc2.weight", "lif1.recurrent.weight", "fc1.bias"])
def test_a_frozen_parameter_changes_nothing_else(frozen: str) -> None:
    case, rule = neuron_case("RLeaky-zero-now-linear", "both"), RULES["default"]
    expected = {**reference(case, rule).grads}
    expected[frozen] = torch.zeros_like(expected[frozen])
    model = CaseNet(case.net)
    dict(model.named_parameters())[frozen].requires_grad_(False)
    with attach(model, rule):
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


@pytest.mark.parametrize("excluded", ["fc1", "fc2", "out"])
def test_an_excluded_synapse_gets_its_plain_gradient(excluded: str) -> None:
    """The rest of the network is trained as before: delta and x do not depend on how a weight above is trained."""
    case, rule = structure_case("plain_readout"), RULES["default"]
    expected = reference(case, rule, exclude=[excluded])
    for way in "ab":
        model = CaseNet(case.net)
        with attach(model, rule, exclude=excluded):
            run_steps(model, case.xs, case.loss, way)
        assert max(relative_errors(gradients(model), expected.grads).values()) <= 1e-9, way


# ------------------------------------------------------------------------------------------------ joined time steps
@pytest.mark.parametrize("supervise_last", [None, 2])
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("name", ENTANGLED)
def test_joined_time_steps_are_refused_or_exact(name: str, way: str, supervise_last: int | None) -> None:
    """Where what a user carried over cannot be cut off exactly, an error says so."""
    case = structure_case(name)
    expected = reference(case, RULES["paper"], supervised=last(case, supervise_last or len(case.xs)))
    try:
        found = measure(case, RULES["paper"], way=way, supervise_last=supervise_last)
    except StateError as error:
        assert "detach what you carry over" in str(error)
    else:
        assert_equal(found, expected, 1e-9, name)


def test_supervise_last_of_more_steps_than_there_are() -> None:
    case, rule = neuron_case("Leaky-zero-now", "both"), RULES["paper"]
    for told in (True, False):
        found = measure(case, rule, way="a", supervise_last=100, tell_num_steps=told)
        assert_equal(found, reference(case, rule), 1e-9)


@pytest.mark.parametrize("name", ["batch_norm2d", "norm_on_spikes"])
def test_what_a_forward_pass_leaves_behind_is_the_same(name: str) -> None:
    """Running statistics of batch norm are updated once per step, with the learner and without."""
    case = structure_case(name)
    attached, plain = CaseNet(case.net), CaseNet(case.net)
    with attach(attached, RULES["default"]):
        run_steps(attached, case.xs, case.loss)
    run_detached(plain, case.xs, case.loss)
    for key, value in plain.state_dict().items():
        assert torch.equal(attached.state_dict()[key], value), key


@pytest.mark.xfail(strict=True, reason="a copy of an all-zero state counts as the beginning of a sequence")
def test_a_silent_beginning_with_copied_states() -> None:
    """States that the user clones, while no neuron has received anything yet: still the same sequence."""
    case, rule = neuron_case("Leaky-zero-now", "both"), RULES["paper"]
    params = {name: torch.zeros_like(v) if name.endswith("bias") else v for name, v in case.net.params.items()}
    xs = case.xs.clone()
    xs[:2] = 0
    silent = replace(case, net=replace(case.net, params=params), xs=xs)
    model = CaseNet(silent.net)
    with attach(model, rule):
        state = None
        for t, x in enumerate(xs):
            outputs, state = model(x, state)
            silent.loss(outputs, t).backward()
            state = {name: tuple(tensor.clone() for tensor in states) for name, states in state.items()}
    assert max(relative_errors(gradients(model), reference(silent, rule).grads).values()) <= 1e-9
