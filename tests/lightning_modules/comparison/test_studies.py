"""Grids and named studies: which variants they are, and what is said where they cannot be."""

from pathlib import Path

import pytest

from lightning_modules.comparison.experiment import Experiment, Variant, choosing
from lightning_modules.comparison.studies import STUDIES, StudyError, check_study, grid, read_grid, study
from lightning_modules.tasks.rules import make_rule
from stllr_plugin import STLLRRule

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def quickstart():
    return Experiment(["--config", str(CONFIGS / "quickstart.yaml")])


def rule_of(experiment, variant):
    return make_rule(experiment.describe(variant)["model"]["init_args"]["rule"])


def test_a_grid_has_every_combination():
    axes = read_grid(["model.rule.alpha_post=-1,0,0.5", "--model.rule.psi=triangle,null", "data.size=[1, 2],[3, 4]"])
    assert axes == {
        "model.rule.alpha_post": [-1, 0, 0.5],
        "model.rule.psi": ["triangle", None],
        "data.size": ["[1, 2]", "[3, 4]"],
    }
    variants = grid(axes)
    assert len(variants) == 12 and len({variant.name for variant in variants}) == 12
    assert variants[1].place == {"alpha_post": "-1", "psi": "triangle", "size": "[3, 4]"}
    assert variants[1].changes == {"model.rule.alpha_post": -1, "model.rule.psi": "triangle", "data.size": "[3, 4]"}


def test_options_with_the_same_last_name_keep_their_whole_name():
    (variant,) = grid({"data.size": [1], "model.network.init_args.size": [2]})
    assert set(variant.place) == {"data.size", "model.network.init_args.size"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "grid is empty.*--grid model.rule.alpha_post"),
        (["model.rule.psi="], "no values"),
        (["model.rule.psi=,"], "no values"),
        (["model.rule.psi"], "OPTION=VALUE"),
        (["alpha_post=1"], "did you mean model.rule.alpha_post"),
        (["model.a=1", "model.a=2"], "twice"),
    ],
)
def test_grids_that_are_none(words, said):
    with pytest.raises(StudyError, match=said):
        read_grid(words)


def test_an_unknown_study_gets_the_list():
    with pytest.raises(
        StudyError, match=r"no study 'psi_alfa'. Did you mean 'psi_alpha'\?(.|\n)*ottt_to_stllr(.|\n)*--grid"
    ):
        check_study("psi_alfa")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_different_valid_variants(name, quickstart):
    variants = study(name, quickstart, 20)
    assert len({variant.name for variant in variants}) == len(variants) > 2
    settings = [quickstart.describe(variant) for variant in (variants[0], variants[-1])]
    assert settings[0] != settings[1]
    for variant in (variants[0], variants[-1]):
        quickstart.check(variant)
    assert len(variants) == {"psi_alpha": 9, "lambdas": 12, "psi_alpha_lambda": 27}.get(name, len(variants))


def test_the_path_leads_from_ottt_to_the_configuration_one_change_at_a_time(quickstart):
    variants = study("ottt_to_stllr", quickstart, 20)
    first, last = variants[0], variants[-1]
    assert rule_of(quickstart, first) == STLLRRule.preset("ottt")
    assert quickstart.describe(first)["model"]["init_args"]["supervise_last"] is None
    assert rule_of(quickstart, last) == make_rule(quickstart.task["rule"]) == STLLRRule.preset("dvs_gesture")
    assert quickstart.describe(last)["model"]["init_args"]["supervise_last"] == 5
    together = {"model.rule.alpha_post", "model.rule.lambda_post", "model.rule.convention"}
    for before, after in zip(variants, variants[1:], strict=False):
        changed = {name for name in after.changes if after.changes[name] != before.changes[name]}
        assert len(changed) == 1 or changed <= together


def test_one_field_of_the_rule_leaves_the_preset(quickstart):
    rule = rule_of(quickstart, Variant("x", {"model.rule.alpha_post": 0.5}))
    assert rule == STLLRRule.preset("dvs_gesture", alpha_post=0.5)
    shd = Experiment(["--config", str(CONFIGS / "shd.yaml")])  # where the preset is given by its name
    assert rule_of(shd, Variant("x", {"model.rule.psi": None})) == STLLRRule.preset("shd", psi=None)


def test_supervised_steps_follow_the_data(quickstart):
    values = [variant.changes["model.supervise_last"] for variant in study("supervised_steps", quickstart, 20)]
    assert values == [1, 2, 5, 10, None]
    assert [v.changes["model.supervise_last"] for v in study("supervised_steps", quickstart, 1)] == [None]


def test_keys_tell_settings_and_seeds_apart(quickstart):
    a, b = (Variant("x", {"model.algorithm": name}) for name in ("stllr", "bptt"))
    assert len({quickstart.key(a, 0), quickstart.key(a, 1), quickstart.key(b, 0)}) == 3
    again = Experiment([*quickstart.args, "--seed_everything=4", "--trainer.default_root_dir=elsewhere"])
    assert again.key(a, 0) == quickstart.key(a, 0)
    assert Experiment([*quickstart.args, "--model.gradient_clip=1"]).key(a, 0) != quickstart.key(a, 0)


def test_the_epoch_is_chosen_as_the_configuration_says(quickstart):
    assert choosing(quickstart.settings) == ("val_loss", "min")
    assert choosing({"trainer": {"callbacks": None}}) == ("val_accuracy", "max")
