"""Signals made from the target: what set_target() takes, when it is forgotten, and how local readouts are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from stllr_plugin import RuleError, StateError, STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    RULE,
    Deep,
    Hidden,
    LinearReadout,
    assert_close,
    assert_same,
    build,
    differ,
    gradients,
    labels,
    run_steps,
    spikes,
    values,
)

OF_TARGET = ("drtp", "local", "local_random", "tess")
T = 4
every_signal = pytest.mark.parametrize("signal", OF_TARGET)


def learner_of(net: nn.Module, signal: Any, **options: Any) -> STLLRLearner:
    options.setdefault("optimizer", torch.optim.SGD(net.parameters(), lr=0.1))
    return STLLRLearner(net, rule=RULE, learning_signal=signal, feedback_seed=0, **options)


def trained(signal: Any, target: Tensor, *scale: Any) -> dict[str, Tensor]:
    net = build(Deep)
    with learner_of(net, signal) as learner:
        learner.set_target(target, *scale)
        run_steps(net, spikes(T), labels())
    return gradients(net)


@every_signal
def test_integers_of_any_kind_and_one_hot_rows_are_the_same_target(signal):
    expected = trained(signal, labels())
    for target in (labels().int(), labels().to(torch.uint8), one_hot(labels(), CLASSES).float()):
        assert_same(trained(signal, target), expected)
    assert differ(trained(signal, labels(seed=3)), expected, ["fc1.weight", "fc2.weight"])


@every_signal
def test_the_scale_multiplies_the_signal_of_hidden_layers_only(signal):
    expected = trained(signal, labels())
    for scale in (2.0, torch.tensor(2.0), torch.full((6,), 2.0)):
        found = trained(signal, labels(), scale)
        for name, gradient in expected.items():
            assert_close({name: found[name]}, {name: gradient * (1 if name.startswith("fc3") else 2)})


@every_signal
@pytest.mark.parametrize("forget", [
    lambda learner, net: learner.step(),
    lambda learner, net: learner.reset(),
    lambda learner, net: learner.zero_grad(),
], ids=["step", "reset", "zero_grad after unused gradients"])  # fmt: skip
def test_the_end_of_a_sequence_forgets_the_target(signal, forget: Callable[[STLLRLearner, nn.Module], Any]):
    net = build(Deep)
    learner = learner_of(net, signal)
    learner.set_target(labels())
    run_steps(net, spikes(T), labels())
    forget(learner, net)
    with pytest.raises(StateError, match="set_target"):
        net(spikes(1)[0])
    learner.reset()
    learner.set_target(labels())
    net(spikes(1)[0])


@every_signal
def test_a_first_sequence_without_a_target_is_refused(signal):
    net = build(Deep)
    learner = learner_of(net, signal)
    assert learner.needs_target
    with pytest.raises(StateError, match=f"{signal}.*set_target"):
        run_steps(net, spikes(T), labels())


@every_signal
def test_evaluation_needs_no_target(signal):
    net = build(Deep)
    learner = learner_of(net, signal)
    with torch.no_grad():
        net(spikes(1)[0])
    net.eval()
    net(spikes(1)[0])
    net.train()
    learner.reset()
    learner.disable()
    run_steps(net, spikes(T), labels(), way="a")


@every_signal
def test_the_reset_of_some_samples_keeps_the_target(signal):
    net = build(Deep)
    learner = learner_of(net, signal)
    learner.set_target(labels())
    run_steps(net, spikes(T), labels())
    learner.reset(torch.tensor([True, False] * 3))
    run_steps(net, spikes(T), labels())


@pytest.mark.parametrize("target", [
    labels().float(),
    labels().bool(),
    one_hot(labels(), CLASSES),
    torch.rand(6, CLASSES, 2),
    torch.tensor(3),
], ids=["float [B]", "bool", "int [B, C]", "3-D", "0-D"])  # fmt: skip
def test_a_target_of_neither_form_is_refused(target):
    with pytest.raises(RuleError, match=r"set_target.*\[B, C\]"):
        learner_of(build(Deep), "drtp").set_target(target)


@pytest.mark.parametrize("scale", [torch.ones(5), torch.ones(6, 1), torch.ones(6, 4)], ids=str)
def test_a_scale_that_does_not_fit_the_target_is_refused(scale):
    with pytest.raises(RuleError, match="scale"):
        learner_of(build(Deep), "drtp").set_target(labels(), scale)


@every_signal
def test_a_target_for_another_batch_is_refused(signal):
    net = build(Deep)
    learner_of(net, signal).set_target(labels(5))
    with pytest.raises(StateError, match="5 targets for a batch of 6"):
        net(spikes(1)[0])


@every_signal
@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_class_number_without_an_output_is_refused(signal, wrong):
    net = build(Deep)
    target = labels()
    target[2] = wrong
    learner_of(net, signal).set_target(target)
    with pytest.raises(StateError, match=rf"{wrong}.*{CLASSES} outputs"):
        net(spikes(1)[0])


@pytest.mark.parametrize("signal", ["bp", "dfa", "sign_dfa"])
def test_other_signals_use_no_target(signal):
    learner = learner_of(build(Deep), signal)
    assert not learner.needs_target
    with pytest.raises(RuleError, match="uses no target"):
        learner.set_target(labels())


# Readouts.


def test_the_output_layer_learns_from_the_loss_alone():
    """Another target changes the hidden layers and nothing else."""
    one, other = trained("local_random", labels()), trained("local_random", labels(seed=3))
    assert_same({"fc3.weight": one["fc3.weight"]}, {"fc3.weight": other["fc3.weight"]})
    assert differ(one, other, ["fc1.weight", "fc2.weight", "fc1.bias", "fc2.bias"])


def written_out(net: nn.Module, learner: STLLRLearner, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of each readout's own cross-entropy, summed over the steps of one sequence."""
    record: dict[str, list[Tensor]] = {"lif1": [], "lif2": []}
    handles = [
        getattr(net, name).register_forward_hook(lambda m, a, out, steps=steps: steps.append(out.detach()))
        for name, steps in record.items()
    ]
    run_steps(net, x, y)
    for handle in handles:
        handle.remove()
    expected = {}
    for name, steps in record.items():
        matrix = learner.feedback[name].detach().clone().requires_grad_()
        sum(cross_entropy(step.flatten(1) @ matrix.T, y) for step in steps).backward()
        expected[name] = matrix.grad
    return expected


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.9)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_local_readouts_are_stepped_by_an_optimizer_of_the_same_settings(kind):
    net = build(Deep)
    inner = OPTIMIZERS[kind](net.parameters())
    learner = learner_of(net, "local", optimizer=inner)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1, gamma=0.5)
    parallel: dict[str, nn.Parameter] = {}
    twin: torch.optim.Optimizer | None = None
    for batch in range(3):
        learner.zero_grad()
        learner.set_target(labels(seed=batch))
        expected = written_out(net, learner, spikes(T, seed=batch), labels(seed=batch))
        found = {name: matrix.grad for name, matrix in learner.feedback.items()}
        assert_close(found, expected)
        if twin is None:
            parallel = {name: nn.Parameter(matrix.detach().clone()) for name, matrix in learner.feedback.items()}
            twin = OPTIMIZERS[kind](list(parallel.values()))
        for group in twin.param_groups:
            group["lr"] = inner.param_groups[0]["lr"]
        for name, parameter in parallel.items():
            parameter.grad = found[name].clone()
        twin.step()
        learner.step()
        scheduler.step()
        assert_close({n: m.detach() for n, m in learner.feedback.items()}, {n: p.detach() for n, p in parallel.items()})


