"""``online()`` gives the gradients of a backward pass at each step to a model whose time loop is inside ``forward``."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import StateError, STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Explicit,
    Hidden,
    LinearReadout,
    Looping,
    adam,
    assert_close,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
    values,
)

T = 6
ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])


def attached(kind: Any, **options: Any) -> tuple[Looping, STLLRLearner]:
    looping = Looping(build(kind))
    return looping, STLLRLearner(looping.net, rule=RULE, **options)


@ALL
@pytest.mark.parametrize("signal", ["bp", "dfa", "sign_dfa"])
def test_gradients_equal_those_of_ways_a_and_b(kind, signal):
    options = {"learning_signal": signal, "feedback_seed": 0}
    looping, learner = attached(kind, **options)
    with learner.online(looping.net, lambda output, _: cross_entropy(output, labels())):
        looping(spikes(T))
    for way in ("a", "b"):
        assert_close(gradients(looping.net), trained_gradients(kind, spikes(T), labels(), way=way, options=options))


@ALL
def test_outputs_are_those_of_the_model_alone(kind):
    looping, learner = attached(kind)
    with torch.no_grad():
        expected = Looping(build(kind))(spikes(T))
    with learner.online(looping.net, lambda output, _: cross_entropy(output, labels())):
        found = looping(spikes(T))
    assert torch.equal(found, expected)
    assert expected.any()
    assert not found.requires_grad


@ALL
def test_the_loss_of_the_run_is_the_sum(kind):
    looping, learner = attached(kind)
    y = labels()
    with learner.online(looping.net, lambda output, _: cross_entropy(output, y)) as run:
        outputs = looping(spikes(T))
    torch.testing.assert_close(run.loss, sum(cross_entropy(output, y) for output in outputs))
    assert not run.loss.requires_grad
    assert run.supervised_steps == T


@pytest.mark.parametrize("place", ["lif2", "fc2", ""])
def test_any_module_by_itself_or_by_name(place):
    """The readout, the last synapse, or the whole step; the learner knows modules below the attached model."""
    looping, learner = attached(LinearReadout if place == "fc2" else Explicit)
    module = looping.net.get_submodule(place)
    seen: list[int] = []

    def loss(*outputs: Any) -> Tensor:
        seen.append(len(outputs))
        return cross_entropy(outputs[0], labels())

    with learner.online(place or module, loss):
        looping(spikes(T))
    assert seen == [1 if place == "fc2" else 2] * T
    assert_close(gradients(looping.net), trained_gradients(type(looping.net), spikes(T), labels()))


def test_a_loss_of_none_skips_the_step():
    looping, learner = attached(Hidden)
    steps = iter(range(T))

    def loss(output: Tensor, _: None) -> Tensor | None:
        return cross_entropy(output, labels()) if next(steps) in (1, 4) else None

    with learner.online(looping.net, loss) as run:
        looping(spikes(T))
    assert run.supervised_steps == 2
    assert_close(gradients(looping.net), trained_gradients(Hidden, spikes(T), labels(), supervised=[1, 4]))


def test_a_loss_on_spikes_and_membrane():
    looping, learner = attached(Explicit)

    def loss(spk: Tensor, mem: Tensor) -> Tensor:
        return cross_entropy(spk, labels()) + mem.square().mean()

    with learner.online("lif2", loss):
        looping(spikes(T))
    net, state = build(Explicit), None
    STLLRLearner(net, rule=RULE)
    for step in spikes(T):
        spk, state = net(step, state)
        loss(spk, state[2]).backward()
    assert_close(gradients(looping.net), gradients(net))


def test_a_backward_of_the_caller_is_used():
    looping, learner = attached(Hidden)
    with learner.online(
        looping.net, lambda output, _: cross_entropy(output, labels()), backward=lambda loss: (3 * loss).backward()
    ) as run:
        looping(spikes(T))
    expected = trained_gradients(Hidden, spikes(T), labels())
    assert_close(gradients(looping.net), {name: 3 * value for name, value in expected.items()})
    assert run.loss < 3 * T


@pytest.mark.parametrize("told", ["online", "reset", "learner"])
@ALL
def test_only_the_last_steps(kind, told):
    looping, learner = attached(kind, supervise_last=2, **({"num_steps": T} if told == "learner" else {}))
    if told == "reset":
        learner.reset(num_steps=T)
    length = {"num_steps": T} if told == "online" else {}
    with learner.online(looping.net, lambda output, _: cross_entropy(output, labels()), **length) as run:
        looping(spikes(T))
    assert run.supervised_steps == 2
    assert_close(gradients(looping.net), trained_gradients(kind, spikes(T), labels(), supervised=[T - 2, T - 1]))


def test_the_last_steps_of_an_unknown_length_are_refused():
    looping, learner = attached(Hidden, supervise_last=2)
    hooks = list(looping.net._forward_hooks)
    with pytest.raises(StateError, match=r"which are the last 2 steps .* pass num_steps to online"):
        learner.online(looping.net, lambda output, _: output.sum())
    assert list(looping.net._forward_hooks) == hooks


def test_an_error_inside_leaves_nothing_behind():
    looping, learner = attached(Hidden)
    hooks = [list(module._forward_hooks) for module in looping.modules()]

    def fails(output: Tensor, _: None) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), learner.online(looping.net, fails):
        looping(spikes(T))
    assert [list(module._forward_hooks) for module in looping.modules()] == hooks
    learner.reset()
    looping.net.zero_grad()
    run_steps(looping.net, spikes(T), labels())
    assert_same(gradients(looping.net), trained_gradients(Hidden, spikes(T), labels()))


def test_after_the_block_the_model_is_as_before():
    looping, learner = attached(Hidden)
    with learner.online(looping.net, lambda output, _: cross_entropy(output, labels())):
        looping(spikes(T))
    learner.reset()
    looping.net.zero_grad()
    cross_entropy(looping(spikes(T)).sum(0), labels()).backward()
    assert all(gradient.any() for gradient in gradients(looping.net).values())


def test_evaluation_inside_the_block_calls_no_loss():
    looping, learner = attached(Hidden)
    with learner.online(looping.net, lambda output, _: cross_entropy(output, labels())) as run:
        with torch.no_grad():
            looping(spikes(T))
        looping.eval()(spikes(T))
    assert run.supervised_steps == 0 and run.loss == 0.0


class Nested(nn.Module):
    """The loop, and the neurons, one level further down; states in a list; the readout returns spikes only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"block": nn.Sequential(nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True))})
        self.head = nn.Sequential(nn.Linear(HIDDEN, CLASSES), nn.BatchNorm1d(CLASSES), snn.Leaky(0.8, init_hidden=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.body["block"](step)) for step in x])


