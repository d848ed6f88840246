"""Rules for layers by name pattern, parts left out, parts frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stllr_plugin import STLLRLearner, STLLRRule
from tests.contracts.networks import (
    HIDDEN,
    INPUTS,
    RULE,
    STEPPING,
    Deep,
    Explicit,
    Hidden,
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
    values,
)

T = 6
OTHER = replace(RULE, lambda_pre=0.2, alpha_post=0.9, lambda_post=0.9)  # the same psi, so the same signals below
THIRD = replace(RULE, lambda_pre=1.0, alpha_pre=-2.0)


def of(kind: Any, rule: Any, layer_rules: dict[str, Any] | None = None, **options: Any) -> dict[str, Tensor]:
    return trained_gradients(kind, spikes(T), labels(), rule=rule, options={"layer_rules": layer_rules, **options})


def check(kind: Any, layer_rules: dict[str, Any], expected: dict[str, Any], rule: Any = RULE) -> None:
    """``expected`` maps a parameter name to the rule that its gradient should follow; all others follow ``rule``."""
    found = of(kind, rule, layer_rules)
    for name, value in found.items():
        # Not bit for bit: with one rule for all there are fewer operations, which round at other places.
        torch.testing.assert_close(value, of(kind, expected.get(name, rule))[name], msg=name)
        if name in expected:
            assert differ(found, of(kind, rule), [name])


@pytest.mark.parametrize(("layer_rules", "expected"), [
    ({"fc1": OTHER}, {"fc1.weight": OTHER}),
    ({"lif1": OTHER}, {"fc1.weight": OTHER}),
    ({"fc*": OTHER}, {"fc1.weight": OTHER, "fc2.weight": OTHER, "fc3.weight": OTHER}),
    ({"lif[12]": OTHER}, {"fc1.weight": OTHER, "fc2.weight": OTHER}),
    ({"*2": OTHER}, {"fc2.weight": OTHER}),
    ({"fc1": OTHER, "fc*": THIRD}, {"fc1.weight": OTHER, "fc2.weight": THIRD, "fc3.weight": THIRD}),
    ({"fc?": THIRD, "fc1": OTHER}, {"fc1.weight": THIRD, "fc2.weight": THIRD, "fc3.weight": THIRD}),
    ({"lif2": OTHER, "fc2": THIRD}, {"fc2.weight": THIRD}),
    ({"lif2": OTHER, "*": THIRD}, {"fc1.weight": THIRD, "fc2.weight": THIRD, "fc3.weight": THIRD}),
], ids=lambda value: "+".join(value) if isinstance(value, dict) and "." not in "".join(value) else "")  # fmt: skip
def test_the_first_pattern_that_matches_wins_and_synapses_go_before_neurons(layer_rules, expected):
    check(Deep, layer_rules, expected)


def test_a_recurrent_layer_has_a_rule_of_its_own():
    check(Explicit, {"lif1.recurrent": OTHER}, {"lif1.recurrent.weight": OTHER})
    check(Explicit, {"lif1": OTHER}, {"lif1.recurrent.weight": OTHER, "fc1.weight": OTHER})
    check(Explicit, {"fc1": THIRD, "lif1": OTHER}, {"lif1.recurrent.weight": OTHER, "fc1.weight": THIRD})


def test_weights_that_a_neuron_holds_have_rules_of_their_own():
    check(NorseRecurrent, {"cell.recurrent_weights": OTHER}, {"cell.recurrent_weights": OTHER})
    check(NorseRecurrent, {"cell": OTHER}, {"cell.recurrent_weights": OTHER, "cell.input_weights": OTHER})


def test_presets_by_name():
    shd, mvsec = STLLRRule.preset("shd"), STLLRRule.preset("mvsec")
    assert_same(of(Deep, "mvsec", {"fc1": "shd"}), of(Deep, mvsec, {"fc1": shd}))


def test_a_neuron_s_psi_carries_the_signal_below():
    """The rule of lif2 decides how delta passes lif2, whatever the rule of the synapse fc2."""
    sharp = replace(RULE, psi="inverse_square")
    by_neuron, by_synapse = of(Deep, RULE, {"lif2": sharp}), of(Deep, RULE, {"fc2": sharp})
    plain = of(Deep, RULE)
    below = ["fc1.weight", "fc1.bias", "fc2.bias"]
    assert differ(by_neuron, plain, below)
    assert_close({n: by_synapse[n] for n in below}, {n: plain[n] for n in below})
    assert_close({"w": by_neuron["fc2.weight"]}, {"w": by_synapse["fc2.weight"]})


def test_the_report_names_each_edge_s_rule():
    net = build(Deep)
    learner = STLLRLearner(net, rule=RULE, layer_rules={"fc1": OTHER, "lif2": THIRD})
    run_steps(net, spikes(2), labels())
    rules = {edge.name: edge.rule for edge in learner.report().edges}
    expected = {"fc1->lif1": OTHER, "fc2->lif2": THIRD, "fc3->lif3": RULE}
    assert rules == {name: rule.describe() for name, rule in expected.items()}


# -- left out


def test_an_excluded_synapse_has_its_ordinary_gradient_of_each_step():
    plain = replace(RULE, lambda_pre=0.0, alpha_post=0.0)
    assert_close(of(Deep, RULE, exclude="fc2"), of(Deep, RULE, {"fc2": plain}))
    assert_close(of(Deep, RULE, exclude=["fc2", "fc1"]), of(Deep, RULE, {"fc[12]": plain}))


@pytest.mark.parametrize("kind", [Deep, Hidden])
def test_an_excluded_neuron_is_trained_through_time_with_the_layer_that_feeds_it(kind):
    def gradient(*exclude: str) -> dict[str, Tensor]:
        return trained_gradients(kind, spikes(T), labels(), way="a", options={"exclude": exclude})

    both, neuron = gradient("fc1", "lif1"), gradient("lif1")
    assert_close(neuron, both)
    assert differ(both, gradient(), ["fc1.weight"])
    upper = [name for name in both if name != "fc1.weight" and not name.startswith("fc1")]
    assert_close({n: both[n] for n in upper}, {n: gradient()[n] for n in upper})


def test_an_excluded_container_takes_its_children_with_it():
    net = build(Explicit)
    learner = STLLRLearner(net, rule=RULE, exclude="lif1")
    report = learner.report()
    assert set(report.synapses) == {"fc1", "fc2"} and set(report.neurons) == {"lif2"}
    assert report.excluded == ("lif1",)
    assert not net.lif1.recurrent._forward_hooks


# -- frozen


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_frozen_layer_gets_no_gradient_and_costs_no_trace(when):
    net = build(Deep)
    if when == "before":
        net.fc1.requires_grad_(False)
    learner = STLLRLearner(net, rule=RULE)
    if when == "after":
        net.fc1.requires_grad_(False)
    run_steps(net, spikes(T), labels())
    assert net.fc1.weight.grad is None and net.fc1.bias.grad is None
    expected = trained_gradients(Deep, spikes(T), labels())
    others = [name for name in expected if not name.startswith("fc1")]
    assert_same({n: gradients(net)[n] for n in others}, {n: expected[n] for n in others})
    assert set(learner.traces()) == {"fc2->lif2", "fc3->lif3"}

    full = build(Deep)
    whole = STLLRLearner(full, rule=RULE)
    run_steps(full, spikes(T), labels())
    saved = 4 * 6 * (INPUTS + HIDDEN)  # float32 of 6 samples: pre of the inputs, post of the layer
    assert whole.memory_usage()["total"] - learner.memory_usage()["total"] == saved
    assert not net.fc1.weight.requires_grad


def test_a_frozen_layer_in_the_middle_passes_the_signal_on():
    net = build(Deep)
    net.fc2.requires_grad_(False)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(T), labels())
    expected = trained_gradients(Deep, spikes(T), labels())
    assert_same(
        {n: gradients(net)[n] for n in ("fc1.weight", "fc1.bias")}, {n: expected[n] for n in ("fc1.weight", "fc1.bias")}
    )
    assert net.fc2.weight.grad is None
    assert set(learner.traces()) == {"fc1->lif1", "fc3->lif3"}


@pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)
def test_a_frozen_weight_with_a_trainable_bias(kind):
    net = build(kind)
    biases = [name for name, _ in net.named_parameters() if name.endswith("bias")]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in biases)
    STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(T), labels())
    expected = trained_gradients(kind, spikes(T), labels())
    assert_close({n: gradients(net)[n] for n in biases}, {n: expected[n] for n in biases})


def test_a_layer_can_be_thawed():
    net = build(Deep)
    net.fc1.requires_grad_(False)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(2), labels())
    net.fc1.requires_grad_(True)
    learner.reset()
    net.zero_grad()
    run_steps(net, spikes(T), labels())
    assert_same(gradients(net), trained_gradients(Deep, spikes(T), labels()))


def test_a_frozen_recurrent_weight():
    net = build(NorseRecurrent)
    net.cell.recurrent_weights.requires_grad_(False)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(T), labels())
    expected = trained_gradients(NorseRecurrent, spikes(T), labels())
    assert net.cell.recurrent_weights.grad is None
    torch.testing.assert_close(net.cell.input_weights.grad, expected["cell.input_weights"])
    assert "cell.recurrent_weights->cell" not in learner.traces()


def test_only_the_parameters_of_the_optimizer_move():
    net = build(Deep)
    learner = STLLRLearner(net, torch.optim.SGD(net.fc3.parameters(), lr=0.1), rule=RULE)
    before = values(net)
    run_steps(net, spikes(T), labels())
    learner.step()
    moved = {name for name, value in values(net).items() if not torch.equal(value, before[name])}
    assert moved == {"fc3.weight", "fc3.bias"}
