"""One field of the rule on the command line changes that field and nothing else."""

from pathlib import Path

import pytest

from lightning_modules.command.rule_options import plain_value, whole_rule
from lightning_modules.comparison.experiment import Experiment
from lightning_modules.tasks.rules import make_rule
from stllr_plugin import STLLRRule

CONFIGS = Path(__file__).parents[3] / "configs"


def rule_of(config, *options):
    return make_rule(Experiment(["--config", str(CONFIGS / f"{config}.yaml"), *options]).task["rule"])


def test_a_field_leaves_a_preset_that_is_given_by_its_name():
    assert rule_of("shd", "--model.rule.alpha_post=0.5") == STLLRRule.preset("shd", alpha_post=0.5)
    assert rule_of("shd", "--model.rule.psi", "null") == STLLRRule.preset("shd", psi=None)


def test_a_field_leaves_the_fields_of_the_file():
    rule = rule_of("nmnist_subset", "--model.rule.psi=None", "--model.init_args.rule.lambda_pre=leak")
    assert rule == STLLRRule.preset("dvs_gesture", alpha_post=-0.2, psi=None, lambda_pre="leak")
    assert rule_of("nmnist_subset", "--model.rule.preset=shd") == STLLRRule.preset("shd", alpha_post=-0.2)


def test_what_comes_later_counts():
    assert rule_of("shd", "--model.rule.alpha_post=9", "--model.rule=mvsec") == STLLRRule.preset("mvsec")
    later = rule_of("shd", "--model.rule=mvsec", "--model.rule.alpha_post=1e-1")
    assert later == STLLRRule.preset("mvsec", alpha_post=0.1)


def test_other_arguments_pass_as_they_are():
    words = ["fit", "--config", "a.yaml", "--model.rules.x=1", "--model.layer_rules.a=shd"]
    assert whole_rule(words, lambda rest: pytest.fail("nothing to ask")) == words
    asked = []
    whole_rule(["fit", "--print_config", "--model.rule.psi=spike"], asked.append)
    assert asked == [["fit"]]


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("-0.5", -0.5), ("1e-3", 0.001), ("null", None), ("true", True), ("leak", "leak")]
)
def test_values(text, value):
    assert plain_value(text) == value
