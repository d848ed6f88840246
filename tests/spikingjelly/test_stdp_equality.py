"""SpikingJelly's STDP learners give the gradients of rule="stdp".

Their conventions, and what they are here. Both traces hold the newest sample (convention "current"). STDPLearner decays
them by 1 - 1/tau, MSTDPLearner and MSTDPETLearner by exp(-1/tau). f_post and f_pre, functions of the weight (by default
the weight itself), are ``Plasticity.potentiation`` and ``depression``. The two with a reward apply the reward of a step
to the eligibility of the step before it, which here means calling ``reinforce`` before the model instead of after it;
MSTDPETLearner also divides each eligibility by tau_trace, which here is a factor of the reward, and takes no batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly", reason="needs the extra 'spikingjelly'")

from spikingjelly.activation_based import functional, learning, neuron  # noqa: E402

from stllr_plugin import STLLRLearner, STLLRRule  # noqa: E402
from stllr_plugin.stdp import Plasticity  # noqa: E402

STEPS = 8
WeightFactor = Callable[[Tensor], Tensor]


def identity(w: Tensor) -> Tensor:
    return w


def one(w: Tensor) -> Tensor:
    return torch.ones_like(w)


def soft_bound(w: Tensor) -> Tensor:
    return 1.5 - w


FACTORS: dict[str, tuple[WeightFactor, WeightFactor]] = {
    "their default": (identity, identity),
    "additive": (one, one),
    "soft bounds": (identity, soft_bound),
}


def dense() -> nn.Sequential:
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Linear(6, 8), neuron.IFNode(), nn.Linear(8, 5), neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None)
    ).double()
    return louder(net)


def spatial() -> nn.Sequential:
    torch.manual_seed(6)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), neuron.IFNode(), nn.Conv2d(4, 3, 2), neuron.IFNode(v_threshold=0.5)
    ).double()
    return louder(net)


def louder(net: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.5)
    return net


def inputs(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return (torch.rand(STEPS, *shape, generator=rng) < 0.5).double()


def rule(lambda_pre: float, lambda_post: float) -> STLLRRule:
    return STLLRRule.preset("stdp", lambda_pre=lambda_pre, lambda_post=lambda_post)


def assert_equal(mine: nn.Sequential, theirs: nn.Sequential) -> None:
    for one_, other in zip(mine, theirs, strict=True):
        if hasattr(one_, "weight"):
            assert other.weight.grad.abs().max() > 0.01
            torch.testing.assert_close(one_.weight.grad, other.weight.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize(("build", "shape"), [(dense, (3, 6)), (spatial, (3, 2, 5, 5))], ids=["dense", "conv"])
def test_stdp(build: Callable[[], nn.Sequential], shape: tuple[int, ...], factors: tuple[WeightFactor, ...]) -> None:
    mine, theirs = build(), build()
    f_pre, f_post = factors
    learners = [
        learning.STDPLearner("s", theirs[i], theirs[i + 1], tau_pre=2.5, tau_post=4.0, f_pre=f_pre, f_post=f_post)
        for i in (0, 2)
    ]
    learner = STLLRLearner(
        mine, rule=rule(1 - 1 / 2.5, 1 - 1 / 4.0), plasticity=Plasticity(None, potentiation=f_post, depression=f_pre)
    )
    for x in inputs(*shape):
        with torch.no_grad():
            theirs(x)
        for their in learners:
            their.step(on_grad=True)
        mine(x)
        learner.reinforce()
    assert_equal(mine, theirs)


def test_stdp_that_updates_at_every_step() -> None:
    """Two sequences with SGD: the weights stay the same through both."""
    mine, theirs = dense(), dense()
    before = copy.deepcopy(mine)
    learners = [
        learning.STDPLearner("s", theirs[i], theirs[i + 1], tau_pre=2.0, tau_post=2.0, f_pre=one, f_post=one)
        for i in (0, 2)
    ]
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.02)
    optimizer = STLLRLearner(
        mine, torch.optim.SGD(mine.parameters(), lr=0.02), rule=rule(0.5, 0.5), reset_after_step=False
    )
    for _ in range(2):
        for x in inputs(3, 6):
            with torch.no_grad():
                theirs(x)
            sgd.zero_grad()
            for their in learners:
                their.step(on_grad=True)
            sgd.step()
            optimizer.zero_grad()
            mine(x)
            optimizer.reinforce()
            optimizer.step()
        functional.reset_net(theirs)
        for their in learners:
            their.reset()
        optimizer.reset()
    for new, other, old in zip(mine.parameters(), theirs.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, other, rtol=1e-10, atol=1e-12)
        assert new.dim() == 1 or not torch.equal(new, old)  # biases stay


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_mstdp(factors: tuple[WeightFactor, ...], per_sample: bool) -> None:
    mine, theirs = dense(), dense()
    f_pre, f_post = factors
    learners = [
        learning.MSTDPLearner("s", theirs[i], theirs[i + 1], tau_pre=2.5, tau_post=4.0, f_pre=f_pre, f_post=f_post)
        for i in (0, 2)
    ]
    learner = STLLRLearner(
        mine,
        rule=rule(math.exp(-1 / 2.5), math.exp(-1 / 4.0)),
        plasticity=Plasticity(None, potentiation=f_post, depression=f_pre),
    )
    for t, x in enumerate(inputs(3, 6)):
        reward = torch.tensor([1.0, -0.5, 2.0]).double() + t if per_sample else math.sin(t + 1.0)
        with torch.no_grad():
            theirs(x)
        for their in learners:
            their.step(reward, on_grad=True)
        if t > 0:
            learner.reinforce(reward)  # for the step before
        mine(x)
    assert_equal(mine, theirs)


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_mstdpet(factors: tuple[WeightFactor, ...]) -> None:
    mine, theirs = dense(), dense()
    f_pre, f_post, tau = *factors, 3.0
    learners = [
        learning.MSTDPETLearner(
            "s", theirs[i], theirs[i + 1], tau_pre=2.5, tau_post=4.0, tau_trace=tau, f_pre=f_pre, f_post=f_post
        )
        for i in (0, 2)
    ]
    learner = STLLRLearner(
        mine,
        rule=rule(math.exp(-1 / 2.5), math.exp(-1 / 4.0)),
        plasticity=Plasticity(math.exp(-1 / tau), potentiation=f_post, depression=f_pre),
    )
    for t, x in enumerate(inputs(6)):
        reward = math.sin(t + 1.0)
        with torch.no_grad():
            theirs(x)
        for their in learners:
            their.step(reward, on_grad=True)
        if t > 0:
            learner.reinforce(reward / tau)
        mine(x.unsqueeze(0))
    assert_equal(mine, theirs)


def test_a_membrane_that_meets_the_threshold_counts_as_its_library_says() -> None:
    """psi is the spike that the neuron gave out: SpikingJelly fires at v = 0, where ``Spike`` alone says 0."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), neuron.IFNode(v_threshold=1.0))
    nn.init.ones_(net[0].weight)
    learner = STLLRLearner(net, rule=STLLRRule.preset("stdp", alpha_post=0.0))
    for _ in range(2):
        assert net(torch.ones(1, 1)).item() == 1.0
    learner.reinforce()
    assert net[0].weight.grad.item() == -1.5  # y * tr_x
