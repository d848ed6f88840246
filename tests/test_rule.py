"""STLLRRule: plain data, checked, with the published settings."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch

from stllr_plugin import RuleError, STLLRRule
from stllr_plugin.activations import InverseSquare, Spike, Triangle
from stllr_plugin.rule import resolve_rule

# alpha_pre, lambda_pre, alpha_post, lambda_post, psi, propagate, learning_signal
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "dvs_gesture": (1.0, 0.75, -1.0, 0.2, "triangle", "psi", None),
    "cifar10_dvs": (1.0, 0.5, -1.0, 0.2, "sigmoid", "psi", None),
    "ncaltech101": (1.0, 0.5, -1.0, 0.2, "sigmoid", "psi", None),
    "shd": (1.0, 1.0, 1.0, 0.5, "inverse_square", "psi", None),
    "mvsec": (1.0, 0.8, -0.2, 0.5, "rational", "psi", None),
    "ottt": (1.0, "leak", 0.0, 0.0, None, "surrogate", None),
    "sltt": (1.0, 0.0, 0.0, 0.0, None, "surrogate", None),
    "tess": (1.0, 0.5, -1.0, 0.2, "triangle", "psi", "tess"),
    "eprop_lif_like": (1.0, "leak", 0.0, 0.0, Triangle(0.3, 1.0), "psi", "dfa"),
    "decolle_like": (1.0, 0.92, 0.0, 0.0, InverseSquare(10.0), "psi", "local_random"),
    "etlp_like": (1.0, "leak", 0.0, 0.0, Triangle(0.3, 1.0), "psi", "drtp"),
    "osttp_like": (1.0, "leak", 0.0, 0.0, None, "surrogate", "drtp"),
    "stdp": (1.0, 0.5, -1.0, 0.5, Spike(), "psi", "one"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_settings(name):
    rule = STLLRRule.preset(name)
    found = (rule.alpha_pre, rule.lambda_pre, rule.alpha_post, rule.lambda_post, rule.psi, rule.propagate)
    assert (*found, rule.learning_signal) == PUBLISHED[name]
    assert rule.convention == ("current" if name == "stdp" else "code")
    assert resolve_rule(name) == rule


def test_presets_are_listed():
    assert STLLRRule.presets() == tuple(PUBLISHED)


def test_a_preset_may_be_changed_on_the_way():
    rule = STLLRRule.preset("ottt", lambda_pre=0.9, convention="paper")
    assert (rule.lambda_pre, rule.alpha_post, rule.convention) == (0.9, 0.0, "paper")
    assert STLLRRule.preset("ottt").lambda_pre == "leak"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: STLLRRule.preset("gesture"), "There is no preset 'gesture'; known: dvs_gesture, cifar10_dvs"),
    (lambda: STLLRRule.preset("shd", lambda_post=2.0), "lambda_post=2.0"),
    (lambda: STLLRRule.preset("shd", tau=2.0), "STLLRRule has no field ['tau']; fields: ['alpha_pre'"),
    (lambda: resolve_rule(3), "rule must be an STLLRRule or the name of a preset; found int"),
])  # fmt: skip
def test_wrong_presets(call, message):
    with pytest.raises(RuleError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["alpha_pre", "alpha_post", "lambda_pre", "lambda_post"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", None, True, torch.tensor(0.5)])
def test_numbers_must_be_finite_numbers(name, value):
    with pytest.raises(RuleError, match=f"{name}=.*: expected a finite number"):
        STLLRRule(**{name: value})


@pytest.mark.parametrize("name", ["lambda_pre", "lambda_post"])
@pytest.mark.parametrize("value", [-0.1, -1, 1.0001, 2])
def test_decays_lie_between_0_and_1(name, value):
    with pytest.raises(RuleError, match=rf"{name}={value}: a trace decays by a factor in \[0, 1\]"):
        STLLRRule(**{name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("alpha_pre", -3), ("alpha_post", 100.0), ("lambda_pre", 0), ("lambda_pre", 1), ("lambda_post", 1.0),
])  # fmt: skip
def test_these_are_allowed(name, value):
    assert getattr(STLLRRule(**{name: value}), name) == value


@pytest.mark.parametrize(("options", "message"), [
    ({"psi": "boxcar"}, "psi='boxcar' is not known; use one of ['dspike', 'inverse_square'"),
    ({"psi": 0.3}, "psi must be a name, a callable v -> psi(v) or None; found float"),
    ({"propagate": "both"}, "propagate='both': use one of ['psi', 'surrogate']"),
    ({"convention": "book"}, "convention='book': use one of ['code', 'paper', 'current']"),
])  # fmt: skip
def test_wrong_choices(options, message):
    with pytest.raises(RuleError) as caught:
        STLLRRule(**options)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_the_two_conventions():
    assert STLLRRule(alpha_post=-0.4, lambda_post=0.5).noncausal_scale == -0.4
    assert STLLRRule(alpha_post=-0.4, lambda_post=0.5, convention="paper").noncausal_scale == -0.2


def test_it_does_not_change_and_can_be_a_key():
    rule = STLLRRule()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.alpha_pre = 2.0
    assert {rule: 1}[STLLRRule()] == 1
    assert copy.deepcopy(rule) == rule == pickle.loads(pickle.dumps(rule))


@pytest.mark.parametrize(("psi", "described"), [
    (None, None),
    ("sigmoid", "sigmoid"),
    (Triangle(0.5), {"name": "triangle", "height": 0.5, "width": 1.0}),
    (InverseSquare(), {"name": "inverse_square", "slope": 100.0}),
    (torch.sigmoid, "sigmoid"),
])  # fmt: skip
def test_describe_is_plain_data(psi, described):
    data = STLLRRule(psi=psi).describe()
    assert json.loads(json.dumps(data)) == data
    assert data["alpha_pre"] == 1.0 and data["convention"] == "code"
    if psi is torch.sigmoid:
        assert "sigmoid" in data["psi"]
    else:
        assert data["psi"] == described
