"""``fold_steps``: the gradients of several supervised steps in one product are those of one step after the other."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.nn import weight_standardize
from tests.cases.case import Case
from tests.cases.drive import attach, gradients, reference, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.neurons import neuron_case
from tests.cases.rules import RULES
from tests.oracles.stllr import Oracle, Rule
from tests.test_exactness_ways import CASES, HIDDEN, LENGTHS, last

pytest.importorskip("norse")

STEPS, BATCH, CLASSES = 11, 3, 4
RULE = STLLRRule(1.0, 0.7, -0.5, 0.6, "triangle")


def folding(model: nn.Module, rule: Rule, fold_steps: int, **options: Any) -> STLLRLearner:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return attach(model, rule, optimizer=optimizer, fold_steps=fold_steps, **options)


def folded(case: Case, rule: Rule, fold_steps: int, way: str = "b", **options: Any) -> dict[str, Tensor]:
    model = CaseNet(case.net, hidden=case.hidden)
    steps = len(case.xs)
    first = steps - options["supervise_last"] if "supervise_last" in options else 0
    with folding(model, rule, fold_steps, num_steps=steps, **options):
        run_steps(model, case.xs, case.loss, way, first)
        found = gradients(model)  # complete without flush(): the last step has brought the rest
    return found


@pytest.mark.parametrize("fold_steps", [2, 3, 100])
@pytest.mark.parametrize("rule", ["default", "paper"])
@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_the_same(name: str, rule: str, fold_steps: int) -> None:
    case = CASES[name]()
    expected = reference(case, RULES[rule])
    errors = relative_errors(folded(case, RULES[rule], fold_steps), expected.grads)
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize("name", CASES)
def test_supervise_last(name: str) -> None:
    case, rule = CASES[name](), RULES["paper"]
    expected = reference(case, rule, supervised=last(case, 3))
    errors = relative_errors(folded(case, rule, 2, supervise_last=3), expected.grads)
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize("name", CASES)
def test_one_backward_at_the_end_is_not_folded(name: str) -> None:
    """The steps then come in the other order, and the learner must not wait for a last one."""
    case, rule = CASES[name](), RULES["paper"]
    errors = relative_errors(folded(case, rule, 3, "a"), reference(case, rule).grads)
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize("name", CASES)
def test_steps_without_a_loss_in_between(name: str) -> None:
    case, rule = CASES[name](), RULES["default"]
    steps = (0, 1, 3)
    expected = reference(case, rule, supervised=[t in steps for t in range(len(case.xs))])
    model = CaseNet(case.net, hidden=case.hidden)
    with folding(model, rule, 5, num_steps=len(case.xs)) as learner:
        state = None
        for t, x in enumerate(case.xs):
            outputs, state = model(x, state)
            if t in steps:
                case.loss(outputs, t).backward()
        learner.flush()
        errors = relative_errors(gradients(model), expected.grads)
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths(name: str) -> None:
    case, rule = CASES[name](), RULES["paper"]
    steps, batch = case.xs.shape[:2]
    lengths = torch.tensor([steps - 2, steps, steps - 1, steps][:batch])
    expected = reference(case, rule, supervised=[t < lengths for t in range(steps)])
    model = CaseNet(case.net, hidden=case.hidden)
    with folding(model, rule, 3) as learner:
        learner.reset(lengths=lengths)
        run_steps(model, case.xs, case.loss)
        errors = relative_errors(gradients(model), expected.grads)
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize("name", HIDDEN)
def test_reset_of_some_samples_in_between(name: str) -> None:
    """Their traces no longer follow from those of the step before."""
    case, rule = neuron_case(name, "both"), RULES["paper"]
    mask = torch.tensor([True, False])
    oracle = Oracle(case.net, rule)
    model = CaseNet(case.net, hidden=True)
    with folding(model, rule, 4, num_steps=len(case.xs)) as learner:
        for part in (case.xs[:3], case.xs[3:]):
            oracle.run(part, case.loss)
            run_steps(model, part, case.loss)
            oracle.reset(mask)
            learner.reset(mask)
        errors = relative_errors(gradients(model), oracle.raw_grads())
    assert max(errors.values()) <= 1e-9, errors


# ------------------------------------------------------------------------------------------------ plain scripts
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        snn.Leaky(0.9, threshold=0.3, init_hidden=True),
        nn.MaxPool2d(2),
        weight_standardize(nn.Conv2d(4, 4, 3, bias=False)),
        nn.BatchNorm2d(4),
        snn.Leaky(0.8, threshold=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(16, 12),
        snn.RLeaky(0.9, linear_features=12, threshold=0.2, init_hidden=True),
        nn.Linear(12, CLASSES),
        snn.Leaky(0.95, init_hidden=True, output=True),
    )


def frames(steps: int = STEPS) -> Tensor:
    return (torch.rand(steps, BATCH, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4).float()


LABELS = torch.tensor([0, 1, 2])


def learner_of(model: nn.Module, fold_steps: int | None, **options: Any) -> STLLRLearner:
    options = {"num_steps": STEPS, **options}
    return STLLRLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), rule=RULE, fold_steps=fold_steps, **options)


def step_loss(model: nn.Module, x: Tensor) -> Tensor:
    spikes, membrane = model(x)
    return cross_entropy(membrane + spikes, LABELS)


def trained(fold_steps: int, **options: Any) -> dict[str, Tensor]:
    """Parameters after two sequences with a clipped update each; the frames come in one and the same tensor."""
    model, frame = network(), torch.empty(BATCH, 2, 8, 8)
    learner = learner_of(model, fold_steps, **options)
    for _ in range(2):
        learner.zero_grad()
        for x in frames():
            frame.copy_(x)
            loss = step_loss(model, frame)
            if loss.requires_grad:
                loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        learner.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@settings(max_examples=15, deadline=None)
@given(fold_steps=st.integers(2, 14), supervise_last=st.one_of(st.none(), st.integers(1, STEPS)))
def test_training_is_the_same(fold_steps: int, supervise_last: int | None) -> None:
    torch.testing.assert_close(
        trained(fold_steps, supervise_last=supervise_last), trained(1, supervise_last=supervise_last)
    )


def weight_changes(fold_steps: int) -> list[bool]:
    model = network()
    learner_of(model, fold_steps)
    weight: Any = model[0].weight
    changes, before = [], torch.zeros_like(weight)
    for x in frames():
        step_loss(model, x).backward()
        now = before if weight.grad is None else weight.grad.clone()
        changes.append(not torch.equal(now, before))
        before = now
    return changes


def test_gradients_arrive_together_and_at_the_last_step() -> None:
    assert weight_changes(4) == [t in (3, 7, STEPS - 1) for t in range(STEPS)]
    assert all(weight_changes(1))


def test_a_sequence_that_ends_early_is_completed_by_step() -> None:
    weights = []
    for fold_steps in (1, 5):
        model = network()
        learner = learner_of(model, fold_steps)
        for x in frames()[:7]:
            step_loss(model, x).backward()
        learner.step()
        weights.append({name: p.detach() for name, p in model.named_parameters()})
    torch.testing.assert_close(weights[0], weights[1])


def test_updates_within_a_sequence() -> None:
    weights = []
    for fold_steps in (1, 5):
        model = network()
        learner = learner_of(model, fold_steps, reset_after_step=False)
        for t, x in enumerate(frames()):
            step_loss(model, x).backward()
            if t % 3 == 2:
                learner.step()
                learner.zero_grad()
        weights.append({name: p.detach() for name, p in model.named_parameters()})
    torch.testing.assert_close(weights[0], weights[1])


def test_reset_and_detach_keep_what_waits() -> None:
    found = []
    for fold_steps, end in ((1, "reset"), (5, "reset"), (5, "detach")):
        model = network()
        learner = learner_of(model, fold_steps)
        for x in frames()[:7]:
            step_loss(model, x).backward()
        getattr(learner, end)()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_zero_grad_forgets_what_waits() -> None:
    model = network()
    learner = learner_of(model, 5)
    for x in frames()[:3]:
        step_loss(model, x).backward()
    learner.zero_grad()
    learner.flush()
    assert all(p.grad is None for p in model.parameters())


def test_two_losses_of_one_step() -> None:
    found = []
    for fold_steps in (1, 3):
        model = network()
        learner_of(model, fold_steps)
        for x in frames():
            spikes, membrane = model(x)
            cross_entropy(membrane, LABELS).backward(retain_graph=True)
            (0.3 * cross_entropy(spikes, LABELS)).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])


def test_what_is_kept_does_not_grow_with_time() -> None:
    kept = []
    for steps in (10, 30):
        model = network()
        learner = learner_of(model, 4, num_steps=steps)
        for x in frames(steps):
            step_loss(model, x).backward()
        kept.append(learner.memory_usage()["waiting"])
    assert kept[0] == kept[1] > 0


def test_online_and_run_can_be_folded_too() -> None:
    found = []
    for fold_steps in (1, 3):
        model = network()
        learner = learner_of(model, fold_steps)
        learner.run(model, frames(), LABELS, lambda out, y: cross_entropy(out[1], y), window=4)
        with learner.online(model, lambda _, membrane: cross_entropy(membrane, LABELS), num_steps=STEPS):
            for x in frames():
                model(x)
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])


class Single(nn.Module):
    """Without a batch dimension."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.neuron = layer, snn.Leaky(0.9, threshold=0.3, init_hidden=True)
        self.above = nn.Linear(width, CLASSES)
        self.readout = snn.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.above(self.neuron(self.layer(x)).flatten()))[1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "shape", "width"),
    [(lambda: nn.Linear(6, 5), (6,), 5), (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5), 27)],
    ids=["linear", "convolution"],
)
def test_single_samples_without_a_batch(layer: Any, shape: tuple[int, ...], width: int) -> None:
    found = []
    for fold_steps in (None, 4):
        torch.manual_seed(0)
        model = Single(layer(), width)
        learner_of(model, fold_steps)
        for _ in range(STEPS):
            model((torch.rand(shape) < 0.5).float()).square().sum().backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())


