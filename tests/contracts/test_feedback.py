"""Direct feedback alignment: fixed random matrices carry the output error to every hidden layer."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import AttachmentError, RuleError, StateError, STLLRLearner
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Deep,
    Explicit,
    Hidden,
    LinearReadout,
    NorseCells,
    NorseRecurrent,
    assert_close,
    assert_same,
    build,
    differ,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
)

T = 5
DIRECT = pytest.mark.parametrize("signal", ["dfa", "sign_dfa"])


class Conv(nn.Module):
    """Hidden neurons with a spatial shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 2, 2), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(2 * 2 * 3, CLASSES), snn.Leaky(0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.lif2(self.fc2(self.lif1(self.conv(x.view(-1, 1, 3, 4))).flatten(1)))[1], None


def drawn(kind: Any, seed: int | None = 0, signal: str = "dfa", steps: int = 1, **options: Any) -> dict[str, Tensor]:
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, learning_signal=signal, feedback_seed=seed, **options)
    run_steps(net, spikes(steps), labels())
    return dict(learner.feedback)


@DIRECT
@pytest.mark.parametrize(("kind", "shapes"), [
    (Deep, {"lif1": (CLASSES, HIDDEN), "lif2": (CLASSES, 7)}),
    (Explicit, {"lif1": (CLASSES, HIDDEN)}),
    (LinearReadout, {"lif1": (CLASSES, HIDDEN)}),
    (NorseCells, {"layers.1": (CLASSES, HIDDEN)}),
    (NorseRecurrent, {"cell": (CLASSES, HIDDEN)}),
    (Conv, {"lif1": (CLASSES, 2, 2, 3)}),
])  # fmt: skip
def test_there_is_one_matrix_per_hidden_neuron_module(kind, shapes, signal):
    found = drawn(kind, signal=signal)
    assert {name: tuple(matrix.shape) for name, matrix in found.items()} == shapes
    assert all(matrix.std() > 0 and not matrix.requires_grad for matrix in found.values())


def test_matrices_depend_on_the_seed_and_the_name_alone():
    torch.manual_seed(1)
    first = drawn(Deep)
    torch.manual_seed(2)
    assert_same(drawn(Deep, steps=3), first)
    assert_same(drawn(Hidden), {"lif1": first["lif1"]})  # another network with a neuron of that name and shape
    assert differ(drawn(Deep, seed=1), first)
    assert not torch.equal(first["lif1"][:, :7], first["lif2"])


def test_without_a_seed_they_follow_torch_manual_seed():
    assert_same(drawn(Deep, seed=None), drawn(Deep, seed=0))  # build() calls torch.manual_seed(0)


def test_drawing_them_takes_no_numbers_from_torch():
    net = build(Deep)
    STLLRLearner(net, rule=RULE, learning_signal="dfa")
    state = torch.get_rng_state()
    run_steps(net, spikes(1), labels())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [Hidden, LinearReadout, NorseCells, Conv])
def test_with_the_forward_weights_as_feedback_it_is_back_propagation(kind):
    """One hidden layer, and a loss on what the readout integrates: then B = W2, times the readout's gain."""
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa")
    if kind is NorseCells:
        learner.feedback["layers.1"] = 0.1 * net.layers[2].weight.detach()  # dt * tau_mem_inv of LICell
    else:
        learner.feedback["lif1"] = net.fc2.weight.detach().view(CLASSES, *([2, 2, 3] if kind is Conv else [HIDDEN]))
    run_steps(net, spikes(T), labels())
    assert_close(gradients(net), trained_gradients(kind, spikes(T), labels()))


def test_with_explicit_states_and_a_loss_on_a_membrane_too():
    net = build(Explicit)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa")
    learner.feedback["lif1"] = net.fc2.weight.detach()
    assert_close(membrane_gradients(net), membrane_gradients(attached(Explicit)))


def attached(kind: Any) -> nn.Module:
    net = build(kind)
    STLLRLearner(net, rule=RULE)
    return net


def membrane_gradients(net: nn.Module) -> dict[str, Tensor]:
    state = None
    for step in spikes(T):
        _, state = net(step, state)
        cross_entropy(state[2], labels()).backward()
    return gradients(net)


def error_gradients(error: Tensor, signal: str, change: str | None = None, factor: float = -2.0) -> dict[str, Tensor]:
    """The gradients of Deep for a given dL/d(output), the same in each step."""
    net = build(Deep)
    STLLRLearner(net, rule=RULE, learning_signal=signal, feedback_seed=0)
    outputs = []
    for step in spikes(T):
        output, _ = net(step)
        outputs.append((output * error).sum())
    if (
        change is not None
    ):  # after the forward pass, so that the spikes stay the same; `.data` goes unnoticed by autograd
        net.get_parameter(change).data.mul_(factor)
    sum(outputs).backward()
    return gradients(net)


