"""Training without a loss: learning_signal="one" and learner.reinforce, against STDP written out number by number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import NoGradientCapturedError, RuleError, StateError, STLLRLearner, STLLRRule
from stllr_plugin.stdp import Plasticity

snntorch = pytest.importorskip("snntorch", reason="needs the extra 'snntorch'")

STEPS, BATCH = 7, 3
RULE = STLLRRule.preset("stdp", alpha_pre=0.75, lambda_pre=0.6, alpha_post=-1.25, lambda_post=0.35)


class Net(nn.Module):
    """Two layers; keeps what each layer received and gave out."""

    def __init__(self, spatial: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one = nn.Conv2d(2, 3, 2) if spatial else nn.Linear(5, 6)
        self.lif1 = snntorch.Leaky(beta=0.75, threshold=0.5, init_hidden=True)
        self.two = nn.Linear(12 if spatial else 6, 4)
        self.lif2 = snntorch.Leaky(beta=0.75, threshold=0.5, init_hidden=True)
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {"one": [], "two": []}
        with torch.no_grad():
            self.one.weight.mul_(3)
            self.two.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lif1(self.one(x))
        flat = y.flatten(1)
        z = self.lif2(self.two(flat))
        self.seen["one"].append((x.detach(), y.detach()))
        self.seen["two"].append((flat.detach(), z.detach()))
        return z


def inputs(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(STEPS, BATCH, *shape, generator=rng) < 0.4).float()


def written_out(
    seen: Sequence[tuple[Tensor, Tensor]], rewards: Sequence[Any], decay: float | None = None, w: Tensor | None = None
) -> Tensor:
    """The change that the rewards ask for: sum_t r[t] * (e[t] or E[t]), for a dense layer, one number at a time.

    With the weight, its square is the factor of the first term and 1 - weight that of the second.
    """
    outs, ins = seen[0][1].shape[1], seen[0][0].shape[1]
    change = torch.zeros(outs, ins, dtype=torch.float64)
    for i, j in itertools.product(range(outs), range(ins)):
        kept = 0.0
        tr_x, tr_y = [0.0] * BATCH, [0.0] * BATCH
        up = 1.0 if w is None else w[i, j].item() ** 2
        down = 1.0 if w is None else 1 - w[i, j].item()
        for (x, y), reward in zip(seen, rewards, strict=True):
            e = []
            for b in range(BATCH):
                pre, post = x[b, j].item(), y[b, i].item()
                tr_x[b] = 0.6 * tr_x[b] + pre
                tr_y[b] = 0.35 * tr_y[b] + post
                e.append(0.75 * up * post * tr_x[b] - 1.25 * down * pre * tr_y[b])
            if decay is None:
                change[i, j] += sum(r * value for r, value in zip(reward, e, strict=True))
            else:
                kept = decay * kept + sum(e)
                change[i, j] += reward[0] * kept
    return change


def patches(seen: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """A convolution as one dense layer per place: samples and places joined."""
    found = []
    for x, y in seen:
        columns = nn.functional.unfold(x, 2)  # [B, C*k*k, places]
        found.append((columns.transpose(1, 2), y.flatten(2).transpose(1, 2)))
    return found


def same_for_all(reward: float) -> list[float]:
    return [reward] * BATCH


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reward", [1.0, -0.5])
def test_stdp(reward: float) -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE)
    for x in inputs(5):
        net(x)
        learner.reinforce(reward)
    rewards = [same_for_all(reward)] * STEPS
    close(net.one.weight.grad, -written_out(net.seen["one"], rewards))
    close(net.two.weight.grad, -written_out(net.seen["two"], rewards))
    assert net.one.bias.grad is None
    assert net.two.bias.grad is None


def test_a_reward_for_each_sample_at_some_steps() -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE)
    rewards = []
    for t, x in enumerate(inputs(5)):
        net(x)
        reward = torch.tensor([1.0, -2.0, 0.5]) * t if t % 2 else torch.zeros(BATCH)
        if t % 2:
            learner.reinforce(reward)
        rewards.append(reward.tolist())
    close(net.one.weight.grad, -written_out(net.seen["one"], rewards))
    close(net.two.weight.grad, -written_out(net.seen["two"], rewards))


def test_eligibility_that_waits_for_a_reward() -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE, plasticity=Plasticity(eligibility_decay=0.8))
    rewards = []
    for t, x in enumerate(inputs(5)):
        net(x)
        reward = {3: 1.0, 6: -0.25}.get(t, 0.0)
        if reward:
            learner.reinforce(torch.tensor(reward))
        rewards.append(same_for_all(reward))
    close(net.one.weight.grad, -written_out(net.seen["one"], rewards, decay=0.8))
    close(net.two.weight.grad, -written_out(net.seen["two"], rewards, decay=0.8))
    sizes = [p.numel() * p.element_size() for p in (net.one.weight, net.two.weight)]
    assert learner.memory_usage()["eligibility"] == sum(sizes)
    learner.reset()
    assert learner.memory_usage()["eligibility"] == 0


@pytest.mark.parametrize("decay", [None, 0.5])
def test_changes_that_depend_on_the_weight(decay: float | None) -> None:
    net = Net()
    plasticity = Plasticity(decay, potentiation=torch.square, depression=lambda w: 1 - w)
    learner = STLLRLearner(net, rule=RULE, plasticity=plasticity)
    for x in inputs(5):
        net(x)
        learner.reinforce()
    for name in ("one", "two"):
        weight = getattr(net, name).weight
        close(weight.grad, -written_out(net.seen[name], [same_for_all(1.0)] * STEPS, decay, weight.detach()))


def test_convolution() -> None:
    """Places share weights, so that their changes are summed like those of samples."""
    net = Net(spatial=True)
    learner = STLLRLearner(net, rule=RULE)
    for x in inputs(2, 3, 3):
        net(x)
        learner.reinforce()
    seen = patches(net.seen["one"])
    total = torch.zeros(3, 8, dtype=torch.float64)
    for place in range(seen[0][0].shape[1]):
        total += written_out([(x[:, place], y[:, place]) for x, y in seen], [same_for_all(1.0)] * STEPS)
    close(net.one.weight.grad.flatten(1), -total)


def test_an_optimizer_moves_the_weights_along_the_eligibility() -> None:
    net = Net()
    sgd = torch.optim.SGD(net.parameters(), lr=0.125)
    optimizer = STLLRLearner(net, sgd, rule=RULE, reset_after_step=False)
    before = net.one.weight.detach().clone()
    moved = torch.zeros_like(before).double()
    for t, x in enumerate(inputs(5)):
        net(x)
        optimizer.reinforce(2.0)
        optimizer.step()
        optimizer.zero_grad()
        rewards = [same_for_all(0.0)] * t + [same_for_all(2.0)]
        moved += 0.125 * written_out(net.seen["one"], rewards)
    close(net.one.weight.detach() - before, moved)


def test_two_rewards_of_a_step_add_up() -> None:
    grads = []
    for rewards in ((3.0,), (1.0, 2.0)):
        net = Net()
        learner = STLLRLearner(net, rule=RULE)
        for x in inputs(5):
            net(x)
        for reward in rewards:
            learner.reinforce(reward)
        grads.append(net.one.weight.grad)
    torch.testing.assert_close(*grads)


def test_the_eligibility_of_any_rule_can_be_reinforced() -> None:
    """Three factors: psi may be a function of the membrane, and the reward the third. Summed spikes give the same."""
    rule = STLLRRule(psi="sigmoid")
    found = []
    for signal in ("one", "bp"):
        net = Net()
        del net.two, net.lif2
        net.forward = lambda x, net=net: net.lif1(net.one(x))  # type: ignore[method-assign]
        learner = STLLRLearner(net, rule=rule, learning_signal=signal)
        for x in inputs(5):
            y = net(x)
            if signal == "one":
                learner.reinforce(0.5)
            else:
                (-0.5 * y.sum()).backward()
        found.append(net.one.weight.grad)
    torch.testing.assert_close(*found)


def test_parametrized_weights_are_reinforced_through_their_parametrization() -> None:
    net = Net()
    plain = Net()
    for model in (net, plain):
        if model is net:
            nn.utils.parametrizations.weight_norm(model.one)
        learner = STLLRLearner(model, rule=RULE)
        for x in inputs(5):
            model(x)
            learner.reinforce()
            learner.reinforce()
    weight = plain.one.weight.detach()
    norm = weight.norm(dim=1, keepdim=True)
    expected = (plain.one.weight.grad * weight / norm).sum(1, keepdim=True)
    torch.testing.assert_close(net.one.parametrizations.weight.original0.grad, expected, rtol=1e-4, atol=1e-4)


def test_samples_past_their_end_change_nothing() -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE)
    lengths = torch.tensor([2, 7, 4])
    learner.reset(lengths=lengths)
    rewards = []
    for t, x in enumerate(inputs(5)):
        net(x)
        learner.reinforce()
        rewards.append((t < lengths).double().tolist())
    close(net.one.weight.grad, -written_out(net.seen["one"], rewards))


def test_a_readout_learns_from_a_loss_at_the_same_time() -> None:
    """A last layer without a neuron has no spikes: it learns from the loss of the user, and nothing below does."""
    net = Net()
    readout = nn.Linear(4, 2)
    model = nn.Sequential(net, readout)
    learner = STLLRLearner(model, rule=RULE)
    for x in inputs(5):
        out = model(x)
        learner.reinforce()
        out.sum().backward()
    close(net.one.weight.grad, -written_out(net.seen["one"], [same_for_all(1.0)] * STEPS))
    assert readout.weight.grad.norm() > 0
    assert net.two.bias.grad is None


def test_step_counts_what_reinforce_gave() -> None:
    net = Net()
    optimizer = STLLRLearner(net, torch.optim.SGD(net.parameters(), 0.1), rule=RULE)
    net(inputs(5)[0])
    with pytest.raises(NoGradientCapturedError):
        optimizer.step()
    optimizer.reinforce()
    optimizer.step()
    with pytest.raises(StateError, match="no time step ran"):  # step() has ended the sequence
        optimizer.reinforce()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "decay above 1": (lambda: Plasticity(1.5), "eligibility_decay"),
    "decay of another type": (lambda: Plasticity(True), "eligibility_decay"),
    "plasticity with a loss": (
        lambda: STLLRLearner(Net(), rule="dvs_gesture", plasticity=Plasticity()),
        'learning_signal="one"',
    ),
    "reinforce with a loss": (lambda: STLLRLearner(Net(), rule="dvs_gesture").reinforce(), "loss.backward"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises(RuleError, match=text):
        make()


@pytest.mark.parametrize(
    ("reward", "decay", "text"),
    [
        (torch.ones(2), None, "2 rewards for a batch of 3"),
        (torch.ones(3, 4), None, "one per sample"),
        (torch.ones(3), 0.5, "summed over the batch"),
        (float("nan"), None, "finite"),
        ("good", None, "finite"),
    ],
)
def test_rewards_that_do_not_fit(reward: Any, decay: float | None, text: str) -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE, plasticity=Plasticity(decay))
    net(inputs(5)[0])
    with pytest.raises(StateError, match=text):
        learner.reinforce(reward)


def test_nothing_to_reinforce_under_no_grad() -> None:
    net = Net()
    learner = STLLRLearner(net, rule=RULE)
    with torch.no_grad():
        net(inputs(5)[0])
    with pytest.raises(StateError, match="no_grad"):
        learner.reinforce()


def test_the_preset_needs_no_further_word() -> None:
    net = Net()
    learner = STLLRLearner(net, rule="stdp")
    assert learner.learning_signal == "one"
