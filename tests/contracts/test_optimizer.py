"""The learner is an optimizer to everything that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedulers

from stllr_plugin import AttachmentError, RuleError, STLLRLearner
from tests.contracts.networks import (
    RULE,
    Explicit,
    Hidden,
    adam,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
    values,
)


def wrapped(
    make: Callable[[nn.Module], Optimizer] = adam, kind: Any = Hidden, **options: Any
) -> tuple[nn.Module, STLLRLearner]:
    net = build(kind)
    return net, STLLRLearner(net, make(net), rule=RULE, **options)


def sequence(net: nn.Module, seed: int = 1) -> None:
    run_steps(net, spikes(4, seed=seed), labels(seed=seed))


def by_hand(
    make: Callable[[nn.Module], Optimizer], act: Callable[[Optimizer, int], None], rounds: int
) -> dict[str, Tensor]:
    """The same training with a learner that only gives gradients, and the plain optimizer beside it."""
    net = build(Hidden)
    optimizer, learner = make(net), STLLRLearner(net, rule=RULE)
    for number in range(rounds):
        optimizer.zero_grad()
        sequence(net, number)
        act(optimizer, number)
        optimizer.step()
        learner.reset()
    return values(net)


def test_it_is_an_optimizer_with_the_groups_and_the_state_of_the_one_inside():
    net, learner = wrapped()
    assert isinstance(learner, Optimizer)
    inner = learner.optimizer
    assert learner.param_groups is inner.param_groups
    assert learner.state is inner.state
    assert learner.defaults == inner.defaults
    sequence(net)
    learner.step()
    assert set(learner.state) == set(net.parameters())


@pytest.mark.parametrize("make", [
    adam,
    lambda net: SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    lambda net: torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1),
    lambda net: torch.optim.RMSprop(net.parameters(), lr=0.01),
    lambda net: Adam(net.parameters(), lr=0.01, foreach=True),
    lambda net: Adam(net.parameters(), lr=0.01, fused=True),
    lambda net: SGD([{"params": net.fc1.parameters(), "lr": 0.5}, {"params": net.fc2.parameters()}], lr=0.1),
], ids=["adam", "nesterov", "adamw", "rmsprop", "foreach", "fused", "groups"])  # fmt: skip
def test_it_updates_as_the_one_inside_would(make):
    net, learner = wrapped(make)
    for number in range(3):
        learner.zero_grad()
        sequence(net, number)
        learner.step()
    assert_same(values(net), by_hand(make, lambda optimizer, number: None, 3))


@pytest.mark.parametrize("make", [
    lambda optimizer: schedulers.StepLR(optimizer, 2, 0.5),
    lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    lambda optimizer: schedulers.OneCycleLR(optimizer, 0.1, total_steps=6),
    lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
    lambda optimizer: schedulers.SequentialLR(
        optimizer, [schedulers.LinearLR(optimizer, 0.1, total_iters=2), schedulers.ExponentialLR(optimizer, 0.5)], [2]
    ),
], ids=["StepLR", "LambdaLR", "OneCycleLR", "CosineAnnealingWarmRestarts", "SequentialLR"])  # fmt: skip
def test_schedulers_set_the_rate(make, recwarn):
    net, learner = wrapped()
    plain = adam(build(Hidden))
    scheduler, expected = make(learner), make(plain)
    rates = []
    for number in range(5):
        learner.zero_grad()
        sequence(net, number)
        learner.step()
        plain.step()
        scheduler.step()
        expected.step()
        assert learner.param_groups[0] | {"params": 0} == plain.param_groups[0] | {"params": 0}
        assert learner.optimizer.param_groups[0]["lr"] == learner.param_groups[0]["lr"]
        rates.append(learner.param_groups[0]["lr"])
    assert len(set(rates)) > 1
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message) and "optimizer.step()" in str(w.message)]


def test_reduce_on_plateau_sets_the_rate():
    _, learner = wrapped()
    scheduler = schedulers.ReduceLROnPlateau(learner, factor=0.1, patience=1)
    for _ in range(4):
        scheduler.step(1.0)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_the_rate_that_a_scheduler_set_is_the_one_that_is_used():
    def halve(optimizer: Optimizer, number: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5**number

    def make(net: nn.Module) -> Optimizer:
        return SGD(net.parameters(), lr=0.5)

    net, learner = wrapped(make)
    scheduler = schedulers.ExponentialLR(learner, 0.5)
    for number in range(3):
        learner.zero_grad()
        sequence(net, number)
        learner.step()
        scheduler.step()
    assert_same(values(net), by_hand(make, halve, 3))


def test_add_param_group_reaches_the_one_inside():
    net = build(Hidden)
    learner = STLLRLearner(net, SGD(net.fc1.parameters(), lr=0.1), rule=RULE)
    learner.add_param_group({"params": list(net.fc2.parameters()), "lr": 0.01})
    before = values(net)
    sequence(net)
    learner.step()
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.1, 0.01]
    for name, rate in (("fc1.weight", 0.1), ("fc2.weight", 0.01)):
        torch.testing.assert_close(values(net)[name], before[name] - rate * gradients(net)[name])


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned():
    net, learner = wrapped()
    seen = []

    def closure() -> Tensor:
        seen.append(torch.is_grad_enabled())
        learner.zero_grad()
        sequence(net, 0)
        return torch.tensor(3.0)

    with torch.no_grad():
        assert learner.step(closure) == 3.0
    assert seen == [True]
    assert_same(values(net), by_hand(adam, lambda optimizer, number: None, 1))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer", [adam, lambda net: None], ids=["adam", "none"])
def test_zero_grad_clears(optimizer, set_to_none):
    net, learner = wrapped(optimizer)
    sequence(net)
    learner.zero_grad(set_to_none=set_to_none)
    assert all((p.grad is None) if set_to_none else not p.grad.any() for p in net.parameters())
    sequence(net)
    assert all(g.any() for g in gradients(net).values())


def test_gradient_clipping_acts_on_what_is_applied():
    def clip(optimizer: Optimizer, number: int = 0) -> None:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)

    def make(net: nn.Module) -> Optimizer:
        return SGD(net.parameters(), lr=1.0)

    net, learner = wrapped(make)
    before = values(net)
    sequence(net, 0)
    clip(learner)
    learner.step()
    moved = torch.cat([(value - before[name]).flatten() for name, value in values(net).items()]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)
    assert_same(values(net), by_hand(make, clip, 1))


def test_gradient_hooks_see_the_gradient_of_the_rule():
    net, seen = build(Explicit), []
    net.fc1.weight.register_hook(lambda gradient: seen.append(gradient.clone()) or 2 * gradient)
    accumulated = []
    net.fc2.weight.register_post_accumulate_grad_hook(lambda parameter: accumulated.append(parameter.grad.clone()))
    x, y = spikes(4), labels()
    with STLLRLearner(net, rule=RULE):
        run_steps(net, x, y, way="a")
    expected = trained_gradients(Explicit, x, y, way="a")
    torch.testing.assert_close(torch.stack(seen).sum(0), expected["fc1.weight"])
    torch.testing.assert_close(net.fc1.weight.grad, 2 * expected["fc1.weight"])
    assert torch.equal(accumulated[-1], expected["fc2.weight"])


def test_step_hooks_run():
    net, learner = wrapped()
    seen = []
    learner.register_step_pre_hook(lambda *args: seen.append("before"))
    learner.register_step_post_hook(lambda *args: seen.append("after"))
    sequence(net)
    learner.step()
    assert seen == ["before", "after"]


def test_an_optimizer_that_was_used_before_keeps_its_state():
    net = build(Hidden)
    optimizer = adam(net)
    sequence_plain(net, optimizer)
    state = {name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    learner = STLLRLearner(net, optimizer, rule=RULE)
    assert_same({name: learner.state[p]["exp_avg"] for name, p in net.named_parameters()}, state)
    learner.zero_grad()
    learner.reset()
    sequence(net)
    learner.step()
    assert all(learner.state[p]["step"] == 2 for p in net.parameters())


def sequence_plain(net: nn.Module, optimizer: Optimizer) -> None:
    run_steps(net, spikes(3), labels(), way="a")
    optimizer.step()


def test_the_optimizer_inside_goes_on_alone_after_detach():
    net, learner = wrapped()
    sequence(net)
    learner.step()
    learner.detach()
    optimizer = learner.optimizer
    optimizer.zero_grad()
    sequence_plain(net, optimizer)
    assert all(optimizer.state[p]["step"] == 2 for p in net.parameters())


def test_without_an_optimizer_step_is_an_error_and_the_gradients_are_there():
    net, learner = wrapped(lambda net: None)
    sequence(net)
    with pytest.raises(RuleError, match=r"built without an optimizer; pass one, or call your own optimizer's step\(\)"):
        learner.step()
    assert learner.param_groups == []
    assert all(g.any() for g in gradients(net).values())


def test_wrapping_a_learner_is_refused():
    net, learner = wrapped()
    other = build(Hidden)
    with pytest.raises(AttachmentError, match="is an STLLRLearner itself; pass the optimizer that it wraps"):
        STLLRLearner(other, learner, rule=RULE)


def test_wrapping_something_else_is_refused():
    net = build(Hidden)
    with pytest.raises(AttachmentError, match=r"optimizer is a list, not a torch.optim.Optimizer \(or None\)"):
        STLLRLearner(net, list(net.parameters()), rule=RULE)


def test_parameters_of_the_optimizer_that_the_model_lacks_are_updated_as_ever():
    net = build(Hidden)
    extra = nn.Parameter(torch.ones(3))
    learner = STLLRLearner(net, SGD([*net.parameters(), extra], lr=0.5), rule=RULE)
    sequence(net)
    extra.sum().backward()
    learner.step()
    assert torch.equal(extra, torch.full((3,), 0.5))


def test_repr_says_what_it_is():
    _, learner = wrapped()
    assert "Hidden" in repr(learner) and "Adam" in repr(learner)
