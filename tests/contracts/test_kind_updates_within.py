"""step() in the middle of a sequence: the network goes on as without a learner, or reset_after_step is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import utils
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


# Whoever never resets, or at other places.


def by_assignment(net: nn.Module) -> None:
    for module in net.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name in ("mem", "syn", "spk"):
                setattr(module, name, buffer.detach())


def in_place(net: nn.Module) -> None:
    for kind in (snn.Leaky, snn.Synaptic):
        kind.detach_hidden()


def nowhere(net: nn.Module) -> None:
    pass


def chunks(
    net: nn.Module,
    optimizer: Any,
    x: Tensor,
    *,
    before: Callable[[nn.Module], None] = nowhere,
    after: Callable[[nn.Module], None] = nowhere,
    size: int = 3,
) -> list[float]:
    """The losses of one sequence with an update after each few steps; states are detached before or after it."""
    found = []
    for chunk in x.split(size):
        optimizer.zero_grad()
        loss = torch.stack([cross_entropy(net(step)[1], torch.arange(B) % OUT) for step in chunk]).sum()
        found.append(float(loss))
        loss.backward()
        before(net)
        optimizer.step()
        after(net)
    return found


DETACHED = {
    "after the update": {"after": by_assignment},
    "before the update": {"before": by_assignment},
    "in place, before": {"before": in_place},
    "in place, after": {"after": in_place},
}


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("how", members(DETACHED))
@pytest.mark.parametrize("kind", members({name: NETWORKS[name] for name in ("Leaky", "Synaptic")}))
def test_a_script_that_never_resets(kind, how, sequences):
    net = build(kind, gain=1.5)
    plain = sgd(net)
    x = inputs()
    want = [chunks(net, plain, x, **how) for _ in range(sequences)]
    net = build(kind, gain=1.5)
    with told() as texts:
        learner = STLLRLearner(net, sgd(net), rule=RULE)
        found = [chunks(net, learner, x, **how) for _ in range(sequences)]
    assert found != want, "the reference would prove nothing"
    assert sum("reset_after_step" in text for text in texts) == 1, texts


def at_the_start(net: nn.Module) -> Callable[[int], None]:
    def reset(sequence: int) -> None:
        if sequence == 0:
            utils.reset(net)

    return reset


def at_each_end(net: nn.Module) -> Callable[[int], None]:
    return lambda sequence: utils.reset(net) if sequence else None


@pytest.mark.parametrize("resets", [at_the_start, at_each_end])
def test_resets_at_other_places(resets):
    """Inputs are made step by step here, so they say nothing."""
    net = build(NETWORKS["Leaky"])
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    reset = resets(net)
    with told() as texts:
        for sequence in range(2):
            reset(sequence)
            for _ in range(4):
                for _ in range(3):
                    net(torch.rand(B, IN))[0].sum().backward()
                learner.step()
    assert sum("reset_after_step" in text for text in texts) == 1, texts


@pytest.mark.parametrize("start", ["attached", "reset at the start"])
def test_spikingjelly(start):
    """Its states are numbers after a reset, one as good as the other."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    net = nn.Sequential(nn.Linear(IN, N), neuron.LIFNode(), nn.Linear(N, OUT))
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    assert net[1].v == 0.0 and isinstance(net[1].v, float)
    with told() as texts:
        for sequence in range(2):
            if start == "attached" or sequence == 0:
                functional.reset_net(net)
            for _ in range(4):
                for _ in range(3):
                    net(torch.rand(B, IN)).sum().backward()
                learner.step()
    assert sum("reset_after_step" in text for text in texts) == 1, texts


# Where each update does end a sequence, there is nothing to tell.


def evaluate(net: nn.Module) -> None:
    net.eval()
    utils.reset(net)
    with torch.no_grad():
        for step in inputs(7):
            net(step)
    net.train()


def try_out(net: nn.Module) -> None:
    """An evaluation of a script that does not call eval()."""
    utils.reset(net)
    with torch.no_grad():
        for step in inputs(7):
            net(step)
    utils.reset(net)


@pytest.mark.parametrize("first", [nowhere, evaluate, try_out])
@pytest.mark.parametrize("between", [nowhere, evaluate, try_out])
def test_a_script_that_leaves_resets_to_the_learner(between, first):
    net = build(NETWORKS["Leaky"]).double()
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    net.float()
    with told() as texts:
        first(net)
        for _ in range(4):
            for batch in range(3):
                chunks(net, learner, inputs(batch), size=T)
            between(net)
    assert not texts


@pytest.mark.parametrize("reset", [nowhere, utils.reset])
def test_several_ways_in_one_script(reset):
    """run(), stream() and two_pass() put states of their own in place."""
    net = build(NETWORKS["Leaky"])
    learner = STLLRLearner(net, sgd(net), rule=RULE)
    y = torch.arange(B) % OUT
    with told() as texts:
        for _ in range(3):
            reset(net)
            chunks(net, learner, inputs(), size=T)
            learner.run(net, inputs(), y, lambda output, y: cross_entropy(output[1], y), window=4)
            learner.step()
            for _, membrane in learner.stream(inputs()):
                membrane.square().sum().backward()
            learner.step()
            learner.two_pass(
                net[3],
                lambda membranes: membranes.sum(0).square().sum(),
                lambda: torch.stack([net(step)[1] for step in inputs()]),
            )
            learner.step()
            learner.zero_grad()
    assert not texts
