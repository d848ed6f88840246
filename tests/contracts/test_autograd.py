"""The gradients arrive through autograd, so the rest of autograd works as ever."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Hidden,
    LinearReadout,
    assert_close,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
)

T = 4
ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])


@ALL
def test_two_losses_on_one_graph(kind):
    """backward(retain_graph=True), then a second backward: the sum of both."""
    other = labels(seed=9)

    def gradient(split: bool) -> dict[str, Tensor]:
        net, state = build(kind), None
        STLLRLearner(net, rule=RULE)
        for step in spikes(T):
            output, state = net(step, state)
            one, two = cross_entropy(output, labels()), cross_entropy(output, other)
            if split:
                one.backward(retain_graph=True)
                two.backward()
            else:
                (one + two).backward()
        return gradients(net)

    assert_close(gradient(True), gradient(False))


@ALL
@pytest.mark.parametrize("way", ["a", "b"])
def test_autograd_grad_instead_of_backward(kind, way):
    net, state, losses = build(kind), None, []
    STLLRLearner(net, rule=RULE)
    names, parameters = zip(*net.named_parameters(), strict=True)
    total = dict.fromkeys(names, torch.zeros(()))
    for step in spikes(T):
        output, state = net(step, state)
        losses.append(cross_entropy(output, labels()))
        if way == "b":
            found = torch.autograd.grad(losses[-1], parameters)
            total = {name: total[name] + gradient for name, gradient in zip(names, found, strict=True)}
    if way == "a":
        total = dict(zip(names, torch.autograd.grad(sum(losses), parameters), strict=True))
    assert_close(total, trained_gradients(kind, spikes(T), labels()))
    assert all(parameter.grad is None for parameter in parameters)


@ALL
def test_backward_to_some_parameters_only(kind):
    net, state = build(kind), None
    STLLRLearner(net, rule=RULE)
    (name, first), *rest = net.named_parameters()
    for step in spikes(T):
        output, state = net(step, state)
        cross_entropy(output, labels()).backward(inputs=[first])
    torch.testing.assert_close(first.grad, trained_gradients(kind, spikes(T), labels())[name])
    assert all(parameter.grad is None for _, parameter in rest)


@ALL
def test_retain_grad_and_hooks_on_outputs(kind):
    net, state = build(kind), None
    STLLRLearner(net, rule=RULE)
    for step in spikes(T):
        output, state = net(step, state)
        output.retain_grad()
        output.register_hook(lambda gradient: 2 * gradient)
        cross_entropy(output, labels()).backward()
        assert output.grad.any()
    expected = trained_gradients(kind, spikes(T), labels())
    assert_close(gradients(net), {name: 2 * value for name, value in expected.items()})


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("place", ["fc1", "lif1", "fc2", "lif2"])
def test_backward_hooks_on_modules(place):
    net, seen = build(Hidden), []
    net.get_submodule(place).register_full_backward_hook(lambda module, before, after: seen.append(after[0]))
    STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(T), labels())
    assert_close(gradients(net), trained_gradients(Hidden, spikes(T), labels()))
    assert seen


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@ALL
def test_anomaly_detection(kind):
    with torch.autograd.detect_anomaly(check_nan=True):
        found = trained_gradients(kind, spikes(T), labels())
    assert_same(found, trained_gradients(kind, spikes(T), labels()))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_gradients_of_gradients_are_an_error():
    """A rule is no function that could be differentiated: rather an error than a silent zero."""
    net = build(Hidden)
    STLLRLearner(net, rule=RULE)
    output, _ = net(spikes(1)[0])
    (gradient,) = torch.autograd.grad(cross_entropy(output, labels()), net.fc1.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        gradient.square().sum().backward()


def test_a_plain_network_above_is_trained_as_ever():
    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = build(Hidden), nn.Sequential(nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            return self.head(self.net(x)[0]), None

    def gradient(attach_all: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Above()
        STLLRLearner(model if attach_all else model.net, rule=RULE)
        run_steps(model, spikes(T), labels())
        return gradients(model)

    assert_close(gradient(False), gradient(True))
