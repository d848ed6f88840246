"""Where a sequence begins: on request, at step(), and where it shows itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import StateError, STLLRLearner, STLLRRule, STLLRWarning
from tests.contracts.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Explicit,
    LinearReadout,
    NorseCells,
    NorseRecurrent,
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
from tests.contracts.networks import Hidden as HiddenNet

ALL = pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])
OWN_STATES = pytest.mark.parametrize("kind", [Explicit, NorseCells, NorseRecurrent])


def masked(state: Any, keep: Tensor) -> Any:
    """Zeroes the samples that begin a new sequence, in states that the caller carries."""
    if isinstance(state, Tensor):
        return state * keep.view(-1, *[1] * (state.dim() - 1))
    if isinstance(state, (tuple, list)):
        items = [masked(item, keep) for item in state]
        return type(state)(*items) if hasattr(state, "_fields") else type(state)(items)
    return state


@ALL
def test_reset_begins_afresh(kind):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(5, seed=3), labels())
    learner.reset()
    assert all(trace is None for both in learner.traces().values() for trace in both.values())
    assert not any(module.mem.any() for module in net.modules() if isinstance(module, snn.SpikingNeuron))
    net.zero_grad()
    run_steps(net, spikes(4), labels())
    assert_same(gradients(net), trained_gradients(kind, spikes(4), labels()))


@ALL
def test_step_ends_the_sequence(kind):
    net = build(kind)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    run_steps(net, spikes(5, seed=3), labels())
    learner.step()
    learner.zero_grad()
    run_steps(net, spikes(4), labels())
    assert_same(gradients(net), trained_gradients(kind, spikes(4), labels()))


@ALL
def test_reset_with_a_mask_begins_afresh_for_these_samples_only(kind):
    x, y = spikes(6), labels()
    mask = torch.tensor([True, False, False, True, False, True])
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    state = None
    for t, step in enumerate(x):
        if t == 2:
            learner.reset(mask)
            state = masked(state, ~mask)
        output, state = net(step, state)
        cross_entropy(output, y, reduction="sum").backward()

    pieces = [(x[:, ~mask], y[~mask]), (x[:2, mask], y[mask]), (x[2:, mask], y[mask])]
    parts = [trained_gradients(kind, data, target, reduction="sum") for data, target in pieces]
    assert_close(gradients(net), {name: sum(part[name] for part in parts) for name in parts[0]})


def test_reset_with_a_mask_keeps_a_supervised_sequence_running():
    """A mask begins a new sequence for some samples only; the count of steps goes on."""
    net = build(HiddenNet)
    learner = STLLRLearner(net, rule=RULE, supervise_last=2, num_steps=4)
    x, needs = spikes(4), []
    for t, step in enumerate(x):
        if t == 1:
            learner.reset(torch.zeros(6, dtype=torch.bool))
        needs.append(net(step)[0].requires_grad)
    assert needs == [False, False, True, True]


@OWN_STATES
def test_a_new_sequence_shows_itself_by_fresh_states(kind):
    """Norse's state None, snnTorch's zeros from reset_mem()."""
    net = build(kind)
    STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(5, seed=3), labels())
    net.zero_grad()
    run_steps(net, spikes(4), labels())
    assert_same(gradients(net), trained_gradients(kind, spikes(4), labels()))


class Tutorial(nn.Module):
    """snnTorch's tutorial 5: the loop in forward, states from init_leaky()."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        record = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


def test_init_leaky_begins_a_sequence():
    def gradient(*seeds: int) -> dict[str, Tensor]:
        net = build(Tutorial)
        STLLRLearner(net, rule=RULE)
        for seed in seeds:
            net.zero_grad()
            cross_entropy(net(spikes(4, seed=seed)).sum(0), labels()).backward()
        return gradients(net)

    assert_same(gradient(3, 5, 1), gradient(1))


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snn.Leaky(0.9, init_hidden=True, output=True),
    )


