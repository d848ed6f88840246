"""A copy of an attached model evaluates, and never trains silently with other gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import AttachmentError, NotAttachedError, STLLRLearner, remove_hooks
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Hidden,
    adam,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    values,
)


def steep(v: Tensor) -> Tensor:
    """A surrogate that can be pickled, unlike snnTorch's own, which are closures."""
    return (v > 0).float() + (0.5 * v.tanh() - (0.5 * v.tanh()).detach())


class Picklable(Hidden):
    def __init__(self) -> None:
        super().__init__(spike_grad=steep)


def by_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    **{name: (kind, copy.deepcopy) for name, kind in STEPPING.items()},
    "pickled": (Picklable, by_pickle),
    "copied-twice": (Hidden, lambda net: copy.deepcopy(copy.deepcopy(net))),
}
ALL = pytest.mark.parametrize(("kind", "duplicate"), WAYS.values(), ids=WAYS)


def trained(kind: Callable[[], nn.Module]) -> tuple[nn.Module, STLLRLearner]:
    """An attached network that has learned for one sequence."""
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    run_steps(net, spikes(5), labels())
    learner.step()
    learner.zero_grad()
    return net, learner


def never_attached(kind: Callable, duplicate: Callable, like: nn.Module) -> nn.Module:
    """A copy made in the same way of a network without a learner (copies of some Norse cells lose a gradient hook)."""
    net = duplicate(build(kind))
    net.load_state_dict(like.state_dict())
    return net


@ALL
@pytest.mark.parametrize("moment", ["before-training", "after-a-step"])
def test_training_a_copy_is_an_error(kind, duplicate, moment):
    net = build(kind)
    if moment == "before-training":
        STLLRLearner(net, rule=RULE)
    else:
        net, _ = trained(kind)
    twin = duplicate(net)
    with pytest.raises(NotAttachedError, match="belongs to a copy of a model that is attached") as caught:
        run_steps(twin, spikes(3), labels())
    assert "remove_hooks(copy)" in str(caught.value)
    assert all(parameter.grad is None for parameter in twin.parameters())


@ALL
def test_a_copy_evaluates_like_the_original(kind, duplicate):
    net, learner = trained(kind)
    twin = duplicate(net)
    assert_same(values(twin), values(net))
    x = spikes(6)

    def evaluate(model: nn.Module) -> Tensor:
        state, outputs = None, []
        for step in x:
            output, state = model(step, state)
            outputs.append(output)
        return torch.stack(outputs)

    with torch.no_grad():
        expected = evaluate(net)
        learner.reset()
        assert torch.equal(evaluate(twin), expected)
    assert expected.any()
    fresh = duplicate(net).eval()
    assert torch.equal(evaluate(fresh), expected)


@ALL
def test_a_copy_freed_of_its_hooks_trains_with_ordinary_gradients(kind, duplicate):
    net, learner = trained(kind)
    twin = duplicate(net)
    assert remove_hooks(twin) > 0
    assert remove_hooks(twin) == 0
    reference = never_attached(kind, duplicate, net)
    for model in (twin, reference):
        run_steps(model, spikes(5), labels(), way="a")
    assert_same(gradients(twin), gradients(reference))


@ALL
def test_a_new_learner_can_attach_to_a_freed_copy(kind, duplicate):
    net, learner = trained(kind)
    twin = duplicate(net)
    with pytest.raises(AttachmentError, match=r"part of a copy of an attached model; call stllr_plugin.remove_hooks"):
        STLLRLearner(twin, rule=RULE)
    remove_hooks(twin)
    reference = never_attached(kind, duplicate, net)
    for model in (twin, reference):
        with STLLRLearner(model, rule=RULE):
            run_steps(model, spikes(5), labels())
    assert_same(gradients(twin), gradients(reference))


@ALL
def test_the_original_goes_on_undisturbed(kind, duplicate):
    net, learner = trained(kind)
    other, undisturbed = trained(kind)
    twin = duplicate(net)
    with pytest.raises(NotAttachedError):
        run_steps(twin, spikes(3), labels())
    remove_hooks(twin)
    run_steps(twin, spikes(3, seed=9), labels(), way="a")
    for model in (net, other):
        run_steps(model, spikes(5, seed=4), labels())
    assert_same(gradients(net), gradients(other))
    assert learner.traces().keys() == undisturbed.traces().keys()


def test_hooks_of_an_attached_model_are_removed_by_detach_only():
    net = build(Hidden)
    learner = STLLRLearner(net, rule=RULE)
    with pytest.raises(
        NotAttachedError, match=r"(Module 'fc1'|[Tt]he model) is attached to an STLLRLearner; use learner.detach\(\)"
    ):
        remove_hooks(net)
    run_steps(net, spikes(3), labels())
    assert learner.traces()
