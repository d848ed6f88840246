import pytest
import snntorch
from torch import nn

from lightning_modules.rules import learning_rules, make_rule, neuron_leaks
from stllr_plugin import STLLRRule
from stllr_plugin.errors import RuleError
from tests.lightning_modules.helpers import make_network


def test_rules_from_yaml():
    assert make_rule("shd") == STLLRRule.preset("shd")
    assert make_rule({"preset": "shd", "alpha_post": 0.1}) == STLLRRule.preset("shd", alpha_post=0.1)
    assert make_rule({"alpha_post": 0.1}) == STLLRRule.preset("dvs_gesture", alpha_post=0.1)
    rule = STLLRRule()
    assert make_rule(rule) is rule
    with pytest.raises(RuleError, match="alpha_pots"):
        make_rule({"alpha_pots": 1.0})


def test_bptt_has_no_rule():
    assert learning_rules("bptt", "shd", {"*": "shd"}, make_network()) == (None, {})


def test_ottt_takes_the_leak_of_the_neurons():
    rule, layers = learning_rules("ottt", None, None, make_network(beta=0.65))
    assert (rule.lambda_pre, rule.alpha_post, rule.psi, layers) == (pytest.approx(0.65), 0.0, None, {})
    rule, _ = learning_rules("ottt", {"lambda_pre": 0.3}, None, make_network(beta=0.65))
    assert rule.lambda_pre == 0.3


def test_ottt_with_a_leak_for_each_layer_and_the_users_rules_first():
    network = nn.Sequential(nn.Linear(3, 3), snntorch.Leaky(0.5), nn.Linear(3, 3), snntorch.Leaky(0.75))
    assert neuron_leaks(network) == {"1": 0.5, "3": 0.75}
    rule, layers = learning_rules("ottt", None, {"2": "sltt"}, network)
    assert rule.lambda_pre == 0.5
    assert {name: layer.lambda_pre for name, layer in layers.items()} == {"2": 0.0, "3": 0.75}
    assert list(layers) == ["2", "3"]  # the first pattern that matches wins


def test_refusals():
    with pytest.raises(ValueError, match="brings its own rule"):
        learning_rules("ottt", "shd", None, make_network())
    with pytest.raises(ValueError, match="Unknown algorithm 'eprop'"):
        learning_rules("eprop", None, None, make_network())