def test_snntorch_s_own_reset_begins_a_sequence():
    def gradient(*seeds: int) -> dict[str, Tensor]:
        net = build(sequential)
        STLLRLearner(net, rule=RULE)
        for seed in seeds:
            net.zero_grad()
            utils.reset(net)
            for step in spikes(4, seed=seed):
                cross_entropy(net(step)[1], labels()).backward()
        return gradients(net)

    assert_same(gradient(3, 5, 1), gradient(1))


@pytest.mark.parametrize("kind", [HiddenNet, Explicit])
def test_a_membrane_that_is_zero_in_mid_sequence_is_no_new_sequence(kind):
    """psi(-1) is not zero here, so the postsynaptic trace has grown although nothing has happened yet."""
    rule = STLLRRule(1.0, 0.8, -0.5, 0.9, "sigmoid")
    net = build(kind)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter.zero_()
    learner = STLLRLearner(net, rule=rule)
    state = None
    for _ in range(3):
        _, state = net(torch.zeros(6, INPUTS), state)
    trace = learner.traces()["fc1->lif1"]["post"]
    psi = torch.sigmoid(torch.tensor(-4.0)) * torch.sigmoid(torch.tensor(4.0)) * 4
    torch.testing.assert_close(trace, (psi * (1 + 0.9 + 0.81)).expand(6, HIDDEN))


def by_hand(net: nn.Module, x: Tensor, y: Tensor, rule: STLLRRule, lr: float) -> dict[str, Tensor]:
    """Updates at every step of two layers of Leaky, loss on the last membrane; e_ij written out, no learner."""
    weight = {name: value.clone() for name, value in values(net).items()}
    post, mem1, mem2 = torch.zeros(len(y), HIDDEN), torch.zeros(len(y), HIDDEN), torch.zeros(len(y), CLASSES)
    pre1, pre2 = torch.zeros_like(x[0]), torch.zeros(len(y), HIDDEN)
    for step in x:
        mem1 = 0.9 * mem1 + step @ weight["fc1.weight"].T + weight["fc1.bias"] - (mem1 > 1).float()
        spk1 = (mem1 > 1).float()
        mem2 = 0.8 * mem2 + spk1 @ weight["fc2.weight"].T + weight["fc2.bias"] - (mem2 > 1).float()
        psi = 0.3 * (1 - (mem1 - 1).abs()).clamp_min(0)
        pre1, pre2 = rule.lambda_pre * pre1 + step, rule.lambda_pre * pre2 + spk1
        error = (mem2.softmax(1) - nn.functional.one_hot(y, CLASSES)) / len(y)
        delta = error @ weight["fc2.weight"]
        eligibility = rule.alpha_pre * torch.einsum("bi,bj->bij", psi, pre1)
        eligibility += rule.alpha_post * torch.einsum("bi,bj->bij", post, step)
        gradient = {
            "fc1.weight": torch.einsum("bi,bij->ij", delta, eligibility),
            "fc1.bias": (delta * psi).sum(0),
            "fc2.weight": torch.einsum("bi,bj->ij", error, pre2),
            "fc2.bias": error.sum(0),
        }
        post = rule.lambda_post * post + psi
        for name, value in gradient.items():
            weight[name] -= lr * value
    return weight


def test_updates_within_a_sequence_equal_a_loop_written_by_hand():
    x, y = spikes(8), labels()
    net = build(HiddenNet)
    expected = by_hand(net, x, y, RULE, 0.1)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.1), rule=RULE, reset_after_step=False)
    before = values(net)
    for step in x:
        learner.zero_grad()
        cross_entropy(net(step)[0], y).backward()
        learner.step()
    after = values(net)
    assert_close(
        {n: after[n] - before[n] for n in after}, {n: expected[n] - before[n] for n in after}, 1e-4
    )  # spikes are equal, sums are not in the same order


@ALL
def test_updates_within_a_sequence_keep_states_and_traces(kind):
    """With a learning rate of 0 the updates must not show: the gradients add up to those of the whole sequence."""
    net, total = build(kind), {}
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE, reset_after_step=False)
    for seed in (5, 1):
        state, total = None, {}
        for step in spikes(5, seed=seed):
            learner.zero_grad()
            output, state = net(step, state)
            cross_entropy(output, labels()).backward()
            learner.step()
            total = {name: total.get(name, 0) + gradient for name, gradient in gradients(net).items()}
        learner.reset()
    assert_close(total, trained_gradients(kind, spikes(5), labels()))


