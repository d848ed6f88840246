"""Bad input of every kind gets an error of the package that says what to do, not torch's or Python's own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import stllr_plugin
from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.activations import Dspike, InverseSquare, Rational, SigmoidDerivative, Triangle
from stllr_plugin.errors import STLLRError
from stllr_plugin.stdp import Plasticity
from tests.contracts.kinds import members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 5, 4, 6, 6, 3


def network() -> nn.Sequential:
    return build(lambda: nn.Sequential(nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True), nn.Linear(N, OUT)))


def inputs(batch: int = B) -> Tensor:
    return 2 * torch.rand(T, batch, IN, generator=torch.Generator().manual_seed(0))


def square(output: Tensor, y: Any = None) -> Tensor:
    return output.square().sum()


SETTINGS: dict[str, dict[str, Any]] = {
    "exclude, a number": {"exclude": 3},
    "exclude, a module": {"exclude": nn.Linear(2, 2)},
    "exclude, a list of modules": {"exclude": [nn.Linear(2, 2)]},
    "exclude, None in a list": {"exclude": [None]},
    "exclude, bytes": {"exclude": b"0"},
    "layer_rules, a list": {"layer_rules": ["shd"]},
    "layer_rules, a list of pairs": {"layer_rules": [("0", "shd")]},
    "layer_rules, a rule": {"layer_rules": RULE},
    "layer_rules, a name": {"layer_rules": "shd"},
    "layer_rules, a module as the key": {"layer_rules": {nn.Linear(2, 2): "shd"}},
    "layer_rules, a number as the rule": {"layer_rules": {"0": 3}},
    "layer_rules, None as the rule": {"layer_rules": {"0": None}},
    "feedback_seed, a text": {"feedback_seed": "x", "learning_signal": "dfa"},
    "feedback_seed, a fraction": {"feedback_seed": 1.5, "learning_signal": "dfa"},
    "feedback_seed, a generator": {"feedback_seed": torch.Generator(), "learning_signal": "dfa"},
    "rule, a number": {"rule": 3},
    "rule, a dictionary": {"rule": {"alpha_pre": 1.0}},
    "rule, its class": {"rule": type(RULE)},
    "learning_signal, a number": {"learning_signal": 3},
    "learning_signal, a list": {"learning_signal": ["dfa"]},
    "output, a module of another model": {"output": nn.Linear(2, 2), "learning_signal": "dfa"},
    "output, a number": {"output": 2, "learning_signal": "dfa"},
    "supervise_last, a fraction": {"supervise_last": 2.5},
    "supervise_last, a text": {"supervise_last": "2"},
    "supervise_last, True": {"supervise_last": True},
    "num_steps, a tensor of several": {"num_steps": torch.tensor([3, 4])},
    "num_steps, a text": {"num_steps": "5"},
    "fold_steps, a fraction": {"fold_steps": 1.5},
    "product_dtype, a text": {"product_dtype": "bfloat16"},
    "plasticity, a number": {"plasticity": 3, "learning_signal": "one"},
    "output, a list": {"output": ["2"], "learning_signal": "dfa"},
    "learning_signal, an empty text": {"learning_signal": ""},
    "reset_after_step, a text": {"reset_after_step": "no"},
    "check_finite, a number": {"check_finite": 3},
}


@pytest.mark.parametrize("settings", members(SETTINGS))
def test_settings_of_the_learner(settings):
    net = network()
    with pytest.raises(STLLRError):
        STLLRLearner(net, sgd(net), **({"rule": RULE} | settings))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("settings", members(SETTINGS))
def test_a_learner_that_is_attached_stays(settings):
    """One that is refused does not take its place."""
    net = network()
    before = STLLRLearner(net, sgd(net), rule=RULE)
    with pytest.raises(STLLRError):
        STLLRLearner(net, sgd(net), **({"rule": RULE} | settings))
    assert before.attached


def attached(**options: Any) -> tuple[nn.Module, STLLRLearner]:
    net = network()
    return net, STLLRLearner(net, sgd(net), rule=RULE, **options)


RESETS: dict[str, dict[str, Any]] = {
    "num_steps, a fraction": {"num_steps": 2.5},
    "num_steps, a text": {"num_steps": "3"},
    "num_steps, negative": {"num_steps": -1},
    "num_steps, zero": {"num_steps": 0},
    "num_steps, True": {"num_steps": True},
    "lengths, fractions": {"num_steps": T, "lengths": torch.tensor([1.5, 2.0, 3.0, 4.0])},
    "lengths, a number": {"num_steps": T, "lengths": 3},
    "lengths, of two dimensions": {"num_steps": T, "lengths": torch.ones(B, 1, dtype=torch.long)},
    "lengths, longer than the sequence": {"num_steps": T, "lengths": torch.tensor([1, 2, 3, 99])},
    "lengths, negative": {"num_steps": T, "lengths": torch.tensor([1, 2, 3, -4])},
    "mask, numbers": {"mask": torch.ones(B)},
    "mask, of another size": {"mask": torch.ones(B + 1, dtype=torch.bool)},
    "mask, a number": {"mask": 3},
    "mask, a text": {"mask": "all"},
    "lengths, a text": {"lengths": "all"},
    "lengths, none": {"lengths": []},
    "lengths, true and false": {"lengths": [True] * B},
    "lengths, of unequal rows": {"lengths": [[1], [1, 2]]},
}


@pytest.mark.parametrize("arguments", members(RESETS))
def test_reset(arguments):
    net, learner = attached(supervise_last=2)
    net(inputs()[0])
    with pytest.raises(STLLRError):
        learner.reset(**arguments)


TARGETS: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a text": "cat",
    "of no sample": torch.empty(0, dtype=torch.long),
    "fractions of one dimension": torch.tensor([0.5, 1.0, 2.0, 0.0]),
    "true and false": torch.tensor([True, False, True, False]),
    "classes that do not exist": torch.tensor([0, 1, 2, 99]),
    "negative classes": torch.tensor([0, 1, 2, -1]),
    "of three dimensions": torch.zeros(B, OUT, 2),
}


@pytest.mark.parametrize("signal", ["drtp", "local_random"])
@pytest.mark.parametrize("target", members(TARGETS))
def test_set_target(target, signal):
    net, learner = attached(learning_signal=signal, feedback_seed=0)
    with pytest.raises(STLLRError):
        learner.set_target(target)
        for step in inputs():
            square(net(step)).backward()


@pytest.mark.parametrize("scale", members({"None": None, "a text": "x", "a list": [1.0], "nan": float("nan")}))
def test_the_scale_of_a_target(scale):
    _, learner = attached(learning_signal="drtp", feedback_seed=0)
    with pytest.raises(STLLRError):
        learner.set_target(torch.arange(B) % OUT, scale=scale)


GARBAGE: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a text": "weights",
    "a list": [1, 2],
    "empty": {},
    "a dictionary of something": {"a": 1},
    "param_groups of another form": {"state": {}, "param_groups": 3},
    "too few groups": {"state": {}, "param_groups": []},
    "stllr, a number": {"stllr": 3},
    "stllr, a list": {"stllr": ["rule"]},
    "stllr, of something": {"stllr": {"rule": 3, "feedback": "x"}},
    "feedback of another form": {"stllr": {"feedback": {"1": torch.zeros(1)}}},
    "parts of stllr, feedback a number": {"feedback": 3},
    "parts of stllr, matrices of texts": {"feedback": {"1": "x"}},
    "parts of stllr, a seed that is a text": {"feedback_seed": "x"},
    "parts of stllr, a rule that is a number": {"rule": 3},
    "parts of stllr, another signal": {"learning_signal": "drtp"},
}


@pytest.mark.parametrize("garbage", members(GARBAGE))
def test_load_state_dict(garbage):
    _, learner = attached(learning_signal="dfa", feedback_seed=0)
    if isinstance(garbage, dict) and "stllr" in garbage:
        garbage = {**learner.state_dict(), **garbage}
    elif isinstance(garbage, dict) and garbage.keys() & {"feedback", "feedback_seed", "rule", "learning_signal"}:
        state = learner.state_dict()
        garbage = {**state, "stllr": {**state["stllr"], **garbage}}
    with pytest.raises(STLLRError):
        learner.load_state_dict(garbage)


def in_a_loop(x: Any, **options: Any) -> None:
    net, learner = attached(**options)
    for step in x:
        square(net(step)).backward()
    learner.step()


def sparse_steps() -> list[Tensor]:
    return [step.to_sparse() for step in inputs()]


INPUTS: dict[str, Callable[[], None]] = {
    "an empty batch": lambda: in_a_loop(inputs(0)),
    "a sparse input": lambda: in_a_loop(sparse_steps()),
    "an empty batch, supervise_last": lambda: in_a_loop(inputs(0), supervise_last=2, num_steps=T),
}


@pytest.mark.parametrize("script", members(INPUTS))
def test_inputs(script):
    with pytest.raises(STLLRError):
        script()


PSI: dict[str, Callable[[Tensor], Any]] = {
    "true and false": lambda v: v.abs() < 0.5,
    "integers": lambda v: (v.abs() < 0.5).long(),
    "a number": lambda v: 1.0,
    "another shape": lambda v: v.sum(1),
    "a row": lambda v: v[:1].abs(),
    "None": lambda v: None,
    "a tuple": lambda v: (v, v),
}


@pytest.mark.parametrize("propagate", ["psi", "surrogate"])
@pytest.mark.parametrize("psi", members(PSI))
def test_psi(psi, propagate):
    net = network()
    with pytest.raises(STLLRError):
        learner = STLLRLearner(net, sgd(net), rule=type(RULE)(1.0, 0.8, -0.3, 0.5, psi, propagate))
        for step in inputs():
            square(net(step)).backward()
        learner.step()


CONSTANTS: dict[str, Callable[[], Any]] = {
    "a text": lambda: Triangle("high"),  # type: ignore[arg-type]
    "negative": lambda: InverseSquare(-1.0),
    "no width": lambda: Triangle(0.3, 0.0),
    "nan": lambda: Rational(float("nan")),
    "None": lambda: SigmoidDerivative(None),  # type: ignore[arg-type]
    "a text for dspike": lambda: Dspike("x"),  # type: ignore[arg-type]
    "a class": lambda: type(RULE)(psi=Triangle),  # type: ignore[arg-type]
    "a factor of STDP that is a number": lambda: Plasticity(potentiation=3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("make", members(CONSTANTS))
def test_constants(make):
    with pytest.raises(STLLRError):
        make()


LOSSES: dict[str, Callable[..., Any]] = {
    "a number": lambda *args: 1.5,
    "an integer": lambda *args: 0,
    "a tuple": lambda *args: (torch.zeros(()), torch.zeros(())),
    "a text": lambda *args: "loss",
    "of several values": lambda output, *args: output,
    "detached": lambda output, *args: output.square().sum().detach(),
    "true": lambda *args: True,
}


@pytest.mark.parametrize("loss", members(LOSSES))
@pytest.mark.parametrize("way", ["run", "online", "two_pass"])
def test_losses(way, loss):
    net, learner = attached()
    with pytest.raises(STLLRError):
        if way == "run":
            learner.run(net, inputs(), None, loss)
        elif way == "online":
            with learner.online(net[2], loss):
                for step in inputs():
                    net(step)
        else:
            learner.two_pass(net[2], loss, lambda: torch.stack([net(step) for step in inputs()]))


def run(**changes: Any) -> None:
    net, learner = attached()
    arguments = {"model": net, "x": inputs(), "y": None, "loss": square, **changes}
    learner.run(*[arguments.pop(name) for name in ("model", "x", "y", "loss")], **arguments)


RUNS: dict[str, dict[str, Any]] = {
    "another net": {"model": nn.Linear(IN, OUT)},
    "an attached net of another learner": {"model": network()},
    "no net": {"model": None},
    "continue_from, a number": {"continue_from": 3},
    "continue_from, True": {"continue_from": True},
    "continue_from, a tensor": {"continue_from": torch.zeros(1)},
    "continue_from, a text": {"continue_from": "last"},
    "window, a fraction": {"window": 2.5},
    "window, zero": {"window": 0},
    "window, a text": {"window": "4"},
    "window, negative": {"window": -1},
    "supervise_last, a fraction": {"supervise_last": 1.5},
    "no input": {"x": None},
    "a number as the input": {"x": 3},
    "an empty sequence": {"x": inputs()[:0]},
    "an empty list": {"x": []},
    "too few targets": {"y": [torch.zeros(B)] * (T - 1)},
    "too many targets": {"y": [torch.zeros(B)] * (T + 1)},
    "no loss": {"loss": None},
    "an empty batch": {"x": inputs(0)},
    "a sparse sequence": {"x": inputs().to_sparse()},
    "sparse steps": {"x": [step.to_sparse() for step in inputs()]},
    "complex inputs": {"x": inputs().to(torch.complex64)},
    "steps of two types": {"x": [*inputs()[:-1], inputs()[-1].double()]},
    "lengths, a text": {"lengths": "all"},
    "lengths, fractions": {"lengths": torch.ones(B)},
    "lengths, longer than the sequence": {"lengths": torch.tensor([1, 2, 3, 99])},
    "backward, a number": {"backward": 3},
    "before_window, a number": {"before_window": 3},
    "the class of a net": {"model": nn.Linear},
    "targets as long as the sequence": {"y": torch.zeros(T, B, OUT)},
}


@pytest.mark.parametrize("changes", members(RUNS))
def test_run(changes):
    with pytest.raises(STLLRError):
        run(**changes)


OTHERS: dict[str, Callable[[nn.Module, STLLRLearner], Any]] = {
    "extend by a fraction": lambda net, learner: learner.extend(2.5),
    "extend by a text": lambda net, learner: learner.extend("x"),
    "online of a number": lambda net, learner: learner.online(3, square).__enter__(),
    "online without a loss": lambda net, learner: learner.online(net[2], None).__enter__(),
    "online of another module": lambda net, learner: learner.online(nn.Linear(2, 2), square).__enter__(),
    "two_pass without a function": lambda net, learner: learner.two_pass(net[2], square, None),
    "two_pass of a number": lambda net, learner: learner.two_pass(3, square, lambda: net(inputs()[0])),
    "a stream of a number": lambda net, learner: next(iter(learner.stream(3))),
    "a stream of nothing": lambda net, learner: list(learner.stream(inputs()[:0])),
    "a stream of another network": lambda net, learner: list(learner.stream(inputs(), model=nn.Linear(IN, OUT))),
    "a stream of a model that is a number": lambda net, learner: list(learner.stream(inputs(), model=3)),
    "a stream with lengths that are a text": lambda net, learner: list(learner.stream(inputs(), lengths="all")),
    "online with a backward that is a number": lambda net, learner: learner.online(net[2], square, backward=3),
    "a step with a closure that is a number": lambda net, learner: learner.step(3),
    "verify nothing": lambda net, learner: learner.verify(None, square),
    "verify an empty batch": lambda net, learner: learner.verify(inputs(0), square),
    "verify with a number of steps that is a text": lambda net, learner: learner.verify(
        inputs(), square, num_steps="3"
    ),
    "verify with layer_rules that are a list": lambda net, learner: learner.verify(
        inputs(), square, layer_rules=["shd"]
    ),
    "verify with exclude that is a number": lambda net, learner: learner.verify(inputs(), square, exclude=3),
    "verify with a forward that is a number": lambda net, learner: learner.verify(inputs(), square, forward=3),
    "detach a number": lambda net, learner: stllr_plugin.detach(3),
    "a preset that is a list": lambda net, learner: STLLRRule.preset(["shd"]),
    "a feedback matrix of another shape": lambda net, learner: learner.feedback.__setitem__("1", torch.zeros(1)),
    "a feedback matrix that is a number": lambda net, learner: learner.feedback.__setitem__("1", 3),
    "a feedback matrix for no neuron": lambda net, learner: learner.feedback.__setitem__("nobody", torch.zeros(1)),
}


@pytest.mark.parametrize("call", members(OTHERS))
def test_other_methods(call):
    net, learner = attached()
    with pytest.raises(STLLRError):
        call(net, learner)


def test_the_result_of_another_learner():
    """Both are in their first sequence."""
    net, other = attached(reset_after_step=False)
    result = other.run(net, inputs(), None, square)
    net, learner = attached(reset_after_step=False)
    learner.run(net, inputs(), None, square)
    with pytest.raises(STLLRError, match="another learner"):
        learner.run(net, inputs(), None, square, continue_from=result)


def test_no_model():
    for model in (None, 3, nn.Linear, [nn.Linear(2, 2)]):
        with pytest.raises(STLLRError):
            STLLRLearner(model, rule=RULE)
