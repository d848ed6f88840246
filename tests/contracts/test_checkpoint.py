"""Learner and model go through a checkpoint and train on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stllr_plugin import RuleError, STLLRLearner, STLLRRule, STLLRWarning
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Deep,
    Explicit,
    adam,
    assert_same,
    build,
    labels,
    run_steps,
    spikes,
    values,
)


def train(net: nn.Module, learner: STLLRLearner, sequences: range) -> None:
    for number in sequences:
        learner.zero_grad()
        run_steps(net, spikes(4, seed=number), labels(seed=number))
        learner.step()


def through_file(data: Any, folder: Path) -> Any:
    torch.save(data, folder / "checkpoint.pt")
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("kind", [*STEPPING.values(), Deep], ids=[*STEPPING, "deep"])
@pytest.mark.parametrize("signal", ["bp", "dfa", "sign_dfa"])
def test_training_goes_on_exactly(kind, signal, tmp_path):
    def make(seed: int) -> tuple[nn.Module, STLLRLearner]:
        net = build(kind, seed=seed)
        return net, STLLRLearner(net, adam(net), rule=RULE, learning_signal=signal, feedback_seed=seed)

    undisturbed, learner = make(0)
    train(undisturbed, learner, range(3))
    saved = through_file({"model": undisturbed.state_dict(), "learner": learner.state_dict()}, tmp_path)
    train(undisturbed, learner, range(3, 6))

    resumed, other = make(1)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["learner"])
    train(resumed, other, range(3, 6))
    assert_same(values(resumed), values(undisturbed))
    if signal != "bp":
        assert_same(dict(other.feedback), dict(learner.feedback))


def test_a_feedback_matrix_drawn_after_the_checkpoint_is_the_same_too(tmp_path):
    net, resumed = build(Deep), build(Deep)
    learner = STLLRLearner(net, adam(net), rule=RULE, learning_signal="dfa", feedback_seed=5)
    saved = through_file(learner.state_dict(), tmp_path)
    other = STLLRLearner(resumed, adam(resumed), rule=RULE, learning_signal="dfa", feedback_seed=6)
    other.load_state_dict(saved)
    train(net, learner, range(2))
    train(resumed, other, range(2))
    assert_same(dict(other.feedback), dict(learner.feedback))
    assert len(other.feedback) == 2


@pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)
@pytest.mark.parametrize("signal", ["bp", "dfa"])
def test_the_models_own_keys_stay_what_they_were(kind, signal):
    net = build(kind)
    keys = list(net.state_dict())
    learner = STLLRLearner(net, adam(net), rule=RULE, learning_signal=signal)
    train(net, learner, range(2))
    assert list(net.state_dict()) == keys
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in build(kind).named_parameters()]
    assert [name for name, _ in net.named_buffers()] == [name for name, _ in build(kind).named_buffers()]


def test_the_state_of_a_plain_optimizer_loads(tmp_path):
    net = build(Explicit)
    optimizer = adam(net, lr=0.123)
    with STLLRLearner(net, rule=RULE):
        run_steps(net, spikes(3), labels())
    optimizer.step()
    saved = through_file(optimizer.state_dict(), tmp_path)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    learner.load_state_dict(saved)
    assert learner.param_groups[0]["lr"] == 0.123
    for parameter in net.parameters():
        assert torch.equal(learner.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_the_learners_state_loads_into_a_plain_optimizer():
    net = build(Explicit)
    learner = STLLRLearner(net, adam(net, lr=0.123), rule=RULE)
    train(net, learner, range(2))
    plain = adam(net)
    plain.load_state_dict(learner.state_dict())
    assert plain.param_groups[0]["lr"] == 0.123
    parameter = net.fc1.weight
    assert torch.equal(plain.state[parameter]["exp_avg"], learner.state[parameter]["exp_avg"])


def test_loading_does_not_change_what_was_passed():
    net = build(Explicit)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    state = learner.state_dict()
    learner.load_state_dict(state)
    assert set(state) == {"state", "param_groups", "stllr"}


def saved_with(rule: Any = RULE, kind: Any = Deep, signal: str = "bp", **options: Any) -> dict[str, Any]:
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=rule, learning_signal=signal, **options)
    train(net, learner, range(1))
    return learner.state_dict()


def test_another_rule_warns_and_the_learners_own_stays():
    net = build(Deep)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    with pytest.warns(STLLRWarning, match=r"made with rule .*0\.75.*goes on with .*0\.8"):
        learner.load_state_dict(saved_with("dvs_gesture"))
    train(net, learner, range(1))
    assert {edge.rule["lambda_pre"] for edge in learner.report().edges} == {RULE.lambda_pre}


def test_another_rule_of_one_layer_warns_too():
    net = build(Deep)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    with pytest.warns(STLLRWarning, match="fc2"):
        learner.load_state_dict(saved_with(layer_rules={"fc2": "shd"}))


def test_the_same_rule_does_not_warn(recwarn):
    net = build(Deep)
    learner = STLLRLearner(net, adam(net), rule=STLLRRule(**{**RULE.describe()}))
    learner.load_state_dict(saved_with())
    assert not [warning for warning in recwarn if issubclass(warning.category, STLLRWarning)]


def test_another_learning_signal_is_refused_and_nothing_is_loaded():
    net = build(Deep)
    learner = STLLRLearner(net, adam(net, lr=0.5), rule=RULE)
    with pytest.raises(RuleError, match="learning_signal='dfa', this learner has 'bp'"):
        learner.load_state_dict(saved_with(signal="dfa"))
    assert learner.param_groups[0]["lr"] == 0.5
    assert not learner.state


def test_feedback_for_unknown_neurons_is_refused_and_nothing_is_loaded():
    net = build(Explicit)
    learner = STLLRLearner(net, adam(net, lr=0.5), rule=RULE, learning_signal="dfa")
    with pytest.raises(RuleError, match=r"feedback matrices for \['lif2'\]; this model has \['lif1'\]"):
        learner.load_state_dict(saved_with(signal="dfa"))
    assert learner.param_groups[0]["lr"] == 0.5
    assert not learner.feedback


def test_a_learner_without_optimizer_has_a_state_too(tmp_path):
    net = build(Deep)
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa", feedback_seed=3)
    run_steps(net, spikes(2), labels())
    other = STLLRLearner(build(Deep), rule=RULE, learning_signal="dfa")
    other.load_state_dict(through_file(learner.state_dict(), tmp_path))
    assert_same(dict(other.feedback), dict(learner.feedback))
