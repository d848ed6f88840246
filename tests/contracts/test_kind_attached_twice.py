"""A model that a learner is attached to can be attached again or freed, although nobody holds that learner any more."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import stllr_plugin
from stllr_plugin import STLLRLearner
from stllr_plugin.errors import STLLRError
from tests.contracts.kinds import Gradients, assert_right, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 6, 4, 6, 6, 3
OTHER = type(RULE)(1.0, 0.5, 0.0, 0.2)


def network() -> nn.Sequential:
    return build(lambda: nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT)))


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))


def train(net: nn.Module) -> Gradients:
    net.zero_grad()
    for step in inputs():
        net(step).square().sum().backward()
    return copied(net)


def attached(net: nn.Module, rule: Any = RULE) -> STLLRLearner:
    """Anew, by whichever way out there is: attaching replaces, or the model is freed by a public function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return STLLRLearner(net, sgd(net), rule=rule)
    except STLLRError as refusal:
        assert "detach(" in str(refusal) or "remove_hooks(" in str(refusal)
        stllr_plugin.detach(net)
        return STLLRLearner(net, sgd(net), rule=rule)


def once(net: nn.Module) -> None:
    STLLRLearner(net, sgd(net), rule=OTHER)


def after_training(net: nn.Module) -> None:
    learner = STLLRLearner(net, sgd(net), rule=OTHER)
    train(net)
    learner.step()


def in_mid_sequence(net: nn.Module) -> None:
    STLLRLearner(net, sgd(net), rule=OTHER)
    net(inputs()[0]).square().sum().backward()


def after_an_error(net: nn.Module) -> None:
    STLLRLearner(net, sgd(net), rule=OTHER)
    with pytest.raises((RuntimeError, STLLRError)):
        net(torch.rand(B, IN + 1))


def disabled(net: nn.Module) -> None:
    STLLRLearner(net, sgd(net), rule=OTHER).disable()


def by_a_function(net: nn.Module) -> None:
    """The learner is a local variable of a function that returned."""

    def attach() -> None:
        learner = STLLRLearner(net, rule=OTHER)
        assert learner.attached

    attach()


BEFORE = {
    before.__name__: before
    for before in (once, after_training, in_mid_sequence, after_an_error, disabled, by_a_function)
}


@pytest.mark.parametrize("before", members(BEFORE))
def test_it_trains_by_the_new_learner(before: Callable[[nn.Module], None]):
    net = network()
    before(net)
    learner = attached(net)
    found = train(net)
    learner.step()
    fresh = network()
    STLLRLearner(fresh, sgd(fresh), rule=RULE)
    want = train(fresh)
    assert_right(found, want)


@pytest.mark.parametrize("before", members(BEFORE))
def test_it_can_be_freed(before: Callable[[nn.Module], None]):
    net = network()
    before(net)
    stllr_plugin.detach(net)
    net[1].reset_mem()
    want = network()
    for one in (net, want):
        one.zero_grad()
        sum((one(step).square().sum() for step in inputs()), torch.zeros(())).backward()
    assert_right(copied(net), copied(want))
    assert not net._forward_hooks and not net[0]._forward_hooks and not net[1]._forward_hooks


def test_a_cell_that_is_run_twice():
    """The same names; the second run's learner acts, and only it."""
    net = network()
    for _ in range(3):
        optimizer = sgd(net)
        optimizer = attached(net)
    found = train(net)
    optimizer.step()
    fresh = network()
    STLLRLearner(fresh, sgd(fresh), rule=RULE)
    assert_right(found, train(fresh))


def test_the_learner_that_was_replaced_says_so():
    net = network()
    old = STLLRLearner(net, sgd(net), rule=OTHER)
    attached(net)
    train(net)
    with pytest.raises(STLLRError):
        old.step()
    assert not old.attached


def test_a_part_of_the_model_or_the_model_around_it():
    body = network()
    STLLRLearner(body, sgd(body), rule=OTHER)
    whole = nn.Sequential(body, nn.Linear(OUT, OUT))
    attached(whole)
    train(whole)
    head = body[0]
    stllr_plugin.detach(whole)
    assert not head._forward_hooks


def test_detach_on_a_model_that_nobody_is_attached_to_does_nothing():
    net = network()
    stllr_plugin.detach(net)
    stllr_plugin.detach(net)
    assert not net._forward_hooks


def test_a_copy_is_freed_without_the_original():
    net = network()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    other = copy.deepcopy(net)
    attached(other)
    want, found = train(net), train(other)
    assert learner.attached
    assert_right(found, want)
