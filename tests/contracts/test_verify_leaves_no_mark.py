"""learner.verify() leaves model, optimizer, gradients, traces, states and random numbers exactly as they were."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stllr_plugin import STLLRLearner
from stllr_plugin.verify import verify

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")
numpy = pytest.importorskip("numpy")

T, B, INPUTS, HIDDEN, CLASSES = 6, 4, 6, 5, 3


def make(seed: int = 1) -> tuple[nn.Module, STLLRLearner]:
    torch.manual_seed(seed)
    options = {"beta": 0.9, "threshold": 0.4, "init_hidden": True}
    net = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(0.2),
        snn.RLeaky(**options, linear_features=HIDDEN),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(HIDDEN, CLASSES)),
        snn.Leaky(**options, output=True),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    return net, STLLRLearner(net, optimizer, rule="dvs_gesture", reset_after_step=False)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(T, B, INPUTS, generator=generator), torch.randint(CLASSES, (B,), generator=generator)


def everything(net: nn.Module, learner: STLLRLearner) -> dict[str, Any]:
    """All that can be seen, tensors copied."""
    found: dict[str, Any] = {}
    for name, module in net.named_modules():
        found[f"{name} class"] = type(module)
        found[f"{name} mode"] = module.training
        for part in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found[f"{name} {part}"] = [(key, id(hook)) for key, hook in getattr(module, part).items()]
        found[f"{name} attributes"] = {key: id(value) for key, value in vars(module).items()}
        for key, buffer in module._buffers.items():
            found[f"{name} buffer {key}"] = (id(buffer), None if buffer is None else buffer.detach().clone())
    for name, parameter in net.named_parameters():
        found[f"{name} value"] = (id(parameter), parameter._version, parameter.detach().clone())
        found[f"{name} grad"] = (id(parameter.grad), None if parameter.grad is None else parameter.grad.clone())
        found[f"{name} flag"] = parameter.requires_grad
    for edge, traces in learner.traces().items():
        for key, trace in traces.items():
            found[f"trace {edge} {key}"] = None if trace is None else trace.clone()
    found["optimizer"] = copy.deepcopy(learner.state_dict())
    found["report"] = str(learner.report())
    found["torch"] = torch.get_rng_state()
    found["python"] = random.getstate()
    found["numpy"] = numpy.random.get_state()[1].copy()
    found["modes"] = (torch.get_default_dtype(), torch.is_grad_enabled(), len(warnings.filters))
    return found


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, (tuple, list)) and not all(isinstance(item, int) for item in one):
        assert len(one) == len(other), where
        for first, second in zip(one, other, strict=True):
            assert_same(first, second, where)
    elif isinstance(one, numpy.ndarray):
        assert (one == other).all(), where
    else:
        assert one == other, where


def noisy(output: Any, y: Tensor) -> Tensor:
    random.random()
    numpy.random.rand()
    return F.cross_entropy(output[1] + 0.01 * torch.rand_like(output[1]), y)


@pytest.mark.parametrize("pending", [False, True], ids=["", "with the graph of unfinished steps"])
def test_in_the_middle_of_a_sequence(pending):
    x, y = batch()
    (net, learner), (twin, other) = make(), make()
    losses: dict[int, Any] = {}
    for which, (model, its) in enumerate(((net, learner), (twin, other))):
        torch.manual_seed(3)
        its.zero_grad()
        loss: Any = sum(F.cross_entropy(model(step)[1], y) for step in x[:3])
        if pending:
            losses[which] = loss
        else:
            loss.backward()
            its.step()
            F.cross_entropy(model(x[3])[1], y).backward()
    torch.manual_seed(4)
    random.seed(4)
    numpy.random.seed(4)
    before = everything(net, learner)
    result = learner.verify(x, lambda output: noisy(output, y))
    assert_same(before, everything(net, learner))
    assert result.passed, result
    # What follows is what it would have been.
    for which, (model, its) in enumerate(((net, learner), (twin, other))):
        torch.manual_seed(5)
        if pending:
            losses[which].backward()
        for step in x[4:]:
            F.cross_entropy(model(step)[1], y).backward()
        its.step()
    for one, another in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, another)


def test_a_model_that_is_not_attached_or_in_eval_mode():
    x, y = batch()
    net, learner = make()
    learner.detach()
    net.eval()
    before = everything(net, learner)
    assert verify(net, x, lambda output: noisy(output, y), rule="shd").passed
    assert learner.verify(x, lambda output: noisy(output, y)).passed  # also of a learner that has let go
    assert_same(before, everything(net, learner))


def test_after_an_error():
    x, _ = batch()
    net, learner = make()
    before = everything(net, learner)
    with pytest.raises(ZeroDivisionError):
        learner.verify(x, lambda output: output[1].sum() / 0 if 1 // 0 else output)
    assert_same(before, everything(net, learner))


def test_states_of_norse_and_of_other_modules():
    x, y = batch()
    p = norse.LIFParameters(v_th=torch.tensor(0.1))
    net = norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFRecurrentCell(HIDDEN, CLASSES, p))
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.1), rule="dvs_gesture")
    out, state = net(x[0])
    F.cross_entropy(out, y).backward()
    before = everything(net, learner)
    assert learner.verify(3 * x, lambda out: F.cross_entropy(out, y)).passed
    assert_same(before, everything(net, learner))
    F.cross_entropy(net(x[1], state)[0], y).backward()
    learner.step()


def test_inputs_that_the_model_changes_in_place():
    x, y = batch()
    steps = [*x.double()]
    kept = [step.clone() for step in steps]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            neuron = snn.Leaky(beta=0.9, init_hidden=True, output=True)
            self.body = nn.Sequential(nn.Linear(INPUTS, CLASSES), neuron)

        def forward(self, x: Tensor) -> Any:
            return self.body(x.mul_(2.0))

    torch.manual_seed(0)
    net = Net()
    assert verify(net, steps, lambda output: F.cross_entropy(output[1], y), rule="shd").passed
    assert_same(kept, steps)
    whole = x.double()
    verify(net, whole, lambda output: F.cross_entropy(output[1], y), rule="shd")
    assert torch.equal(whole, x.double())
