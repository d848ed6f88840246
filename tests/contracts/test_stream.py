"""learner.stream: a model that takes whole sequences, one time step at a time, with the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import SequenceInputError, StateError, STLLRLearner, STLLRRule

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")

T, B, IN = 6, 3, 5
RULE = STLLRRule(alpha_pre=1.0, lambda_pre=0.8, alpha_post=-0.3, lambda_post=0.5, psi="triangle")


def parameters() -> Any:
    return norse.LIFParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3))


def lif_ex() -> nn.Module:
    return norse.SequentialState(norse.Lift(nn.Linear(IN, 4)), norse.LIFEx(), nn.Linear(4, 2), norse.LI())


# Models that take [time, batch, ...] in one call.
SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "LIF": lambda: norse.SequentialState(
        norse.Lift(nn.Linear(IN, 4)), norse.LIF(parameters()), nn.Linear(4, 2), norse.LI()
    ),
    "LIFRecurrent": lambda: norse.SequentialState(
        norse.LIFRecurrent(IN, 4, parameters()), norse.Lift(nn.Linear(4, 2)), norse.LI()
    ),
    "LIFEx": lif_ex,
    "LSNNRecurrent": lambda: norse.SequentialState(norse.LSNNRecurrent(IN, 4), nn.Linear(4, 2), norse.LI()),
    "without states": lambda: nn.Sequential(
        norse.Lift(nn.Linear(IN, 4)), norse.LIF(parameters()), norse.Lift(nn.Linear(4, 2))
    ),
    "lifted cells": lambda: nn.Sequential(
        norse.Lift(nn.Linear(IN, 4)), norse.Lift(norse.LIFCell(parameters())), norse.Lift(nn.Linear(4, 2))
    ),
    "StateLeaky": lambda: nn.Sequential(nn.Linear(IN, 4), snn.StateLeaky(0.9, 4)),
    "LinearLeaky": lambda: snn.LinearLeaky(0.9, IN, 4),
    "membranes only": lambda: nn.Sequential(nn.Linear(IN, 4), snn.StateLeaky(0.9, 4, output=False)),
}


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)) < 0.5).float() * 3


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return SEQUENCES[name]()


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stream_and_learn(learner: STLLRLearner, x: Any, **options: Any) -> Tensor:
    outputs = []
    for output in learner.stream(x, **options):
        (first(output) ** 2).sum().backward()
        outputs.append(first(output).detach())
    return torch.stack(outputs)


@pytest.mark.parametrize("name", SEQUENCES)
def test_outputs_are_those_of_one_call(name, x):
    model = build(name)
    with torch.no_grad():
        whole = first(model(x))
    assert whole.any()
    with STLLRLearner(model, rule=RULE) as learner:
        for _ in range(2):  # a second stream starts afresh
            assert torch.allclose(stream_and_learn(learner, x), whole, atol=1e-6)
        assert learner.supervision.clock == T - 1
    model.eval()
    assert torch.allclose(first(model(x)), whole, atol=1e-6)


@pytest.mark.parametrize("name", SEQUENCES)
def test_an_evaluation_gives_the_same_and_leaves_the_traces_alone(name, x):
    model = build(name)
    with torch.no_grad():
        whole = first(model(x))
    with STLLRLearner(model, rule=RULE) as learner:
        stream_and_learn(learner, x)
        before = {edge: trace["pre"].clone() for edge, trace in learner.traces().items()}
        model.eval()
        with torch.no_grad():
            outputs = torch.stack([first(output) for output in learner.stream(x)])
        assert torch.allclose(outputs, whole, atol=1e-6)
        assert before
        assert all(torch.equal(trace["pre"], before[edge]) for edge, trace in learner.traces().items())


def test_gradients_are_those_of_slices_by_hand(x):
    streamed, sliced = build("LIF"), build("LIF")
    with STLLRLearner(streamed, rule=RULE) as learner:
        stream_and_learn(learner, x)
    with STLLRLearner(sliced, rule=RULE):
        state = None
        for t in range(T):
            output, state = sliced(x[t : t + 1], state)
            (output**2).sum().backward()
    expected = gradients(sliced)
    assert set(expected) == set(gradients(streamed))
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(streamed).items())


def test_gradients_are_those_of_leaky_without_a_reset(x):
    """StateLeaky is Leaky without a reset, with the decay exp(beta - 1) in place of beta."""
    theirs = build("StateLeaky")
    ours = nn.Sequential(
        nn.Linear(IN, 4),
        snn.Leaky(torch.exp(torch.tensor(-0.1)), init_hidden=True, output=True, reset_mechanism="none"),
    )
    ours[0].load_state_dict(theirs[0].state_dict())
    results = []
    for model in (theirs, ours):
        with STLLRLearner(model, rule=RULE) as learner:
            for spikes, membrane in learner.stream(x):
                (spikes.sum() + (membrane**2).sum()).backward()
        results.append(gradients(model)["0.weight"])
    assert torch.allclose(results[0], results[1], rtol=1e-5)


def test_models_of_cells_and_of_hidden_states_get_plain_steps(x):
    cells = norse.SequentialState(nn.Linear(IN, 4), norse.LIFCell(parameters()), nn.Linear(4, 2), norse.LICell())
    hidden = nn.Sequential(nn.Linear(IN, 4), snn.Leaky(0.9, init_hidden=True, output=True))
    state, by_hand = None, []
    with torch.no_grad():
        for step in x:
            output, state = cells(step, state)
            by_hand.append(output)
    with STLLRLearner(cells, rule=RULE) as learner:
        assert torch.allclose(stream_and_learn(learner, x), torch.stack(by_hand))
    with STLLRLearner(hidden, rule=RULE) as learner:
        once, again = stream_and_learn(learner, x), stream_and_learn(learner, x)
        assert torch.equal(once, again)


def test_a_stream_goes_on_from_a_state(x):
    model = build("LIF")
    with STLLRLearner(model, rule=RULE) as learner:
        whole = stream_and_learn(learner, x)
        all_at_once = gradients(model)
        model.zero_grad()
        beginning = learner.stream(x[:4])
        parts = []
        for output in beginning:
            (output**2).sum().backward()
            parts.append(output.detach())
        parts += list(stream_and_learn(learner, x[4:], state=beginning.state))
        assert torch.allclose(torch.stack(parts), whole)
        assert all(torch.allclose(gradient, all_at_once[name]) for name, gradient in gradients(model).items())


def test_data_may_come_step_by_step(x):
    model = build("LIF")
    with STLLRLearner(model, rule=RULE) as learner:
        whole = stream_and_learn(learner, x)
        assert torch.equal(stream_and_learn(learner, (step for step in x)), whole)
        assert len(learner.stream(x)) == T
        with pytest.raises(TypeError, match="no length"):
            len(learner.stream(step for step in x))


def test_the_length_of_a_tensor_tells_the_supervised_steps(x):
    model = build("LIF")
    with STLLRLearner(model, rule=RULE, supervise_last=2) as learner:
        stream_and_learn_first = [first(output).requires_grad for output in learner.stream(x)]
        again = [first(output).requires_grad for output in learner.stream(x)]
    assert again == stream_and_learn_first == [False] * (T - 2) + [True] * 2


def test_lengths(x):
    """A sample that ends early learns as it would alone."""
    lengths = torch.tensor([T, 3, 4])
    together, alone = build("LIF"), build("LIF")
    with STLLRLearner(together, rule=RULE, supervise_last=2) as learner:
        for output in learner.stream(x, lengths=lengths):
            if output.requires_grad:
                (output**2).sum().backward()
    with STLLRLearner(alone, rule=RULE, supervise_last=2) as learner:
        for sample, length in enumerate(lengths.tolist()):
            for output in learner.stream(x[:length, sample : sample + 1]):
                if output.requires_grad:
                    (output**2).sum().backward()
    expected = gradients(alone)
    for name, gradient in gradients(together).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


def test_a_wrong_number_of_lengths(x):
    with (
        STLLRLearner(build("LIF"), rule=RULE) as learner,
        pytest.raises(StateError, match="1 lengths for a batch of 3"),
    ):
        next(iter(learner.stream(x, lengths=torch.tensor([4]))))


def test_a_target_that_was_set_before_is_kept(x):
    model = build("LIF")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with STLLRLearner(model, optimizer, rule=RULE, learning_signal="drtp") as learner:
        learner.set_target(torch.tensor([0, 1, 0]))
        stream_and_learn(learner, x)
        assert gradients(model)["0.lifted_module.weight"].any()


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_loop_that_is_left_early_leaves_nothing_behind(name, x):
    model = build(name)
    with torch.no_grad():
        whole = first(model(x))
    with STLLRLearner(model, rule=RULE) as learner:
        hooks = {key: (len(m._forward_hooks), len(m._forward_pre_hooks)) for key, m in model.named_modules()}
        for _ in learner.stream(x):
            break
        assert hooks == {key: (len(m._forward_hooks), len(m._forward_pre_hooks)) for key, m in model.named_modules()}
        assert torch.allclose(stream_and_learn(learner, x), whole, atol=1e-6)


def test_another_form_of_the_model_is_called(x):
    model, called = build("LIF"), []

    def wrapper(*args: Any) -> Any:
        called.append(len(args))
        return model(*args)

    with STLLRLearner(model, rule=RULE) as learner:
        stream_and_learn(learner, x, model=wrapper)
    assert called == [2] * T


@pytest.mark.parametrize("name", ["StateLeaky", "LinearLeaky", "membranes only"])
@pytest.mark.parametrize("steps", [1, T])
def test_neurons_without_a_state_are_refused_outside_of_a_stream(name, steps, x):
    with (
        STLLRLearner(build(name), rule=RULE) as learner,
        pytest.raises(SequenceInputError, match=r"learner\.stream"),
    ):
        learner.model(x[:steps])


@pytest.mark.parametrize("name", ["LIF", "LIFRecurrent", "without states", "lifted cells"])
def test_whole_sequences_are_refused_outside_of_a_stream(name, x):
    with (
        STLLRLearner(build(name), rule=RULE) as learner,
        pytest.raises(SequenceInputError, match=r"6 time steps.*learner\.stream"),
    ):
        learner.model(x)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.ones(4), r"found a tensor of shape \(4,\)"),
        (3, "found a int"),
        (nn.Linear(2, 2), "runs the attached model"),
        ([[1.0, 2.0]], "found list"),
    ],
)
def test_data_of_another_form(data, said):
    with (
        STLLRLearner(build("LIF"), rule=RULE) as learner,
        pytest.raises(SequenceInputError, match=said),
    ):
        next(iter(learner.stream(data)))


def test_the_state_outlives_the_loop_and_the_update(x):
    model = build("LIF")
    with STLLRLearner(model, torch.optim.SGD(model.parameters(), 0.1), rule=RULE) as learner:
        stream = learner.stream(x)
        for output in stream:
            (output**2).sum().backward()
        learner.step()
        assert isinstance(stream.state, list) and any(state is not None for state in stream.state)
        learner.reset(torch.tensor([True, False, False]))  # no stream runs any more, so this is no reset within one


def test_a_reset_within_a_stream_begins_anew(x):
    model = build("LIF")
    outputs = []
    with STLLRLearner(model, rule=RULE) as learner:
        for t, output in enumerate(learner.stream(torch.cat((x, x)))):
            if t == T - 1:
                learner.reset()
            outputs.append(output.detach())
    assert torch.allclose(torch.stack(outputs[:T]), torch.stack(outputs[T:]))


def test_single_samples_of_norse_s_states_are_not_reset_and_nothing_is(x):
    model = build("LIF")
    with STLLRLearner(model, rule=RULE) as learner:
        for t, _ in enumerate(learner.stream(x)):
            if t == 2:
                before = {edge: trace["pre"].clone() for edge, trace in learner.traces().items()}
                with pytest.raises(StateError, match="Carry the states yourself"):
                    learner.reset(torch.tensor([True, False, False]))
                assert all(torch.equal(trace["pre"], before[edge]) for edge, trace in learner.traces().items())


def test_lengths_belong_to_a_new_sequence(x):
    model = build("LIF")
    with STLLRLearner(model, rule=RULE) as learner:
        stream = learner.stream(x)
        for _ in stream:
            pass
        with pytest.raises(SequenceInputError, match="lengths belong to a new sequence"):
            learner.stream(x, stream.state, lengths=torch.tensor([1, 2, 3]))


def test_models_that_mix_both_kinds_of_neurons_are_refused(x):
    model = nn.Sequential(nn.Linear(IN, 4), snn.StateLeaky(0.9, 4), nn.Linear(4, 2), snn.Leaky(0.9, init_hidden=True))
    with (
        STLLRLearner(model, rule=RULE) as learner,
        pytest.raises(SequenceInputError, match=r"neurons \['3'\] take one time step per call"),
    ):
        learner.stream(x)
