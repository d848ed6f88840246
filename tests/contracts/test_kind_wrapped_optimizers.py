"""Whoever wraps the learner, its state lives in one place: what is done to the wrapper is done to the learner."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import assert_right, copied, error, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 8, 4, 6, 6, 3


def network() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT)))


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0))


def by_fabric(learner: STLLRLearner) -> Any:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    return fabric.setup_optimizers(learner)


def by_lightning(learner: STLLRLearner) -> Any:
    wrapper = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(learner)
    wrapper._strategy = SimpleNamespace(optimizer_step=lambda optimizer, closure: optimizer.step())  # of a Trainer
    return wrapper


def by_inheritance(learner: STLLRLearner) -> Any:
    """A wrapper such as both make: a class that inherits the learner's, with a copy of its attributes."""

    class Wrapped:
        def __init__(self, optimizer: STLLRLearner) -> None:
            self.__dict__ = {
                name: value for name, value in vars(optimizer).items() if name not in ("step", "zero_grad")
            }
            self.__class__ = type("Wrapped", (Wrapped, type(optimizer)), {})
            self.inner = optimizer

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            return self.inner.step(closure)

        def zero_grad(self, *args: Any, **options: Any) -> None:
            self.inner.zero_grad(*args, **options)

    return Wrapped(learner)


def by_delegation(learner: STLLRLearner) -> Any:
    """A wrapper that passes on what it does not know."""

    class Passing:
        def __getattr__(self, name: str) -> Any:
            return getattr(learner, name)

    return Passing()


WRAPPERS = {"Fabric": by_fabric, "Lightning": by_lightning, "inheritance": by_inheritance, "delegation": by_delegation}


@pytest.fixture(params=members(WRAPPERS))
def wrapped(request: pytest.FixtureRequest) -> tuple[nn.Module, STLLRLearner, Any]:
    net = network()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    return net, learner, request.param(learner)


def train(net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    net[1].reset_mem()
    total = torch.zeros(())
    for step in inputs():
        total = total + net(step).square().sum()
    total.backward()
    return copied(net)


def test_disable_and_enable(wrapped):
    net, learner, wrapper = wrapped
    plain = train(network())
    wrapper.disable()
    assert not learner.enabled and not wrapper.enabled
    assert_right(train(net), plain)
    wrapper.enable()
    assert learner.enabled and wrapper.enabled
    assert error(train(net)["0.weight"], plain["0.weight"]) > 1e-2


def test_detach(wrapped):
    net, learner, wrapper = wrapped
    wrapper.detach()
    assert not learner.attached and not wrapper.attached
    assert_right(train(net), train(network()))
    STLLRLearner(net, sgd(net), rule=RULE)


def test_what_is_done_to_the_learner_is_seen_by_the_wrapper(wrapped):
    _, learner, wrapper = wrapped
    learner.disable()
    assert not wrapper.enabled
    learner.enable()
    assert wrapper.enabled
    learner.detach()
    assert not wrapper.attached


def test_run_takes_windows(wrapped):
    net, _, wrapper = wrapped
    result = wrapper.run(net, inputs(), None, lambda output, y: output.square().sum(), window=4)
    assert result.steps_because is None
    found = copied(net)
    reference = network()
    learner = STLLRLearner(reference, sgd(reference), rule=RULE)
    for step in inputs():
        reference(step).square().sum().backward()
    learner.step()
    assert_right(found, copied(reference))


def test_reset_with_a_length(wrapped):
    net, learner, wrapper = wrapped
    train(net)
    wrapper.reset(num_steps=3)
    for step in inputs()[:3]:
        net(step)
    with pytest.raises(Exception, match="num_steps|3 steps|longer|length"):
        net(inputs()[3])
    assert wrapper.memory_usage() == learner.memory_usage()


def test_settings(wrapped):
    """An attribute that the user sets decides wherever it is set."""
    net, learner, wrapper = wrapped
    if type(wrapper).__name__ == "Passing":
        pytest.skip("it keeps what is set to itself, as any object does")
    for setting in ("reset_after_step", "check_finite"):
        setattr(wrapper, setting, False)
        assert getattr(learner, setting) is False
        setattr(learner, setting, True)
        assert getattr(wrapper, setting) is True


def test_groups_of_a_learner_without_an_optimizer():
    """They are kept in one place as well."""
    learner = STLLRLearner(network(), rule=RULE)
    wrapper = by_inheritance(learner)
    wrapper.param_groups = [{"params": [torch.zeros(1)], "lr": 0.5}]
    assert learner.param_groups is wrapper.param_groups


def test_a_setting_set_later_decides():
    net = network()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    learner.reset_after_step = False
    train(net)
    learner.step()
    assert learner.supervision.clock == T - 1


def test_updates_and_their_counts(wrapped):
    """step() of the wrapper after a capture, and again without one."""
    net, learner, wrapper = wrapped
    train(net)
    learner.step()
    wrapper.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
    train(net)
    wrapper.step()
    assert wrapper.report().edges == learner.report().edges
