"""What the learner refuses while a model runs: the type of error, and a text with place, finding and remedy."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from stllr_plugin import (
    CheckpointingError,
    NoGradientCapturedError,
    NonFiniteError,
    NotAttachedError,
    SequenceInputError,
    StateError,
    STLLRError,
    STLLRLearner,
    STLLRRule,
)
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
    adam,
    assert_same,
    build,
    gradients,
    labels,
    parameters,
    run_steps,
    spikes,
    trained_gradients,
    values,
)

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


def attached(kind: Any = Hidden, rule: Any = RULE, **options: Any) -> tuple[nn.Module, STLLRLearner]:
    net = build(kind)
    return net, STLLRLearner(net, adam(net), rule=rule, **options)


# -- the batch


@pytest.mark.parametrize("kind", [Hidden, Explicit, LinearReadout, Deep])
@pytest.mark.parametrize("batch", [2, 9])
def test_a_batch_size_that_changes_in_mid_sequence(kind, batch):
    """snnTorch itself would start such a batch from zeros without a word."""
    net, _ = attached(kind)
    _, state = net(spikes(1)[0])
    with pytest.raises(StateError, match=rf"Edge fc1->lif1: .* \({batch}, 12\).* \(6, 12\)\. Call learner\.reset\(\)"):
        net(spikes(1, batch=batch)[0], state)


@pytest.mark.parametrize("kind", [STEPPING["norse-cells"], STEPPING["norse-recurrent"]])
def test_a_batch_size_that_changes_in_mid_sequence_of_norse(kind):
    """A single sample would be broadcast over the states of the batch."""
    net, _ = attached(kind)
    _, state = net(spikes(1)[0])
    with pytest.raises(StateError, match=r"input has shape \(1, 12\).*has \(6, 12\)\. Call learner\.reset\(\)"):
        net(spikes(1, batch=1)[0], state)


def test_after_such_an_error_a_reset_is_enough():
    net, learner = attached(Hidden)
    net(spikes(1)[0])
    with pytest.raises(StateError):
        net(spikes(1, batch=2)[0])
    learner.reset()
    run_steps(net, spikes(4, batch=2), labels(2))
    assert_same(gradients(net), trained_gradients(Hidden, spikes(4, batch=2), labels(2)))


# -- step() with nothing captured


@ALL
def test_a_step_in_eval_mode(kind):
    net, learner = attached(kind)
    before = values(net)
    net.eval()
    run_steps(net, spikes(2), labels(), way="a")
    with pytest.raises(
        NoGradientCapturedError, match=r"the model is in eval\(\) mode.*Run the model with model.train\(\)"
    ):
        learner.step()
    assert_same(values(net), before)


@ALL
def test_a_step_without_backward(kind):
    net, learner = attached(kind)
    net(spikes(1)[0])
    with pytest.raises(NoGradientCapturedError, match=r"loss.backward\(\) did not reach a neuron or readout") as caught:
        learner.step()
    assert "call loss.backward()" in str(caught.value)
    assert not learner.state


def test_a_step_before_anything_ran():
    net, learner = attached()
    with pytest.raises(NoGradientCapturedError, match="no time step ran in training mode with gradients enabled"):
        learner.step()


def test_a_step_after_a_run_without_gradients():
    net, learner = attached()
    with torch.no_grad():
        run_without_loss(net)
    with pytest.raises(NoGradientCapturedError, match="no time step ran in training mode with gradients enabled"):
        learner.step()


def run_without_loss(net: nn.Module) -> None:
    for step in spikes(2):
        net(step)


def test_a_second_step_for_one_backward():
    net, learner = attached()
    run_steps(net, spikes(2), labels())
    learner.step()
    with pytest.raises(NoGradientCapturedError):
        learner.step()


def test_a_loss_that_misses_the_model():
    net, learner = attached()
    run_without_loss(net)
    nn.Linear(2, 2)(torch.ones(2)).sum().backward()
    with pytest.raises(NoGradientCapturedError, match="did not reach a neuron"):
        learner.step()


def test_a_loss_on_unsupervised_steps_only():
    net, learner = attached(supervise_last=1)
    run_steps(net, spikes(4), labels(), way="a", supervised=[0, 1])
    with pytest.raises(NoGradientCapturedError, match="at a supervised step"):
        learner.step()


def test_a_step_after_detach():
    net, learner = attached()
    run_steps(net, spikes(2), labels())
    learner.detach()
    before = values(net)
    with pytest.raises(NotAttachedError, match="detached from its model; build a new STLLRLearner"):
        learner.step()
    assert_same(values(net), before)


# -- NaN and infinity


def poisoned_psi(v: Tensor) -> Tensor:
    return torch.where(v > -1e9, float("nan"), v)


NOT_FINITE: dict[str, tuple[Any, float, float, str]] = {
    "input": (RULE, float("nan"), 1.0, "presynaptic trace of edge "),
    "infinite-input": (RULE, float("inf"), 1.0, "presynaptic trace of edge "),
    "psi": (STLLRRule(psi=poisoned_psi), 0.0, 1.0, "postsynaptic trace of neuron "),
    "psi-without-noncausal-term": (STLLRRule(alpha_post=0.0, psi=poisoned_psi), 0.0, 1.0, "gradient of parameter "),
    "loss": (RULE, 0.0, float("nan"), "gradient of parameter "),
    "infinite-loss": (RULE, 0.0, float("inf"), "gradient of parameter "),
}


@ALL
@pytest.mark.parametrize("case", NOT_FINITE)
def test_nothing_is_updated_where_something_is_not_finite(kind, case):
    rule, bad, factor, place = NOT_FINITE[case]
    net, learner = attached(kind, rule)
    run_steps_with(net, spikes(3), factor=1.0)
    if case.startswith("psi"):
        with pytest.raises(NonFiniteError):
            learner.step()
        learner.reset()
        learner.zero_grad()
    else:
        learner.step()
        learner.zero_grad()
    before = {**values(net), **{f"state {n}": s.clone() for n, s in moments(net, learner).items()}}
    x = spikes(3)
    x[1, 2, 3] += bad
    run_steps_with(net, x, factor)
    with pytest.raises(NonFiniteError, match=f"NaN or infinity in the {place}") as caught:
        learner.step()
    assert "Nothing was updated" in str(caught.value)
    assert_same({**values(net), **{f"state {n}": s for n, s in moments(net, learner).items()}}, before)


def run_steps_with(net: nn.Module, x: Tensor, factor: float) -> None:
    state = None
    for step in x:
        output, state = net(step, state)
        (factor * cross_entropy(output, labels())).backward()


def moments(net: nn.Module, learner: STLLRLearner) -> dict[str, Tensor]:
    return {n: learner.state[p]["exp_avg"] for n, p in net.named_parameters() if p in learner.state}


def test_the_place_is_named():
    net = build(Deep)
    net.fc2.register_forward_pre_hook(lambda module, args: (args[0] * float("nan"),))
    learner = STLLRLearner(net, adam(net), rule=RULE)
    run_steps(net, spikes(2), labels())
    with pytest.raises(
        NonFiniteError, match="presynaptic trace of edge fc2->lif2: the input of that synapse was not finite"
    ):
        learner.step()


def test_after_such_an_error_a_reset_and_zero_grad_are_enough():
    net, learner = attached()
    run_steps(net, spikes(3) * float("nan"), labels())
    with pytest.raises(NonFiniteError):
        learner.step()
    learner.reset()
    learner.zero_grad()
    run_steps(net, spikes(3), labels())
    learner.step()
    assert_same(gradients(net), trained_gradients(Hidden, spikes(3), labels()))


def test_the_check_can_be_switched_off_and_called():
    net, learner = attached(check_finite=False)
    run_steps_with(net, spikes(2), float("nan"))
    with pytest.raises(NonFiniteError, match="gradient of parameter"):
        learner.assert_finite()
    learner.step()
    assert not net.fc1.weight.isfinite().all()


# -- psi


@pytest.mark.parametrize(("psi", "found"), [
    (lambda v: v.sum(), "psi returned () for v of shape (6, 10)"),
    (lambda v: v[:, :1], "psi returned (6, 1) for v of shape (6, 10)"),
    (lambda v: 0.3, "psi returned float for v of shape (6, 10)"),
    (lambda v: None, "psi returned NoneType for v of shape (6, 10)"),
])  # fmt: skip
def test_a_psi_that_does_not_map_element_by_element(psi, found):
    net, _ = attached(rule=STLLRRule(psi=psi))
    with pytest.raises(StateError) as caught:
        net(spikes(1)[0])
    assert "Neuron 'lif1'" in str(caught.value) and found in str(caught.value)


def test_an_error_in_psi_comes_through():
    def fails(v: Tensor) -> Tensor:
        raise ZeroDivisionError

    net, _ = attached(rule=STLLRRule(psi=fails))
    with pytest.raises(ZeroDivisionError):
        net(spikes(1)[0])


# -- several time steps in one call


def lif_sequence() -> nn.Module:
    return norse.SequentialState(norse.Lift(nn.Linear(INPUTS, HIDDEN)), norse.LIF(parameters()))


def broadcast_sequence() -> nn.Module:
    return norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(parameters()))


def lifted_cell() -> nn.Module:
    return norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.Lift(norse.LIFCell(parameters())))


@pytest.mark.parametrize("kind", [lif_sequence, broadcast_sequence, lifted_cell])
@pytest.mark.parametrize("state", [False, True], ids=["first-step", "later"])
def test_sequence_modules_with_several_steps(kind, state):
    net, _ = attached(kind)
    x = spikes(3)
    before = net(x[:1])[1] if state else None
    with pytest.raises(
        SequenceInputError, match=r"received [23] time steps in one call.*x\[t : t \+ 1\] and carry the state"
    ):
        net(x[-2:] if state else x, before)


@pytest.mark.parametrize("kind", [lif_sequence, broadcast_sequence])
def test_sequence_modules_may_evaluate_several_steps(kind):
    net, _ = attached(kind)
    with torch.no_grad():
        whole, _ = net(spikes(3))
    net.eval()
    assert torch.equal(net(spikes(3))[0], whole)
    assert whole.any()


@pytest.mark.parametrize("kind", [lif_sequence, broadcast_sequence])
def test_sequence_modules_train_on_slices_of_one_step(kind):
    sequence, cell = (
        build(kind),
        build(lambda: norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFCell(parameters()))),
    )
    y = torch.randint(HIDDEN, (6,), generator=torch.Generator().manual_seed(0))
    state = None
    STLLRLearner(sequence, rule=RULE)
    for step in spikes(5):
        output, state = sequence(step.unsqueeze(0), state)
        cross_entropy(output[0], y).backward()
    with STLLRLearner(cell, rule=RULE):
        run_steps(cell, spikes(5), y)
    found = list(gradients(sequence).values())
    for value, expected in zip(found, gradients(cell).values(), strict=True):
        assert expected.any()
        torch.testing.assert_close(value, expected)


# -- activation checkpointing


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool, init_hidden: bool) -> None:
        super().__init__()
        self.body = build(Hidden if init_hidden else Explicit)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda step: self.body(step)[0], x.requires_grad_(), use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("init_hidden", [True, False])
@pytest.mark.parametrize("way", ["a", "b"])
def test_activation_checkpointing(use_reentrant, init_hidden, way):
    net = Checkpointed(use_reentrant, init_hidden)
    STLLRLearner(net, rule=RULE)
    message = r"runs again inside the backward pass \(activation checkpointing\).*Remove the checkpointing"
    with pytest.raises(CheckpointingError, match=message):
        run_steps(lambda x, state: (net(x), None), spikes(3), labels(), way=way)


def test_checkpointing_of_a_part_without_synapses_and_neurons_is_allowed():
    net = build(LinearReadout)
    STLLRLearner(net, rule=RULE)
    for step in spikes(3):
        output, _ = net(step)
        output = checkpoint(lambda x: x.tanh() * 2, output, use_reentrant=False)
        cross_entropy(output, labels()).backward()
    plain = build(LinearReadout)
    STLLRLearner(plain, rule=RULE)
    for step in spikes(3):
        cross_entropy(plain(step)[0].tanh() * 2, labels()).backward()
    assert_same(gradients(net), gradients(plain))


# -- other


def test_a_sparse_input():
    net, _ = attached(STEPPING["norse-cells"])
    with pytest.raises(StateError, match=r"received a sparse tensor; pass x.to_dense\(\)"):
        net.layers[1](torch.eye(4).to_sparse())


def test_a_subclass_that_bypasses_fire():
    class Bypassing(snn.Leaky):
        def forward(self, input_: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
            self.mem = input_ if mem is None else 0.9 * mem + input_
            return self.spike_grad(self.mem - 1), self.mem

    net = nn.Sequential(nn.Linear(INPUTS, CLASSES), Bypassing(0.9))
    STLLRLearner(net, rule=RULE)
    with pytest.raises(
        StateError, match=r"Neuron '1' \(Bypassing\) ran without deciding about spikes .* bypass `fire`"
    ):
        net(spikes(1)[0])


def test_every_error_is_one_of_the_package_and_one_of_python():
    kinds = {
        StateError: RuntimeError,
        CheckpointingError: RuntimeError,
        NoGradientCapturedError: RuntimeError,
        NotAttachedError: RuntimeError,
        NonFiniteError: FloatingPointError,
        SequenceInputError: ValueError,
    }
    assert all(issubclass(kind, (STLLRError,)) and issubclass(kind, base) for kind, base in kinds.items())
