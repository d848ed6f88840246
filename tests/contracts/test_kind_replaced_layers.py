"""What is replaced in a model while a learner is attached follows the rule as if attached afterwards, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from stllr_plugin import STLLRLearner
from tests.contracts.kinds import Gradients, assert_right_or_refused, copied, members, sgd
from tests.contracts.networks import RULE, build

T, B, IN, N, OUT = 6, 4, 6, 6, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(IN, N), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(N, N), snn.Leaky(0.8, init_hidden=True)
        self.out = nn.Linear(N, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x)))))


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def new_linear() -> nn.Linear:
    return build(lambda: nn.Linear(N, N), seed=5, gain=2.0)


def new_hidden_layer(net: Net) -> None:
    net.fc2 = new_linear()


def new_first_layer(net: Net) -> None:
    net.fc1 = new_linear()


def lora(net: Net) -> None:
    torch.manual_seed(3)
    net.fc2 = LoRA(net.fc2)


def new_neuron(net: Net) -> None:
    net.lif1 = snn.Leaky(0.5, threshold=0.7, init_hidden=True)


def neuron_of_another_type(net: Net) -> None:
    net.lif1 = snn.Synaptic(0.6, 0.9, init_hidden=True)


def a_layer_more(net: Net) -> None:
    net.lif1 = nn.Sequential(net.lif1, new_linear(), snn.Leaky(0.9, init_hidden=True))


def a_layer_less(net: Net) -> None:
    net.fc2, net.lif2 = nn.Identity(), nn.Identity()


def new_parameter(net: Net) -> None:
    net.fc1.weight = nn.Parameter(new_linear().weight.detach().clone())


def loaded_by_assignment(net: Net) -> None:
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)


def in_another_type(net: Net) -> None:
    net.double().float()


def weight_norm(net: Net) -> None:
    parametrizations.weight_norm(net.fc1)


def pruned(net: Net) -> None:
    prune.l1_unstructured(net.fc1, "weight", 0.5)


def wider(net: Net) -> None:
    """Units are added to a layer in place."""
    with torch.no_grad():
        net.fc1.weight = nn.Parameter(torch.cat([net.fc1.weight, net.fc1.weight[:2]]))
        net.fc1.bias = nn.Parameter(torch.cat([net.fc1.bias, net.fc1.bias[:2]]))
        net.fc2.weight = nn.Parameter(torch.cat([net.fc2.weight, net.fc2.weight[:, :2]], 1))


def swapped(net: Net) -> None:
    net.fc1, net.fc2 = net.fc2, net.fc1


def tied(net: Net) -> None:
    net.fc2.weight = net.fc1.weight


def frozen(net: Net) -> None:
    net.fc2.requires_grad_(False)


def activation_for_a_neuron(net: Net) -> None:
    net.lif1 = nn.ReLU()


CHANGES = {
    change.__name__: change
    for change in (
        *(new_hidden_layer, new_first_layer, lora, new_neuron, neuron_of_another_type, a_layer_more, a_layer_less),
        *(new_parameter, loaded_by_assignment, in_another_type, weight_norm, pruned, wider, swapped, tied, frozen),
        activation_for_a_neuron,
    )
}


def sequence(net: nn.Module, learner: STLLRLearner, seed: int) -> Gradients:
    learner.reset()
    net.zero_grad()
    for step in 2 * torch.rand(T, B, IN, generator=torch.Generator().manual_seed(seed)):
        net(step).square().sum().backward()
    return copied(net)


@pytest.mark.parametrize("with_optimizer", [False, True], ids=["gradients alone", "with an optimizer"])
@pytest.mark.parametrize("change", members(CHANGES))
def test_the_rule_as_if_attached_afterwards_or_an_error(change: Callable[[Net], None], with_optimizer):
    def train(late: bool) -> Gradients:
        net = build(Net)
        if late:
            change(net)
        learner = STLLRLearner(net, sgd(net) if with_optimizer else None, rule=RULE)
        if not late:
            sequence(net, learner, 0)
            if with_optimizer:
                learner.step()
            change(net)
        found = sequence(net, learner, 1)
        if with_optimizer:
            learner.step()
        return found

    want = {name: value for name, value in train(True).items() if value.any()}
    assert_right_or_refused(lambda: train(False), want)


@pytest.mark.parametrize("change", [new_hidden_layer, a_layer_less, new_neuron])
def test_the_report_lists_what_is_there(change):
    """Or the sequence after the change is refused."""
    net = build(Net)
    learner = STLLRLearner(net, rule=RULE)
    sequence(net, learner, 0)
    change(net)
    late = build(Net)
    change(late)
    afterwards = STLLRLearner(late, rule=RULE)
    sequence(late, afterwards, 1)

    def edges(one: STLLRLearner) -> Gradients:
        return {edge.name: torch.ones(1) for edge in one.report().edges}

    def found() -> Gradients:
        sequence(net, learner, 1)
        assert edges(learner).keys() == edges(afterwards).keys()
        return edges(learner)

    assert_right_or_refused(found, edges(afterwards))
