"""Mistakes that would train on the wrong thing, or on nothing, are errors that say what to do."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import (
    AttachmentError,
    NoGradientCapturedError,
    SequenceInputError,
    StateError,
    STLLRLearner,
    STLLRRule,
)
from stllr_plugin.neurons.base import register_adapter
from stllr_plugin.neurons.own import FiringAdapter
from stllr_plugin.stdp import Plasticity
from stllr_plugin.surrogates import SurrogateSpike

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")

RULE = STLLRRule(1.0, 0.8, -0.3, 0.5)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def inputs(steps: int = 6, batch: int = 3, size: int = 5) -> Tensor:
    return (torch.rand(steps, batch, size, generator=torch.Generator().manual_seed(0)) < 0.5).float() * 2


def hidden_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), snn.Leaky(0.8, threshold=0.4, init_hidden=True), nn.Linear(4, 2))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), snn.Leaky(0.8, init_hidden=True))
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.body(x)
        return self.a(spikes), self.b(spikes)


@pytest.mark.parametrize("signal", ["dfa", "drtp", "tess"])
def test_a_loss_on_another_module_than_the_output(signal):
    model = TwoHeads()
    learner = STLLRLearner(model, sgd(model), rule=RULE, learning_signal=signal)  # takes b, which is registered last
    if learner.needs_target:
        learner.set_target(torch.tensor([0, 1, 0]))
    model(inputs()[0])[0].sum().backward()
    before = model.body[0].weight.clone()
    with pytest.raises(NoGradientCapturedError, match=r"no error came to module 'b'.*output="):
        learner.step()
    assert torch.equal(before, model.body[0].weight)


@pytest.mark.parametrize("signal", ["dfa", "sign_dfa"])
def test_a_loss_on_two_heads_of_which_one_is_taken_for_the_output(signal):
    model = TwoHeads()
    learner = STLLRLearner(model, sgd(model), rule=RULE, learning_signal=signal)
    a, b = model(inputs()[0])
    (a.sum() + b.sum()).backward()
    with pytest.raises(StateError, match=r"the loss also sees what 'a' made.*output="):
        learner.step()
    learner.reset()
    model(inputs()[0])[1].sum().backward()  # the other head enters no loss
    learner.step()
    learner.detach()
    learner = STLLRLearner(model, sgd(model), rule=RULE, learning_signal=signal, output="b")
    a, b = model(inputs()[0])
    (a.sum() + b.sum()).backward()
    learner.step()


def test_a_network_without_synapses():
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.lif = nn.Parameter(torch.rand(4, 5)), snn.Leaky(0.8, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(x @ self.weight.t())

    model = Raw()
    learner = STLLRLearner(model, sgd(model), rule=RULE)
    model(inputs()[0]).sum().backward()
    with pytest.raises(NoGradientCapturedError, match="no synapse that the learner knows feeds a neuron"):
        learner.step()


def test_a_readout_that_is_set_after_the_first_step_is_trained():
    model = hidden_net()
    learner = STLLRLearner(model, sgd(model), rule=RULE, learning_signal="local")
    changes = []
    for _ in range(2):
        learner.zero_grad()
        learner.set_target(torch.tensor([0, 1, 0]))
        for x in inputs():
            model(x).sum().backward()
        before = learner.feedback["1"].detach().clone() if len(learner.feedback) else None
        learner.step()
        changes.append(None if before is None else (learner.feedback["1"] - before).abs().max().item())
        learner.feedback["1"] = torch.rand(2, 4)
    assert all(change > 0 for change in changes)


@pytest.mark.parametrize("signal", ["drtp", "local", "tess"])
def test_a_sequence_that_begins_by_itself_does_not_take_the_target_of_the_last(signal):
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(5, 4), norse.LIFCell(), nn.Linear(4, 2), norse.LICell())
    learner = STLLRLearner(model, sgd(model), rule=RULE, learning_signal=signal)
    learner.set_target(torch.tensor([0, 1, 0]))
    state = None
    for x in inputs():
        output, state = model(x, state)
        output.sum().backward()
    with pytest.raises(StateError, match="set_target"):
        model(inputs()[0], None)
    learner.reset()
    learner.set_target(torch.tensor([1, 1, 0]))
    model(inputs()[0], None)[0].sum().backward()


def test_a_model_with_its_own_loop_in_a_stream():
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(5, 4), snn.Leaky(0.8)

        def forward(self, x: Tensor) -> Tensor:
            mem, record = self.lif.reset_mem(), []
            for step in x:
                spikes, mem = self.lif(self.fc(step), mem)
                record.append(spikes)
            return torch.stack(record)

    with (
        STLLRLearner(Looping(), rule=RULE) as learner,
        pytest.raises(SequenceInputError, match=r"3 time steps when it was given one.*learner\.online"),
    ):
        next(iter(learner.stream(inputs())))


def test_random_steps_of_a_stream_that_goes_on():
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(5, 4), norse.LIFCell())
    with STLLRLearner(model, rule=RULE, supervise_random=2) as learner:
        first = learner.stream(inputs())
        for _ in first:
            pass
        with pytest.raises(StateError, match="Pass the whole sequence to one stream"):
            next(iter(learner.stream(inputs(), first.state)))


def test_sequences_of_one_step_do_not_pile_up():
    class OneStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(5, 4), snn.Leaky(0.8)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x), torch.zeros(len(x), 4))[0]

    model = OneStep()
    with STLLRLearner(model, rule=RULE) as learner:
        for _ in range(4):
            model(inputs()[0]).sum().backward()
        assert [edge.name for edge in learner.report().edges] == ["fc->lif"]


@pytest.mark.parametrize("decay", [None, 0.5])
def test_rewards_at_steps_that_are_not_supervised(decay):
    """The last supervised step is not rewarded again, and an eligibility decays at each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), snn.Leaky(0.8, threshold=0.2, init_hidden=True))
    rule = STLLRRule.preset("stdp")
    seen: list[float] = []
    plasticity = Plasticity(eligibility_decay=decay)
    learner = STLLRLearner(model, rule=rule, supervise_last=2, num_steps=4, plasticity=plasticity)
    for x in inputs(4):
        model(x)
        model.zero_grad()
        learner.reinforce()
        gradient = model[0].weight.grad
        seen.append(0.0 if gradient is None else gradient.abs().sum().item())
    assert seen[:2] == [0.0, 0.0] and all(value > 0 for value in seen[2:])
    learner.detach()
    learner = STLLRLearner(model, rule=rule, supervise_random=1, num_steps=4, plasticity=plasticity)
    learner.supervision.sequence.drawn = frozenset({1})
    seen.clear()
    for x in inputs(4):
        model(x)
        model.zero_grad()
        learner.reinforce()
        gradient = model[0].weight.grad
        seen.append(0.0 if gradient is None else gradient.abs().sum().item())
    assert seen[0] == 0.0 and seen[1] > 0
    assert seen[2:] == pytest.approx([0.0, 0.0] if decay is None else [seen[1] / 2, seen[1] / 4])


