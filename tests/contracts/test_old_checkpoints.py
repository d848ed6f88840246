"""A learner's checkpoint of 0.1.0 loads, and training goes on as it went on in 0.1.0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contracts.networks import assert_same, values
from tests.data.version_0_1_0.write import FOLDER, SIGNALS, make, train


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return torch.load(FOLDER / "learners.pt", weights_only=True)


@pytest.mark.parametrize("signal", SIGNALS)
def test_training_goes_on_as_in_0_1_0(saved, signal):
    before, after = saved[signal]["before"], saved[signal]["after"]
    net, learner = make(signal)
    net.load_state_dict(before["model"])
    learner.load_state_dict(before["learner"])
    now = learner.state_dict()
    for number, state in before["learner"]["state"].items():
        assert_same(now["state"][number], state)
    for name, matrix in before["learner"]["stllr"].get("feedback", {}).items():
        assert torch.equal(learner.feedback[name].detach(), matrix), name
    train(net, learner, range(2, 3))
    found = values(net)
    assert found.keys() == after.keys()
    for name, weight in after.items():
        assert not torch.equal(weight, before["model"][name]), f"{name}: nothing was learned in 0.1.0"
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_checkpoint_has_the_form_that_0_1_0_wrote(saved, signal):
    """So a checkpoint of today loads in 0.1.0 too."""
    old = saved[signal]["before"]["learner"]
    net, learner = make(signal)
    train(net, learner, range(2))
    new = learner.state_dict()
    assert new.keys() == old.keys() and new["stllr"].keys() == old["stllr"].keys()
    assert {key: new["stllr"][key] for key in ("rule", "layer_rules", "learning_signal")} == {
        key: old["stllr"][key] for key in ("rule", "layer_rules", "learning_signal")
    }
