"""learner.verify(): its arguments, its messages, its table, its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import STLLRError, STLLRLearner
from stllr_plugin.verify import Row, Verification, VerificationError, verify
from stllr_plugin.verify.__main__ import main

snn = pytest.importorskip("snntorch")

T, B, INPUTS, CLASSES = 5, 4, 6, 3
SCRIPT = """
import snntorch as snn, torch
from torch import nn
from torch.nn.functional import cross_entropy

class Unknown(nn.Module):
    def forward(self, current):
        return snn.surrogate.atan()(current - 0.2)

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3), snn.Leaky(beta=0.9, init_hidden=True, threshold=0.3, output=True))
    y = torch.tensor([0, 1, 2, 0])
    return net, torch.rand(5, 4, 6), lambda out: cross_entropy(out[1] + out[0], y)

def wrong():
    net, x, loss = make()
    return nn.Sequential(net[0], Unknown(), nn.Linear(3, 3), net[1]), x, loss, "shd"

def as_dict():
    net, x, loss = make()
    return {"model": net, "inputs": x, "loss_fn": loss, "rule": "ottt", "supervise_last": 2}

def nothing():
    return None
"""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, CLASSES), snn.Leaky(beta=0.9, init_hidden=True, threshold=0.3, output=True))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(T, B, INPUTS)


def of_membrane(output: Any) -> Tensor:
    return output[1].pow(2).mean()


def test_the_result_as_data_and_as_a_table(x):
    result = verify(net(), x, of_membrane, rule="shd")
    assert result.passed and result.raise_if_failed() is result
    assert {row.name for row in result.rows} == {"loss", "0.weight", "0.bias", "0->1"}
    assert "passed" in str(result) and "0->1" in str(result) and "float64" in str(result)
    failed = Verification((Row("rule", "a->b", 0.5, "FAILED", "look there"),), "float64", 1e-6, 3)
    assert not failed.passed and failed.failures and "a->b: FAILED: look there" in str(failed)
    with pytest.raises(VerificationError, match="look there"):
        failed.raise_if_failed()
    assert issubclass(VerificationError, STLLRError)
    nothing = Verification((Row("rule", "a->b", None, "not checked", "since"),), "float64", 1e-6, 3)
    assert not nothing.passed and "nothing could be checked" in str(nothing)


def test_ways_to_give_the_batch(x):
    model = net()
    learner = STLLRLearner(model, rule="dvs_gesture")
    for inputs in (x, list(x), tuple(x)):
        assert learner.verify(inputs, of_membrane).steps == T
    assert learner.verify(x, lambda out, t: t * of_membrane(out)).passed
    assert learner.verify(x, lambda out: of_membrane(out), rule="shd").passed

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.body(step)[1] for step in x])

    result = verify(Looping(), x, lambda record: record.pow(2).mean(), rule="shd")
    assert result.passed and result.steps == T
    only = verify(Looping(), x[:1], lambda record: record.pow(2).mean(), rule="shd", steps=False)
    assert only.passed and only.steps == 1


def test_a_model_that_does_not_run_in_float64(x):
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Any:
            if self.body[0].weight.dtype != torch.float32:
                raise TypeError("only float32 here")
            return self.body(x)

    result = verify(Single(), x, of_membrane, rule="dvs_gesture")
    assert result.passed and result.dtype == "float32" and result.tolerance == 1e-3
    assert "only float32 here" in str(result)


def test_another_learning_signal_is_said_not_to_be_checked(x):
    model = nn.Sequential(nn.Linear(INPUTS, INPUTS), snn.Leaky(beta=0.9, init_hidden=True), *net())
    with STLLRLearner(model, rule="dvs_gesture", learning_signal="dfa") as learner:
        result = learner.verify(x, of_membrane)
    assert result.passed and "'dfa' is not checked" in str(result)
    assert "'tess' is not checked" in str(verify(model, x, of_membrane, rule="tess"))


@pytest.mark.parametrize(
    ("inputs", "loss_fn", "options", "message"),
    [
        (5, of_membrane, {"steps": True}, "inputs is a int"),
        ([], of_membrane, {}, "no time step"),
        (None, "loss", {}, "loss_fn is a str"),
        (torch.rand(T, B, INPUTS), lambda out: 1.0, {}, "loss_fn returned float"),
        (torch.rand(T, B, INPUTS), lambda out: out[1], {}, "loss_fn returned a tensor of shape"),
        (torch.rand(T, B, INPUTS), lambda out: None, {}, "loss_fn returned NoneType"),
        (torch.rand(T, B, INPUTS), lambda out: out[1].detach().sum(), {}, "requires no gradient"),
        (torch.rand(T, B, INPUTS), of_membrane, {"forward": lambda m, x: x}, "No layer or neuron"),
        (torch.rand(T, B, INPUTS), of_membrane, {"forward": lambda m, x: x, "steps": True}, "leave out steps=True"),
    ],
)
def test_messages(inputs, loss_fn, options, message):
    with pytest.raises(VerificationError, match=message):
        verify(net(), inputs, loss_fn, rule="shd", **options)


def test_a_model_that_cannot_be_copied(x):
    model = net()
    model.held = iter(range(3))
    model.lock = __import__("threading").Lock()
    with pytest.raises(VerificationError, match="cannot be copied"):
        verify(model, x, of_membrane, rule="shd")


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_network.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["my_network:make"]) == 0
    assert "passed" in capsys.readouterr().out
    assert main(["my_network:as_dict", "--rule", "shd"]) == 0
    assert main(["my_network:make", "--steps", "--supervise-last", "2", "--exclude", "nothing_there"]) == 1
    assert "matches no module" in " ".join(capsys.readouterr().out.split())
    code = main(["my_network:wrong"])
    assert code == 1 and "refused" in capsys.readouterr().out
    for text, message in (
        ("my_network", "expected module:function"),
        ("my_networks:make", "no module 'my_networks'"),
        ("my_network:made", "no function 'made'"),
        ("my_network:nothing", "returned NoneType"),
    ):
        assert main([text]) == 2
        assert message in capsys.readouterr().err


def test_the_command_from_its_folder(tmp_path):
    (tmp_path / "my_network.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "stllr_plugin.verify", "my_network:make"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