def test_a_nested_model_with_batch_norm():
    online, plain = build(Nested), build(Nested)
    learner = STLLRLearner(online, rule=RULE)
    with learner.online("head", lambda spk: cross_entropy(spk, labels())):
        online(spikes(T))
    STLLRLearner(plain, rule=RULE)
    sum(cross_entropy(spk, labels()) for spk in plain(spikes(T))).backward()
    found, expected = gradients(online), gradients(plain)
    del found["head.0.bias"], expected["head.0.bias"]  # batch norm takes it out again
    assert_close(found, expected, 1e-5)
    torch.testing.assert_close(online.head[1].running_mean, plain.head[1].running_mean)


def test_training_online_equals_training_step_by_step():
    looping = Looping(build(Explicit))
    learner = STLLRLearner(looping, adam(looping), rule=RULE)
    stepped = build(Explicit)
    other = STLLRLearner(stepped, adam(stepped), rule=RULE)
    for seed in range(3):
        y = labels(seed=seed)
        learner.zero_grad()
        with learner.online(looping.net, lambda output, _, y=y: cross_entropy(output, y)):
            looping(spikes(T, seed=seed))
        learner.step()
        other.zero_grad()
        run_steps(stepped, spikes(T, seed=seed), y)
        other.step()
    assert_same(values(looping.net), values(stepped))


@pytest.mark.parametrize("call", ["online", "two_pass"])
def test_modules_that_are_not_of_the_model_are_refused(call):
    looping, learner = attached(Hidden)
    extra = (lambda: None,) if call == "two_pass" else ()
    with pytest.raises(
        StateError, match=r"The model has no module named 'lif9'; it has \['fc1', 'lif1', 'fc2', 'lif2'\]"
    ):
        getattr(learner, call)("lif9", lambda *outputs: None, *extra)
    with pytest.raises(StateError, match=r"The given Linear is not part of the attached model"):
        getattr(learner, call)(nn.Linear(2, 2), lambda *outputs: None, *extra)


def test_a_disabled_learner_refuses():
    looping, learner = attached(Hidden)
    learner.disable()
    with pytest.raises(StateError, match=r"disabled; call learner.enable\(\)"):
        learner.online(looping.net, lambda output, _: output.sum())