def test_gradients_of_readouts_add_up_until_zero_grad():
    net = build(Deep)
    learner = learner_of(net, "local")
    learner.set_target(labels())
    expected = written_out(net, learner, spikes(T), labels())
    learner.reset()
    learner.set_target(labels())
    run_steps(net, spikes(T), labels())
    assert_close({n: m.grad for n, m in learner.feedback.items()}, {n: 2 * g for n, g in expected.items()})
    learner.zero_grad()
    assert all(matrix.grad is None for matrix in learner.feedback.values())


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_gradient_scaler_changes_no_readout(kind):
    found = []
    for enabled in (False, True):
        net = build(Deep)
        learner = learner_of(net, "local", optimizer=OPTIMIZERS[kind](net.parameters()))
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        for batch in range(2):
            learner.zero_grad()
            learner.set_target(labels(), loss_scale=scaler.get_scale())
            for x in spikes(T, seed=batch):
                scaler.scale(cross_entropy(net(x)[0], labels())).backward()
            scaler.step(learner)
            scaler.update()
        found.append({**values(net), **{n: m.detach().clone() for n, m in learner.feedback.items()}})
    assert_close(found[1], found[0], 1e-4)


@pytest.mark.parametrize("signal", ["drtp", "local_random", "tess"])
def test_other_matrices_stay_as_they_are(signal):
    net = build(Deep)
    learner = learner_of(net, signal)
    drawn: dict[str, Tensor] = {}
    for _ in range(2):
        learner.zero_grad()
        learner.set_target(labels())
        run_steps(net, spikes(T), labels())
        drawn = drawn or {name: matrix.clone() for name, matrix in learner.feedback.items()}
        learner.step()
    assert_same(dict(learner.feedback), drawn)
    assert not any(matrix.requires_grad for matrix in learner.feedback.values())


