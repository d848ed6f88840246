"""OTTT and SLTT: SpikingJelly's own nodes and containers give the gradients of rule="ottt" and rule="sltt".

The settings under which OTTT agrees: lambda_pre = 1 - 1/tau; the last module is a node (SpikingJelly's OTTTSequential
also gives a last layer without a node the trace of its input, where this learner takes the ordinary gradient); and the
first layer, to which OTTTSequential feeds the plain input, has lambda_pre = 0, unless one feeds it [x, trace of x].
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly", reason="needs the extra 'spikingjelly'")

from spikingjelly.activation_based import functional, layer, learning, neuron, surrogate  # noqa: E402

from stllr_plugin import STLLRLearner, STLLRRule  # noqa: E402

STEPS, BATCH = 6, 4


def inputs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(STEPS, BATCH, *shape, generator=generator) < 0.5).double()


def dense(kind: type[nn.Module], container: type[nn.Sequential], options: dict[str, Any]) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 10), kind(**options), nn.Linear(10, 8), kind(**options), nn.Linear(8, 3), kind(**options)]
    return scaled(container(*layers))


def spatial(kind: type[nn.Module], container: type[nn.Sequential], options: dict[str, Any]) -> nn.Sequential:
    torch.manual_seed(2)
    layers = [nn.Conv2d(2, 4, 3, padding=1), kind(**options), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)]
    layers += [kind(**options), nn.Flatten(), nn.Linear(16, 3), kind(**options)]
    return scaled(container(*layers))


def scaled(net: nn.Sequential) -> nn.Sequential:
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.5)
    return net


def loss(y: Tensor, t: int) -> Tensor:
    target = torch.sin(torch.arange(y.numel(), dtype=y.dtype) + t).view_as(y)
    return ((y - target) ** 2).sum() + torch.tanh(y @ torch.arange(1.0, 4.0, dtype=y.dtype)).sum()


def ours(net: nn.Sequential, xs: Tensor, rule: STLLRRule, first: STLLRRule | None = None) -> dict[str, Tensor]:
    with STLLRLearner(net, rule=rule, layer_rules={} if first is None else {"0": first}):
        for t, x in enumerate(xs):
            loss(net(x), t).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.norm() > 1e-3, name
        torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "tau 3, atan": {"tau": 3.0, "surrogate_function": surrogate.ATan()},
    "decayed input, hard reset": {"tau": 1.5, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.5},
}
SHAPES = {"dense": (dense, (6,)), "conv": (spatial, (2, 4, 4))}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("traced_input", [False, True])
def test_ottt(options: dict[str, Any], shape: str, traced_input: bool) -> None:
    build, size = SHAPES[shape]
    options = {"decay_input": False, "v_reset": None, "detach_reset": True, "tau": 2.0, **options}
    xs, leak = inputs(*size), 1 - 1 / options["tau"]
    theirs = build(neuron.OTTTLIFNode, layer.OTTTSequential, options)
    trace = torch.zeros_like(xs[0])
    for t, x in enumerate(xs):
        trace = leak * trace + x
        loss(theirs([x, trace] if traced_input else x)[0], t).backward()
        functional.detach_net(theirs)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    rule = STLLRRule.preset("ottt", lambda_pre=leak)
    first = None if traced_input else STLLRRule.preset("ottt", lambda_pre=0.0)
    assert_equal(expected, ours(build(neuron.LIFNode, nn.Sequential, options), xs, rule, first))


def test_ottt_through_their_training_loop() -> None:
    """``ottt_online_training`` with SGD moves the weights as the learner with the same SGD does."""
    options = {"decay_input": False, "v_reset": None, "detach_reset": True}
    xs = inputs(6)
    targets = torch.sin(torch.arange(BATCH * STEPS * 3.0)).view(BATCH, STEPS, 3).double()
    theirs = dense(neuron.OTTTLIFNode, layer.OTTTSequential, options)
    sgd = torch.optim.SGD(theirs.parameters(), 0.1)
    learning.online_learning.ottt_online_training(
        theirs, sgd, xs.transpose(0, 1), targets, nn.functional.mse_loss, online=False
    )
    mine = dense(neuron.LIFNode, nn.Sequential, options)
    rule, first = STLLRRule.preset("ottt"), STLLRRule.preset("ottt", lambda_pre=0.0)
    optimizer = STLLRLearner(
        mine, torch.optim.SGD(mine.parameters(), 0.1), rule=rule, layer_rules={"0": first}, num_steps=STEPS
    )
    for t, x in enumerate(xs):
        nn.functional.mse_loss(mine(x), targets[:, t]).backward()
    optimizer.step()
    before = dense(neuron.LIFNode, nn.Sequential, options)
    for one, other, old in zip(theirs.parameters(), mine.parameters(), before.parameters(), strict=True):
        assert not torch.equal(one, old)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sltt(options: dict[str, Any], readout: bool) -> None:
    """Also with a last layer without a node."""
    xs = inputs(6)
    options = {"v_threshold": 0.4, **options}  # low enough for their decayed input
    theirs = dense(neuron.SLTTLIFNode, nn.Sequential, options)
    mine = dense(neuron.LIFNode, nn.Sequential, options)
    if readout:
        del theirs[5], mine[5]
    for t, x in enumerate(xs):
        loss(theirs(x), t).backward()
        functional.detach_net(theirs)
    assert_equal({name: p.grad for name, p in theirs.named_parameters()}, ours(mine, xs, STLLRRule.preset("sltt")))


def test_the_comparison_can_fail() -> None:
    """The trace matters: OTTT's gradients are not those of SLTT."""
    options = {"decay_input": False, "v_reset": None, "detach_reset": True}
    xs = inputs(6)
    ottt = ours(dense(neuron.LIFNode, nn.Sequential, options), xs, STLLRRule.preset("ottt"))
    sltt = ours(dense(neuron.LIFNode, nn.Sequential, options), xs, STLLRRule.preset("sltt"))
    with pytest.raises(AssertionError):
        assert_equal(ottt, sltt)
