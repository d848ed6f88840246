"""Networks in two threads do not disturb each other: nothing of the learner's is shared by the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import assert_right, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 4, 4, 6, 6, 3


class Masked(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.arange(N * IN).reshape(N, IN) % 3 != 0)


class Waiting(nn.Module):
    """Computes a weight, and lets the other thread do all of its work meanwhile."""

    meanwhile: Callable[[], None] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        work, self.meanwhile = self.meanwhile, None
        if work is not None:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return 1.0 * weight


def mask(layer: nn.Linear) -> nn.Linear:
    parametrize.register_parametrization(layer, "weight", Masked())
    return layer


def plain_norm(layer: nn.Linear) -> nn.Linear:
    return torch.nn.utils.weight_norm(layer)


KINDS: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "weight_norm": parametrizations.weight_norm,
    "a mask": mask,
    "orthogonal": parametrizations.orthogonal,
    "the old weight_norm": plain_norm,
    "no parametrization": lambda layer: layer,
}


def network(change: Callable[[nn.Linear], nn.Linear]) -> nn.Sequential:
    return build(
        lambda: nn.Sequential(
            change(nn.Linear(IN, N)), snn.Leaky(0.9, threshold=0.4, init_hidden=True), nn.Linear(N, OUT)
        )
    )


def train(net: nn.Module, updates: int = 3) -> dict[str, Tensor]:
    """Some updates, and the gradient after them."""
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.05), rule=RULE)
    for seed in range(updates):
        learner.zero_grad()
        for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed)):
            net(step).square().mean().backward()
        gradients = copied(net)
        learner.step()
    return {name: value for name, value in gradients.items() if value.any()}


@pytest.mark.parametrize("at_call", [1, 2, 4])
@pytest.mark.parametrize("kind", members(KINDS))
def test_a_network_that_trains_while_another_is_in_the_middle_of_a_call(kind, at_call):
    """The other thread works from within a call of this one's layer, so that the order does not depend on chance."""
    want = train(network(kind))
    outer, inner, found = network(lambda layer: layer), network(kind), {}
    waiting = Waiting()
    parametrize.register_parametrization(outer[0], "weight", waiting)
    calls = 0

    def before(module: nn.Module, args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at_call:
            waiting.meanwhile = lambda: found.update(train(inner))

    outer[0].register_forward_pre_hook(before)
    train(outer)
    assert found
    assert_right(found, want)


def test_without_a_learner_they_do_not_disturb_each_other_either():
    """What the test above does, with ordinary gradients."""

    def plain(net: nn.Module) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for seed in range(3):
            optimizer.zero_grad()
            for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed)):
                net[1].reset_mem()
                net(step).square().mean().backward()
            optimizer.step()
        return copied(net)

    want = plain(network(mask))
    outer, inner, found = network(lambda layer: layer), network(mask), {}
    waiting = Waiting()
    parametrize.register_parametrization(outer[0], "weight", waiting)
    waiting.meanwhile = lambda: found.update(plain(inner))
    plain(outer)
    assert_right(found, {name: value for name, value in want.items() if value.any()})


def test_two_threads_at_once():
    """Gradients of two threads that really take turns."""
    want = {seed: train(network(lambda layer: layer)) for seed in (0, 1)}
    found: dict[int, dict[str, Tensor]] = {}
    nets = {seed: network(lambda layer: layer) for seed in (0, 1)}
    threads = [threading.Thread(target=lambda s=s: found.update({s: train(nets[s])})) for s in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, gradients in want.items():
        assert_right(found[seed], gradients)


def test_nothing_is_left_behind():
    """Torch's cache is off again after a training, and empty."""
    train(network(mask))
    assert parametrize._cache_enabled == 0
    assert not parametrize._cache


def test_an_own_block_of_cached_weights_goes_on_working():
    net = network(mask)
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    with parametrize.cached():
        for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
            net(step).square().mean().backward(retain_graph=True)
        found = copied(net)
    other = network(mask)
    STLLRLearner(other, sgd(other), rule=RULE)
    for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(0)):
        other(step).square().mean().backward()
    learner.step()
    assert_right(found, copied(other))