# ------------------------------------------------------------------------------------------------ refusals
def test_several_processes_may_not_end_a_sequence_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept back has not been averaged."""
    model = network()
    learner = learner_of(model, 5)
    for x in frames()[:7]:
        step_loss(model, x).backward()
    before = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr("stllr_plugin.learner.several_processes", lambda: True)
    with pytest.raises(StateError, match="announced end"):
        learner.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_sequence_of_unknown_length_is_refused() -> None:
    model = network()
    learner_of(model, 3, num_steps=None)
    with pytest.raises(StateError, match="num_steps"):
        step_loss(model, frames()[0]).backward()


@pytest.mark.parametrize("fold_steps", [0, -1, 2.0, True])
def test_only_positive_numbers(fold_steps: Any) -> None:
    with pytest.raises(RuleError, match="fold_steps"):
        learner_of(network(), fold_steps)


def test_other_learning_signals_are_refused() -> None:
    with pytest.raises(RuleError, match='fold_steps is for learning_signal="bp"'):
        learner_of(network(), 3, learning_signal="dfa")


def test_a_learner_without_an_optimizer_is_refused() -> None:
    with pytest.raises(RuleError, match="pass the optimizer"):
        STLLRLearner(network(), rule=RULE, fold_steps=3, num_steps=STEPS)
