"""step() in the middle of a sequence: the network goes on as without a learner, or reset_after_step is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import members, sgd, told
from tests.contracts.networks import RULE, build, parameters

T, B, IN, N, OUT = 12, 4, 6, 8, 3


def inputs(seed: int = 0) -> Tensor:
    return torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed))


def keeps(neuron: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    """Two layers of neurons that keep their states themselves."""
    return lambda: nn.Sequential(
        nn.Linear(IN, N),
        neuron(init_hidden=True, **options),
        nn.Linear(N, OUT),
        snn.Leaky(0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )


class Explicit(nn.Module):
    """States in the loop's own hands, detached after each update as truncated backpropagation does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.l1, self.fc2, self.l2 = nn.Linear(IN, N), snn.Leaky(0.9), nn.Linear(N, OUT), snn.Leaky(0.9)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b = (self.l1.reset_mem(), self.l2.reset_mem()) if state is None else state
        spikes, a = self.l1(self.fc1(x), a)
        _, b = self.l2(self.fc2(spikes), b)
        return b, (a, b)


class Norse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            nn.Linear(IN, N), norse.LIFCell(parameters()), nn.Linear(N, OUT), norse.LICell()
        )

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.net(x, state)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Leaky": keeps(snn.Leaky, beta=0.9),
    "Synaptic": keeps(snn.Synaptic, alpha=0.8, beta=0.9),
    "RSynaptic": keeps(snn.RSynaptic, alpha=0.8, beta=0.9, linear_features=N),
    "RLeaky": keeps(snn.RLeaky, beta=0.9, linear_features=N),
    "states passed by hand": Explicit,
    "norse": Norse,
}


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    if hasattr(state, "_fields"):
        return type(state)(*(detached(part) for part in state))
    if isinstance(state, (list, tuple)):
        return type(state)(detached(part) for part in state)
    return state


def at_end_of(steps: int) -> set[int]:
    return set(range(steps - 1, T, steps))


UPDATES = {
    "after half of the steps": {T // 2 - 1},
    "after every three steps": at_end_of(3),
    "once, late": {T - 3, T - 1},
}


def losses(kind: Callable[[], nn.Module], updates: set[int], attached: bool, **options: Any) -> Tensor:
    """The loss at each step of two sequences. The weights stay, so it does not depend on the learner."""
    net = build(kind, gain=1.5)
    optimizer = sgd(net)
    if attached:
        optimizer = STLLRLearner(net, optimizer, rule=RULE, **options)
    keeping = isinstance(net, nn.Sequential)
    found = []
    for seed in range(2):
        for module in net.modules():
            if isinstance(module, snn.SpikingNeuron):
                module.reset_mem()
        if attached and not optimizer.reset_after_step:
            optimizer.reset()
        state, total = None, torch.zeros(())
        for t, step in enumerate(inputs(seed)):
            output, state = (net(step)[1], None) if keeping else net(step, state)
            loss = cross_entropy(output, torch.arange(B) % OUT)
            found.append(loss.detach())
            total = total + loss
            if t in updates or t == T - 1:
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                total, state = torch.zeros(()), detached(state)
                for module in net.modules():
                    if keeping and hasattr(module, "detach_hidden") and isinstance(module, snn.SpikingNeuron):
                        for name, buffer in module.named_buffers(recurse=False):
                            if name in ("mem", "syn", "spk", "syn_exc", "syn_inh"):
                                setattr(module, name, buffer.detach())
    return torch.stack(found)


@pytest.mark.parametrize("updates", members(UPDATES))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_the_same_network_or_a_word_about_it(kind, updates):
    want = losses(kind, updates, False)
    with told() as texts:
        found = losses(kind, updates, True)
        if not texts and torch.allclose(found, want, atol=1e-5):
            return
    assert any("reset_after_step" in text for text in texts), f"another network, and all that was said: {texts}"


@pytest.mark.parametrize("updates", members(UPDATES))
@pytest.mark.parametrize("kind", members(NETWORKS))
def test_with_the_advice_it_is_the_same_network(kind, updates):
    assert torch.allclose(losses(kind, updates, True, reset_after_step=False), losses(kind, updates, False), atol=1e-5)


@pytest.mark.parametrize("kind", members(NETWORKS))
def test_updates_between_sequences_need_no_word(kind):
    with told() as texts:
        found = losses(kind, set(), True)
    assert not texts
    assert torch.allclose(found, losses(kind, set(), False), atol=1e-5)