@OWN_STATES
def test_a_state_that_outlives_a_step_is_an_error(kind):
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    output, state = net(spikes(1)[0])
    cross_entropy(output, labels()).backward()
    learner.step()
    with pytest.raises(StateError, match=r"continues from the state before optimizer.step\(\)") as caught:
        net(spikes(1)[0], state)
    assert "reset_after_step=False" in str(caught.value) and "learner.reset()" in str(caught.value)


@pytest.mark.parametrize("steps", [1, 2])
def test_three_updates_after_one_step_each_warn(steps):
    net = build(HiddenNet)
    learner = STLLRLearner(net, adam(net), rule=RULE)

    def train() -> None:
        for _ in range(3):
            run_steps(net, spikes(steps), labels())
            learner.step()

    if steps == 1:
        with pytest.warns(STLLRWarning, match="reset_after_step=False"):
            train()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", STLLRWarning)
            train()


@ALL
def test_a_smaller_last_batch_follows_a_step(kind):
    net = build(kind)
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    for batch in (6, 6, 2, 5):
        learner.zero_grad()
        run_steps(net, spikes(4, batch=batch), labels(batch))
        learner.step()
    assert_same(gradients(net), trained_gradients(kind, spikes(4, batch=5), labels(5)))


@ALL
def test_a_smaller_last_batch_follows_a_reset(kind):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    for batch in (6, 2):
        net.zero_grad()
        run_steps(net, spikes(4, batch=batch), labels(batch))
        learner.reset()
    assert_same(gradients(net), trained_gradients(kind, spikes(4, batch=2), labels(2)))


@pytest.mark.parametrize(("mask", "options", "message"), [
    (torch.ones(6, dtype=torch.bool), {"num_steps": 3}, "reset(mask) keeps the running sequence"),
    (torch.ones(6), {}, "mask must be a bool tensor [B]; found torch.float32 of shape (6,)"),
    (torch.ones(6, 1, dtype=torch.bool), {}, "mask must be a bool tensor [B]; found torch.bool of shape (6, 1)"),
    (torch.ones(4, dtype=torch.bool), {}, "the mask has 4 samples, but fc1->lif1 has 6"),
    (None, {"num_steps": 0}, "num_steps=0: expected a positive number of time steps"),
    (None, {"lengths": torch.tensor([2.0])}, "lengths must be a 1-D integer tensor"),
    (None, {"lengths": torch.tensor([[2]])}, "lengths must be a 1-D integer tensor"),
    (None, {"lengths": torch.tensor([2, 0])}, "lengths must be a 1-D integer tensor of values >= 1"),
    (None, {"lengths": torch.tensor([2, 5]), "num_steps": 4}, "num_steps=4, but the longest of the given lengths is 5"),
])  # fmt: skip
def test_wrong_arguments_are_refused(mask, options, message):
    net = build(HiddenNet)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(2), labels())
    before = {name: both["pre"].clone() for name, both in learner.traces().items()}
    with pytest.raises(StateError) as caught:
        learner.reset(mask, **options)
    assert message in str(caught.value)
    assert_same({name: both["pre"] for name, both in learner.traces().items()}, before)


@pytest.mark.parametrize("updates", [1, 3])
def test_updates_between_the_callers_own_resets_are_told_of_once(updates):
    """As truncated backpropagation makes them: step() resets the membranes as well, which is another network."""
    net = nn.Sequential(nn.Linear(6, 3), snn.Leaky(0.9, init_hidden=True))
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            net[1].reset_mem()
            for _ in range(updates):
                for _ in range(2):
                    net(torch.rand(4, 6)).square().sum().backward()
                learner.step()
                learner.zero_grad()
    texts = [str(one.message) for one in told if "reset_after_step" in str(one.message)]
    assert len(texts) == (updates > 1)