# Neurons of the user's own.


class Own(nn.Module):
    def __init__(self, order: int = 1) -> None:
        super().__init__()
        self.spike = SurrogateSpike("sigmoid")
        self.surrogate = nn.Module()
        self.order = order

    def decide(self, v: Tensor) -> Tensor:
        return self.spike(v)

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        membrane = 0.9 * membrane + current
        spikes = self.decide(v=membrane - 1)
        membrane = membrane - spikes.detach()
        return (spikes, membrane)[:: self.order]


class Misspelt(Own):
    pass


class FiresWithAModule(nn.Module):
    class Spike(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return SurrogateSpike("sigmoid")(v)

    def __init__(self) -> None:
        super().__init__()
        self.fire = self.Spike()
        self.membrane: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        self.membrane = current if self.membrane is None else 0.9 * self.membrane + current
        spikes = self.fire(self.membrane - 1)
        self.membrane = self.membrane - spikes.detach()
        return spikes


@register_adapter
class OwnAdapter(FiringAdapter):
    kind = Own
    fire = "decide"


@register_adapter
class MisspeltAdapter(FiringAdapter):
    kind = Misspelt
    fire = "desire"


@register_adapter
class ModuleAdapter(FiringAdapter):
    kind = FiresWithAModule
    states = ("membrane",)


def test_a_method_called_by_keyword():
    model = nn.ModuleList([nn.Linear(5, 4), Own()])
    with STLLRLearner(model, rule=RULE):
        spikes, _ = model[1](model[0](inputs()[0]), torch.zeros(3, 4))
        (spikes - 1).square().sum().backward()
    assert model[0].weight.grad.any()


def test_a_misspelt_method_leaves_the_model_alone():
    model = nn.ModuleList([nn.Linear(5, 4), Misspelt()])
    with pytest.raises(AttachmentError, match="it has no method 'desire'"):
        STLLRLearner(model, rule=RULE)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_spikes_that_are_not_returned_first():
    model = nn.ModuleList([nn.Linear(5, 4), Own(order=-1)])
    with (
        STLLRLearner(model, rule=RULE),
        pytest.raises(StateError, match="does not return what decide gave as the first"),
    ):
        model[1](model[0](inputs()[0]), torch.zeros(3, 4))


def test_a_module_as_the_spike_function_and_states_in_plain_attributes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), FiresWithAModule())
    fire = model[1].fire
    learner = STLLRLearner(model, sgd(model), rule=RULE)
    loss = learner.two_pass(
        model[1], lambda spikes: (spikes.sum(0) - 2).square().sum(), lambda: torch.stack([model(x) for x in inputs()])
    )
    assert loss > 0 and model[0].weight.grad.any()
    learner.detach()
    assert model[1].fire is fire and "fire" not in model[1].__dict__


# Outputs of other forms.


class Output(NamedTuple):
    logits: Tensor
    spikes: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(5, 4), snn.Leaky(0.8, init_hidden=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Output:
        spikes = self.lif(self.fc(x))
        return Output(self.out(spikes), spikes.detach())


def test_named_outputs_stay_named():
    model = Named()
    with STLLRLearner(model, rule=RULE, learning_signal="dfa", output="") as learner:
        output = model(inputs()[0])
        assert type(output) is Output
        output.logits.sum().backward()
        assert model.fc.weight.grad is not None
        learner.reset()
    with STLLRLearner(model, sgd(model), rule=RULE) as learner:
        learner.two_pass(
            model,
            lambda logits: logits.square().sum(),
            lambda: torch.stack([model(x).logits for x in inputs()]),
        )


def test_online_detaches_outputs_in_dictionaries():
    class InADict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = hidden_net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    model = InADict()
    with STLLRLearner(model, rule=RULE) as learner, learner.online(model, lambda out: out["logits"].sum()):
        assert not any(model(x)["logits"].requires_grad for x in inputs())
    assert model.net[0].weight.grad.any()