@DIRECT
@pytest.mark.parametrize("above", ["fc2.weight", "fc3.weight"])
def test_nothing_is_propagated_through_the_layers(signal, above):
    error = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(3))
    below = ["fc1.weight", "fc1.bias"] + (["fc2.weight", "fc2.bias"] if above == "fc3.weight" else [])
    changed, expected = error_gradients(error, signal, above), error_gradients(error, signal)
    assert_same({n: changed[n] for n in below}, {n: expected[n] for n in below})
    assert all(expected[name].any() for name in below)
    by_layers = error_gradients(error, "bp", above), error_gradients(error, "bp")
    assert differ(*by_layers, below)


@DIRECT
def test_the_last_layer_is_trained_as_ever(signal):
    found = trained_gradients(Deep, spikes(T), labels(), options={"learning_signal": signal})
    expected = trained_gradients(Deep, spikes(T), labels())
    last = [name for name in expected if name.startswith("fc3")]
    assert_same({n: found[n] for n in last}, {n: expected[n] for n in last})


def test_sign_dfa_sees_only_the_sign_of_the_error():
    error = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(3))
    hidden = [f"fc{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    signed, expected = error_gradients(error, "sign_dfa"), error_gradients(error.sign(), "dfa")
    assert_close({n: signed[n] for n in hidden}, {n: expected[n] for n in hidden})
    large = error_gradients(100 * error, "sign_dfa")
    assert_close({n: large[n] for n in hidden}, {n: signed[n] for n in hidden})


@DIRECT
@pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout, Deep])
def test_ways_a_and_b_agree(kind, signal):
    options = {"learning_signal": signal, "feedback_seed": 4}
    one, other = (trained_gradients(kind, spikes(T), labels(), way=way, options=options) for way in "ab")
    assert_close(one, other)


def test_a_matrix_can_be_set_and_dropped():
    net = build(Deep)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa", feedback_seed=0)
    learner.feedback["lif1"] = torch.zeros(CLASSES, HIDDEN)
    run_steps(net, spikes(T), labels())
    assert not net.fc1.weight.grad.any()
    assert net.fc2.weight.grad.any()
    del learner.feedback["lif1"]
    net.zero_grad()
    learner.reset()
    run_steps(net, spikes(T), labels())
    expected = trained_gradients(Deep, spikes(T), labels(), options={"learning_signal": "dfa", "feedback_seed": 0})
    assert_same(gradients(net), expected)


def test_a_matrix_of_the_wrong_shape_is_an_error():
    net = build(Deep)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa")
    learner.feedback["lif2"] = torch.zeros(7, CLASSES)
    message = r"learner.feedback\['lif2'\] has shape \(7, 4\), but this network needs \(4, 7\)"
    with pytest.raises(StateError, match=message):
        run_steps(net, spikes(1), labels())


@pytest.mark.parametrize("name", ["lif3", "lif9", "fc1"])
def test_a_matrix_for_something_else_is_an_error(name):
    learner = STLLRLearner(build(Deep), rule=RULE, learning_signal="dfa")
    with pytest.raises(
        RuleError, match=rf"no hidden spiking neuron named '{name}'; feedback goes to \['lif1', 'lif2'\]"
    ):
        learner.feedback[name] = torch.zeros(CLASSES, HIDDEN)


def test_without_direct_feedback_there_are_no_matrices():
    learner = STLLRLearner(build(Deep), rule=RULE)
    with pytest.raises(RuleError, match='learning_signal="bp" uses no feedback matrices'):
        _ = learner.feedback


class ReadoutFirst(nn.Module):
    """Registered in another order than called: the learner cannot guess which output the loss sees."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.readout(self.lif1(self.fc1(x))), None


def test_the_output_can_be_named():
    net = build(ReadoutFirst)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa", output="readout")
    learner.feedback["lif1"] = net.readout.weight.detach()
    run_steps(net, spikes(T), labels())
    assert_close(gradients(net), trained_gradients(ReadoutFirst, spikes(T), labels()))


def test_an_output_that_does_not_exist_is_refused():
    with pytest.raises(
        AttachmentError, match=r"output='head' is no module of the model; it has \['readout', 'fc1', 'lif1'\]"
    ):
        STLLRLearner(build(ReadoutFirst), rule=RULE, learning_signal="dfa", output="head")


def test_a_hidden_layer_that_the_output_does_not_reach_is_an_error():
    """Here the default, the module registered last, is the hidden layer itself: fc1 would silently learn nothing."""
    net = build(ReadoutFirst)
    with pytest.raises((AttachmentError, StateError), match="output="):
        STLLRLearner(net, rule=RULE, learning_signal="dfa")
        run_steps(net, spikes(T), labels())
