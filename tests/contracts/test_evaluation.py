"""Evaluating leaves the traces alone; ``disable()`` gives the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import NotAttachedError, STLLRLearner
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Explicit,
    Hidden,
    NorseCells,
    NorseRecurrent,
    adam,
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

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    net.eval()
    yield
    net.train()


EVALUATIONS: dict[str, Callable[[nn.Module], object]] = {
    "eval": eval_mode,
    "no_grad": lambda net: torch.no_grad(),
    "inference_mode": lambda net: torch.inference_mode(),
}
EVALUATING = pytest.mark.parametrize("evaluating", EVALUATIONS.values(), ids=EVALUATIONS)


def evaluate(net: nn.Module, seed: int = 8) -> Tensor:
    state, outputs = None, []
    for step in spikes(5, seed=seed):
        output, state = net(step, state)
        outputs.append(output.detach())
    return torch.stack(outputs)


def snapshot(learner: STLLRLearner) -> dict[str, Tensor]:
    return {
        f"{edge} {side}": t.clone()
        for edge, both in learner.traces().items()
        for side, t in both.items()
        if t is not None
    }


@ALL
@EVALUATING
def test_traces_stay_bit_for_bit(kind, evaluating):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(4), labels())
    before = snapshot(learner)
    with evaluating(net):
        evaluate(net)
    assert before
    assert_same(snapshot(learner), before)


@ALL
@EVALUATING
def test_outputs_are_those_of_the_model_alone(kind, evaluating):
    net, alone = build(kind), build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    run_steps(net, spikes(4), labels())
    learner.step()
    alone.load_state_dict(net.state_dict())
    with evaluating(net), evaluating(alone):
        expected = evaluate(alone)
        assert torch.equal(evaluate(net), expected)
    assert expected.any()


@pytest.mark.parametrize("kind", [Explicit, NorseCells, NorseRecurrent])
@EVALUATING
def test_a_sequence_goes_on_after_an_evaluation_in_its_midst(kind, evaluating):
    net, x, y = build(kind), spikes(6), labels()
    STLLRLearner(net, rule=RULE)
    state = None
    for t, step in enumerate(x):
        if t == 3:
            with evaluating(net):
                evaluate(net)
        output, state = net(step, state)
        cross_entropy(output, y).backward()
    assert_same(gradients(net), trained_gradients(kind, x, y))


def train(kind: Callable[[], nn.Module], evaluating: Callable | None, reset: bool) -> dict[str, Tensor]:
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    for seed in range(3):
        learner.zero_grad()
        run_steps(net, spikes(4, seed=seed), labels(seed=seed))
        learner.step()
        if evaluating is not None:
            with evaluating(net):
                evaluate(net)
            if reset:
                learner.reset()
    return values(net)


@ALL
@EVALUATING
def test_training_goes_on_after_an_evaluation_between_sequences_and_a_reset(kind, evaluating):
    assert_same(train(kind, evaluating, reset=True), train(kind, None, reset=False))


@ALL
def test_training_goes_on_after_an_evaluation_in_eval_mode_without_a_reset(kind):
    """step() ended the sequence; the hidden states that the evaluation left are not where the next one begins."""
    assert_same(train(kind, eval_mode, reset=False), train(kind, None, reset=False))


@ALL
def test_a_model_in_eval_mode_has_its_ordinary_gradients(kind):
    net, alone = build(kind).eval(), build(kind).eval()
    STLLRLearner(net, rule=RULE)
    for model in (net, alone):
        run_steps(model, spikes(4), labels(), way="a")
    assert_same(gradients(net), gradients(alone))


@ALL
def test_disabled_the_model_trains_as_if_nothing_were_attached(kind):
    net, alone = build(kind), build(kind)
    optimizer = adam(alone)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    learner.disable()
    assert not learner.enabled
    for model, update in ((net, learner), (alone, optimizer)):
        run_steps(model, spikes(4), labels(), way="a")
        update.step()
    assert_same(gradients(net), gradients(alone))
    assert_same(values(net), values(alone))
    assert differ(gradients(net), trained_gradients(kind, spikes(4), labels()), [next(iter(gradients(net)))])


@ALL
def test_enabled_again_it_trains_exactly(kind):
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    run_steps(net, spikes(3), labels())
    before = snapshot(learner)
    learner.disable()
    for module in net.modules():  # as without a learner, hidden states hold the graph of the last step
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    run_steps(net, spikes(3), labels(), way="a")
    assert_same(snapshot(learner), before)
    learner.enable()
    learner.reset()
    learner.zero_grad()
    run_steps(net, spikes(4), labels())
    assert_same(gradients(net), trained_gradients(kind, spikes(4), labels()))


def test_enabling_a_detached_learner_is_an_error():
    learner = STLLRLearner(build(Hidden), rule=RULE)
    learner.detach()
    with pytest.raises(NotAttachedError):
        learner.enable()


def test_a_part_in_eval_mode_follows_the_rule_all_the_same():
    """People put parts into eval() to freeze a batch norm; their weights must not get other gradients in silence."""
    net = build(Hidden)
    STLLRLearner(net, rule=RULE)
    net.fc1.eval()
    run_steps(net, spikes(4), labels())
    expected = trained_gradients(Hidden, spikes(4), labels())
    found = gradients(net)
    assert_close(found, expected)
