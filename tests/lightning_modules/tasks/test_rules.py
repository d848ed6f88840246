"""What YAML says about rules becomes the rules of the learner."""

import pytest

from lightning_modules.tasks.rules import learning_rules, loss_signals, make_rule
from stllr_plugin import STLLRRule
from stllr_plugin.errors import RuleError
from stllr_plugin.signals import SIGNALS
from tests.lightning_modules.helpers import make_task


def test_rules_from_yaml():
    assert make_rule("shd") == STLLRRule.preset("shd")
    assert make_rule({"preset": "shd", "alpha_post": 0.1}) == STLLRRule.preset("shd", alpha_post=0.1)
    assert make_rule({"alpha_post": 0.1}) == STLLRRule.preset("dvs_gesture", alpha_post=0.1)
    rule = STLLRRule()
    assert make_rule(rule) is rule
    with pytest.raises(RuleError, match="alpha_pots"):
        make_rule({"alpha_pots": 1.0})


def test_bptt_has_no_rule():
    assert learning_rules("bptt", "shd", {"*": "shd"}) == (None, {})


def test_ottt_takes_the_leak_of_the_neurons_and_no_other_rule():
    rule, layers = learning_rules("ottt", "shd", {"*": "shd"})
    assert (rule.lambda_pre, rule.alpha_post, rule.psi, layers) == ("leak", 0.0, None, {})


def test_sltt_has_no_memory():
    rule, _ = learning_rules("sltt", "shd", None)
    assert rule == STLLRRule.preset("sltt") and rule.lambda_pre == 0.0


def test_layer_rules_of_stllr():
    _, layers = learning_rules("stllr", None, {"features.conv1": {"alpha_post": 0.0}, "*": "shd"})
    assert list(layers) == ["features.conv1", "*"]  # in order: the first pattern that matches wins
    assert layers["features.conv1"].alpha_post == 0.0


def test_unknown_algorithm():
    with pytest.raises(ValueError, match="Unknown algorithm 'eprop'"):
        learning_rules("eprop", None, None)


def test_learning_signals_are_those_of_the_learner(monkeypatch):
    """One's own too, once it is registered; a reward is no loss, and a typo is no signal."""
    assert {"bp", "dfa", "local", "tess"} <= set(loss_signals())
    assert "one" not in loss_signals()
    with pytest.raises(ValueError, match="learning_signal='dfaa' is not known; use one of bp, dfa"):
        make_task(learning_signal="dfaa")
    monkeypatch.setitem(SIGNALS, "mine", SIGNALS["dfa"])
    assert make_task(learning_signal="mine").learning_signal == "mine"
