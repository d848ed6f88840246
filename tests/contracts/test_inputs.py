"""Inputs may live in memory that is used again; a change in place that would spoil a gradient is noticed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from stllr_plugin import StateError, STLLRLearner
from tests.contracts.networks import (
    INPUTS,
    RULE,
    STEPPING,
    Hidden,
    assert_same,
    build,
    gradients,
    labels,
    spikes,
    trained_gradients,
)

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


@ALL
def test_one_buffer_for_all_steps(kind):
    net, buffer, state = build(kind), torch.empty(6, INPUTS), None
    STLLRLearner(net, rule=RULE)
    for step in spikes(5):
        buffer.copy_(step)
        output, state = net(buffer, state)
        cross_entropy(output, labels()).backward()
    assert_same(gradients(net), trained_gradients(kind, spikes(5), labels()))


@ALL
def test_inputs_of_another_type(kind):
    """Events as integers, converted by the caller, and inputs in a memory layout of their own."""
    net, state = build(kind), None
    STLLRLearner(net, rule=RULE)
    for step in spikes(5).transpose(1, 2).contiguous().transpose(1, 2):
        output, state = net(step, state)
        cross_entropy(output, labels()).backward()
    expected = trained_gradients(kind, spikes(5), labels())
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, expected[name])


def test_an_input_that_changes_before_backward_is_an_error():
    net, x = build(Hidden), spikes(1)[0]
    STLLRLearner(net, rule=RULE)
    output, _ = net(x)
    x.zero_()
    with pytest.raises(
        StateError, match=r"input of synapse 'fc1' was changed in place .* pass x.clone\(\) to the layer"
    ):
        cross_entropy(output, labels()).backward()


def double(*_: object) -> object:
    """As a pre-hook it doubles the input, as a forward hook the output (of a neuron: the spikes)."""
    value = _[-1]
    return tuple(2 * item for item in value) if isinstance(value, tuple) else 2 * value


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["fc1", "lif1", "fc2"])
@pytest.mark.parametrize("hook", ["register_forward_pre_hook", "register_forward_hook"])
def test_hooks_of_the_user_that_change_inputs_or_outputs_take_part(hook, place, when):
    """Registered before or after attaching; the reference does the same in a module's forward."""

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    net, reference = build(Hidden), build(Hidden)
    if when == "before":
        getattr(net.get_submodule(place), hook)(double)
    STLLRLearner(net, rule=RULE)
    if when == "after":
        getattr(net.get_submodule(place), hook)(double)
    order = ["fc1", "lif1", "fc2", "lif2"]
    modules = [getattr(reference, name) for name in order]
    modules.insert(order.index(place) + (hook == "register_forward_hook"), Double())
    stack = torch.nn.Sequential(*modules)
    STLLRLearner(stack, rule=RULE)
    for step in spikes(5):
        cross_entropy(net(step)[0], labels()).backward()
        cross_entropy(stack(step)[1], labels()).backward()
    expected = gradients(reference)
    assert all(value.any() for value in expected.values())
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, expected[name])


@ALL
def test_gradients_flow_to_the_input(kind):
    """For layers, encoders or attacks in front of the attached network."""
    x = spikes(5).requires_grad_()
    net, state = build(kind), None
    STLLRLearner(net, rule=RULE)
    for step in x:
        output, state = net(step, state)
        cross_entropy(output, labels()).backward(retain_graph=True)
    assert x.grad.isfinite().all() and x.grad.any()
    assert_same(gradients(net), trained_gradients(kind, spikes(5), labels()))
