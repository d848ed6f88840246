"""supervise_random=K: K steps of each sequence, drawn anew for each from torch's generator."""

from __future__ import annotations

import pytest
import torch

from stllr_plugin import RuleError, StateError, STLLRLearner
from tests.contracts.networks import RULE, Hidden, assert_same, build, gradients, labels, run_steps, spikes

T = 8


def drawn(learner: STLLRLearner, steps: int = T) -> tuple[int, ...]:
    return tuple(t for t in range(steps) if learner.supervision.is_supervised(t))


def make(count: int = 3, seed: int = 0, **options: object) -> STLLRLearner:
    torch.manual_seed(seed)
    options.setdefault("num_steps", T)
    net = build(Hidden)
    torch.manual_seed(seed)
    return STLLRLearner(net, torch.optim.SGD(net.parameters(), 0.1), rule=RULE, supervise_random=count, **options)


def test_every_sequence_has_exactly_k_supervised_steps():
    learner = make()
    for _ in range(20):
        assert len(drawn(learner)) == 3
        learner.reset()


def test_each_sequence_draws_anew_and_every_step_has_its_turn():
    learner = make()
    found = []
    for _ in range(40):
        found.append(drawn(learner))
        learner.reset()
    assert len(set(found)) > 20
    assert {t for steps in found for t in steps} == set(range(T))


def test_step_ends_the_sequence_and_draws_anew():
    learner = make()
    found = set()
    for _ in range(6):
        found.add(drawn(learner))
        learner.zero_grad()
        run_steps(learner.model, spikes(T), labels(), supervised=drawn(learner))
        learner.step()
    assert len(found) > 2


def test_the_steps_follow_from_the_seed_of_torch():
    def sequences(seed: int) -> list[tuple[int, ...]]:
        learner = make(seed=seed)
        return [(learner.reset(), drawn(learner))[1] for _ in range(5)]

    assert sequences(1) == sequences(1) != sequences(2)


def test_steps_that_were_not_drawn_keep_no_graph_and_teach_nothing():
    learner = make()
    chosen = drawn(learner)
    for t, x in enumerate(spikes(T)):
        assert learner.model(x)[0].requires_grad == (t in chosen)


def test_one_backward_of_all_steps_gives_the_same():
    grads = []
    for way in "ab":
        learner = make()
        run_steps(learner.model, spikes(T), labels(), way=way, supervised=range(T) if way == "a" else drawn(learner))
        grads.append(gradients(learner.model))
    torch.testing.assert_close(grads[0], grads[1])


def test_more_steps_than_there_are_supervises_all():
    one, other = make(100), make(T)
    assert drawn(one) == drawn(other) == tuple(range(T))
    for learner in (one, other):
        run_steps(learner.model, spikes(T), labels())
    assert_same(gradients(one.model), gradients(other.model))


def test_the_length_may_come_with_the_reset():
    learner = make(num_steps=None)
    learner.reset(num_steps=20)
    assert len(drawn(learner, 20)) == 3
    learner.reset(lengths=torch.tensor([4, 12, 20, 5, 6, 7]))
    assert len(drawn(learner, 20)) == 3


def test_samples_that_have_ended_teach_nothing():
    learner = make(T)
    lengths = torch.tensor([2, 8, 5, 8, 1, 3])
    learner.reset(lengths=lengths)
    for t, x in enumerate(spikes(T)):
        output, _ = learner.model(x)
        output.retain_grad()
        learner.model.zero_grad()
        (output * (t >= lengths)[:, None]).sum().backward()
        assert not any(g.any() for g in gradients(learner.model).values())


def test_an_unknown_length_is_refused_when_the_first_step_runs():
    learner = make(num_steps=None)
    with pytest.raises(StateError, match="num_steps"):
        learner.model(spikes(1)[0])


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(RuleError, match="supervise_random"):
        make(count)


def test_it_excludes_supervise_last():
    with pytest.raises(RuleError, match="exclude each other"):
        make(supervise_last=2)