def test_local_readouts_lower_their_own_loss():
    """Of a layer that stands still; the first group's learning rate is that of the readouts."""
    net = build(Hidden)
    groups = [{"params": net.fc2.parameters()}, {"params": net.fc1.parameters(), "lr": 0.0}]
    learner = learner_of(net, "local", optimizer=torch.optim.Adam(groups, 0.1))

    def own_loss() -> float:
        record: list[Tensor] = []
        handle = net.lif1.register_forward_hook(lambda m, a, out: record.append(out.detach()))
        run_steps(net, spikes(T), labels())
        handle.remove()
        return sum(float(cross_entropy(y @ learner.feedback["lif1"].T, labels()).detach()) for y in record)

    losses = []
    for _ in range(10):
        learner.zero_grad()
        learner.set_target(labels())
        losses.append(own_loss())
        learner.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_frozen_layer_has_no_readout():
    net = build(Deep)
    net.fc1.requires_grad_(False)
    learner = learner_of(net, "local")
    learner.set_target(labels())
    run_steps(net, spikes(T), labels())
    assert set(learner.feedback) == {"lif2"}


def test_local_without_an_optimizer_is_refused():
    with pytest.raises(RuleError, match="local_random"):
        STLLRLearner(build(Deep), rule=RULE, learning_signal="local")


def test_a_checkpoint_holds_readouts_and_the_state_of_their_optimizer():
    def go_on(net: nn.Module, learner: STLLRLearner) -> None:
        learner.zero_grad()
        learner.set_target(labels())
        run_steps(net, spikes(T), labels())
        learner.step()

    def fresh() -> tuple[nn.Module, STLLRLearner]:
        net = build(Deep)
        return net, learner_of(net, "local", optimizer=torch.optim.Adam(net.parameters(), lr=0.05))

    net, learner = fresh()
    go_on(net, learner)
    go_on(net, learner)
    model_state, learner_state = copy.deepcopy(net.state_dict()), copy.deepcopy(learner.state_dict())
    go_on(net, learner)
    other, resumed = fresh()
    other.load_state_dict(model_state)
    resumed.load_state_dict(learner_state)
    resumed.reset()
    go_on(other, resumed)
    assert_same(values(other), values(net))
    assert_same(
        {n: m.detach() for n, m in resumed.feedback.items()}, {n: m.detach() for n, m in learner.feedback.items()}
    )


@every_signal
def test_a_set_matrix_of_the_wrong_shape_is_refused(signal):
    net = build(LinearReadout)
    learner = learner_of(net, signal)
    learner.feedback["lif1"] = torch.ones(CLASSES, HIDDEN + 1)
    learner.set_target(labels())
    with pytest.raises(StateError, match=r"feedback\['lif1'\]"):
        run_steps(net, spikes(T), labels())
