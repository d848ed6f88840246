"""After ``detach()`` the model is bit for bit what it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import NotAttachedError, STLLRLearner
from stllr_plugin.nn import weight_standardize
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Deep,
    Explicit,
    Hidden,
    adam,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
)

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


def inside(net: nn.Module) -> dict[str, Any]:
    """Everything that the modules hold, except tensors (compared apart) and submodules."""
    seen = {}
    for name, module in net.named_modules():
        for key, value in module.__dict__.items():
            if key in ("_parameters", "_buffers", "_modules"):
                value = list(value)
            elif isinstance(value, (dict, set)):
                value = copy.copy(value)
            if not isinstance(value, (Tensor, nn.Module)):
                seen[name, key] = value
    return seen


def assert_restored(net: nn.Module, before: dict[str, Any], weights: dict[str, Tensor], original: nn.Module) -> None:
    after = inside(net)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key] is value or after[key] == value, key
    assert_same(net.state_dict(), weights)
    for module in net.modules():
        assert not any(buffer.requires_grad for buffer in module.buffers() if buffer is not None)
    # the outputs and the ordinary gradients, through time
    net.zero_grad()
    reset_states(net)
    reset_states(original)
    x, y = spikes(6), labels()
    assert torch.equal(plain(net, x, y), plain(original, x, y))
    assert_same(gradients(net), gradients(original))


def reset_states(net: nn.Module) -> None:
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def plain(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    state, outputs = None, []
    for step in x:
        output, state = net(step, state)
        outputs.append(output)
    cross_entropy(torch.stack(outputs).mean(0), y).backward()
    return torch.stack(outputs).detach()


def standardised() -> nn.Module:
    net = Deep()
    weight_standardize(net.fc2)
    return net


NETS = {**STEPPING, "parametrized": standardised}


@pytest.mark.parametrize("kind", NETS.values(), ids=NETS)
@pytest.mark.parametrize("steps", [0, 5], ids=["never-trained", "in-mid-sequence"])
@pytest.mark.parametrize("signal", ["bp", "dfa"])
def test_detach_restores_everything(kind, steps, signal):
    net, original = build(kind), build(kind)
    before, weights = inside(net), copy.deepcopy(net.state_dict())
    learner = STLLRLearner(net, rule=RULE, learning_signal=signal)
    if steps:
        run_steps(net, spikes(steps), labels())
    learner.detach()
    assert_restored(net, before, weights, original)


@ALL
def test_leaving_the_block_detaches(kind):
    net, original = build(kind), build(kind)
    before, weights = inside(net), copy.deepcopy(net.state_dict())
    with STLLRLearner(net, rule=RULE) as learner:
        assert learner.attached
        run_steps(net, spikes(2), labels())
    assert not learner.attached
    assert_restored(net, before, weights, original)


@ALL
def test_an_error_in_the_block_detaches_too(kind):
    net, original = build(kind), build(kind)
    before, weights = inside(net), copy.deepcopy(net.state_dict())
    with pytest.raises(ZeroDivisionError), STLLRLearner(net, rule=RULE):
        run_steps(net, spikes(2), labels())
        raise ZeroDivisionError
    assert_restored(net, before, weights, original)


def failing(kind: type, place: str) -> nn.Module:
    """A network of which one module raises what its ``error`` is set to."""
    net = build(kind)
    module = net.get_submodule(place)
    forward = type(module).forward

    class Failing(type(module)):  # type: ignore[misc]
        error: type[BaseException] | None = None

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if self.error is not None:
                raise self.error
            return forward(self, *args, **kwargs)

    module.__class__ = Failing
    return net


@pytest.mark.parametrize("place", ["fc1", "lif1", "fc2", "lif2"])
@pytest.mark.parametrize("kind", [Hidden, Explicit])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_within_a_module_leaves_it_restorable_and_trainable(kind, place, error):
    """After KeyboardInterrupt torch runs no hooks; the next call, reset() or detach() has to clean up."""
    net, original = failing(kind, place), failing(kind, place)
    before, weights = inside(net), copy.deepcopy(net.state_dict())
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(3), labels())
    net.get_submodule(place).error = error
    with pytest.raises(error):
        run_steps(net, spikes(3), labels())
    del net.get_submodule(place).error

    # it trains as a fresh one does
    learner.reset()
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.zero_grad()
    run_steps(net, spikes(4), labels())
    with STLLRLearner(original, rule=RULE):
        run_steps(original, spikes(4), labels())
    assert_same(gradients(net), gradients(original))
    original.zero_grad()
    learner.detach()
    assert_restored(net, before, weights, original)


def test_detaching_twice_is_harmless_and_keeps_a_later_learner():
    net = build(Hidden)
    first = STLLRLearner(net, rule=RULE)
    first.detach()
    second = STLLRLearner(net, rule=RULE)
    first.detach()
    run_steps(net, spikes(4), labels())
    other = build(Hidden)
    with STLLRLearner(other, rule=RULE):
        run_steps(other, spikes(4), labels())
    assert second.attached
    assert_same(gradients(net), gradients(other))


def test_detach_keeps_what_the_user_had_put_there():
    net = build(Hidden)
    calls = []
    fire = net.lif1.fire
    net.lif1.fire = lambda mem: calls.append(len(mem)) or fire(mem)
    mine = net.lif1.fire
    net._ddp_params_and_buffers_to_ignore = ["something"]
    handle = net.fc1.register_forward_hook(lambda module, args, output: None)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(2), labels())
    assert calls
    learner.detach()
    assert net.lif1.fire is mine
    assert net._ddp_params_and_buffers_to_ignore == ["something"]
    assert handle.id in net.fc1._forward_hooks


def test_graphs_from_before_detach_still_give_the_rule():
    net, other = build(Hidden), build(Hidden)
    learner = STLLRLearner(net, rule=RULE)
    output, _ = net(spikes(1)[0])
    learner.detach()
    cross_entropy(output, labels()).backward()
    with STLLRLearner(other, rule=RULE):
        run_steps(other, spikes(1), labels())
    assert_same(gradients(net), gradients(other))


@pytest.mark.parametrize("call", ["step", "reset", "enable", "online", "two_pass"])
def test_a_detached_learner_refuses_to_work(call):
    net = build(Hidden)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    learner.detach()
    arguments = {"online": (net.lif2, lambda *outputs: None), "two_pass": (net.lif2, lambda out: out, lambda: None)}
    with pytest.raises(NotAttachedError, match="detached from its model; build a new STLLRLearner"):
        getattr(learner, call)(*arguments.get(call, ()))


@pytest.mark.parametrize("place", ["fc1", "lif1", "fc2", "lif2", "cell"])
def test_detach_after_an_interrupt_gives_everything_back(place):
    kind = STEPPING["norse-recurrent"] if place == "cell" else Explicit
    net, original = failing(kind, place), failing(kind, place)
    before, weights = inside(net), copy.deepcopy(net.state_dict())
    learner = STLLRLearner(net, rule=RULE)
    net.get_submodule(place).error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_steps(net, spikes(3), labels())
    del net.get_submodule(place).error
    learner.detach()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert_restored(net, before, weights, original)
    assert not torch.overrides._get_current_function_mode_stack()
