"""learner.verify() passes where the gradients are right: every kind of network and loop that is supported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from stllr_plugin import STLLRLearner
from stllr_plugin.verify import Verification, verify
from tests.cases import wiring  # noqa: F401  registers more structures
from tests.cases.drive import learner_rule
from tests.cases.modules import CaseNet
from tests.cases.neurons import READOUTS, readout_case
from tests.cases.random_networks import random_networks
from tests.cases.rules import RULES
from tests.cases.structures import STRUCTURES, structure_case
from tests.cases.synapses import SYNAPSES, synapse_case

snn = pytest.importorskip("snntorch")
norse = pytest.importorskip("norse.torch")
quant = pytest.importorskip("snntorch.functional.quant")

T, B, INPUTS, HIDDEN, CLASSES = 6, 4, 6, 5, 3


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 2 * torch.rand(T, B, INPUTS), torch.randint(CLASSES, (B,))


def assert_right(
    result: Verification, *, unchecked: tuple[str, ...] = (), error: float = 1e-10, steps: int = T
) -> None:
    assert result.passed, result
    assert {row.name for row in result.unchecked} == set(unchecked), result
    assert result.dtype == "float64" and not result.notes, result
    assert result.largest_error < error, result
    assert result.steps == steps, result


# The networks of the exactness tests, which have all wirings.


def check_case(case: Any, rule: str) -> None:
    model = CaseNet(case.net, dtype=torch.float64, hidden=case.hidden)
    result = verify(model, case.xs, case.loss, rule=learner_rule(RULES[rule]), steps=True)
    assert_right(result, steps=len(case.xs))


@pytest.mark.parametrize("name", [*STRUCTURES][::2])
def test_structures(name):
    check_case(structure_case(name), [*RULES][len(name) % len(RULES)])


@pytest.mark.parametrize("name", [*SYNAPSES][::4])
def test_synapses(name):
    check_case(synapse_case(name), [*RULES][len(name) % len(RULES)])


@pytest.mark.parametrize("name", READOUTS)
def test_readouts(name):
    check_case(readout_case(name), "default")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_all_structures_and_synapses(rule):
    for name in STRUCTURES:
        check_case(structure_case(name), rule)
    for name in SYNAPSES:
        check_case(synapse_case(name), rule)


@pytest.mark.slow
def test_random_networks():
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @given(case=random_networks(), rule=st.sampled_from([*RULES]))
    def check(case: Any, rule: str) -> None:
        model = CaseNet(case.net, dtype=torch.float64, hidden=case.hidden)
        result = verify(model, case.xs, case.loss, rule=learner_rule(RULES[rule]), steps=True)
        assume(not any(row.verdict == "refused" for row in result.rows))  # a silent layer before a batch norm
        assert result.passed and not result.unchecked and not result.notes, result
        assert "staircase" not in str(result), result

    check()


# As users write it.


class Explicit(nn.Module):
    """snnTorch's tutorials: states in variables, the loop inside forward, records stacked."""

    def __init__(self, kind: str = "Leaky") -> None:
        super().__init__()
        torch.manual_seed(1)
        options: dict[str, Any] = {"beta": 0.9, "threshold": 0.5}
        if kind in ("Synaptic", "RSynaptic"):
            options["alpha"] = 0.8
        if kind.startswith("R"):
            options["linear_features"] = HIDDEN
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), getattr(snn, kind)(**options)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.8, threshold=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        states = states if isinstance(states, tuple) else (states,)
        spikes, membranes = [], []
        for step in x:
            out = self.lif1(self.fc1(step), *states)
            # of the recurrent kinds, the spikes are a state as well
            spk1, states = out[0], out if len(out) == len(states) else out[1:]
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


LOSSES = {
    "count": lambda y: lambda out: F.cross_entropy(out[0].sum(0), y),
    "rate": lambda y: lambda out: sum(F.cross_entropy(step, y) for step in out[0]) / T,
    "membrane": lambda y: lambda out: sum(F.cross_entropy(step, y) for step in out[1]) / T,
    "largest": lambda y: lambda out: F.cross_entropy(out[1].max(0).values, y) + 0.1 * out[0].mean(),
}


@pytest.mark.parametrize("kind", ["Leaky", "RLeaky", "Synaptic", "RSynaptic"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loop_inside_forward(batch, kind, loss):
    x, y = batch
    assert_right(verify(Explicit(kind), x, LOSSES[loss](y), rule="dvs_gesture"))


def hidden_net(**options: Any) -> nn.Sequential:
    torch.manual_seed(1)
    options = {"beta": 0.9, "threshold": 0.5, "init_hidden": True, **options}
    readout = snn.Leaky(**options, output=True)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), snn.Leaky(**options), nn.Linear(HIDDEN, CLASSES), readout)


@pytest.mark.parametrize("rule", ["dvs_gesture", "shd", "mvsec", "ottt", "sltt", "stdp"])
def test_hidden_states_and_presets(batch, rule):
    x, y = batch
    net = hidden_net()
    options = {"rule": rule, "learning_signal": "bp"}
    assert_right(verify(net, x, lambda out: F.cross_entropy(out[0], y), **options))
    assert_right(verify(net, [*x], lambda out, t: t * F.cross_entropy(out[1], y) if t % 2 else None, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"learn_beta": True, "learn_threshold": True},
        {"reset_mechanism": "zero", "reset_delay": False},
        {"inhibition": True},
        {"state_quant": quant.state_quant(num_bits=4, uniform=True)},
        {"graded_spikes_factor": 0.5, "learn_graded_spikes_factor": True},
        {"spike_grad": snn.surrogate.fast_sigmoid(5)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_neurons(batch, options):
    x, y = batch
    error = 1e-6 if "state_quant" in options else 1e-10  # snnTorch's levels are float32
    result = verify(hidden_net(**options), x, lambda out: F.cross_entropy(out[0], y), rule="dvs_gesture")
    assert_right(result, error=error)


def test_supervise_last(batch):
    x, y = batch
    for net, loss in (
        (hidden_net(), lambda out: F.cross_entropy(out[0], y)),
        (Explicit("RLeaky"), lambda out: F.cross_entropy(out[0].sum(0), y)),
    ):
        learner = STLLRLearner(net, rule="dvs_gesture", supervise_last=2)
        assert_right(learner.verify(x, loss))


def test_layer_rules_frozen_and_excluded_layers(batch):
    x, y = batch
    net = hidden_net()
    net[0].bias.requires_grad_(False)
    net.insert(2, nn.Linear(HIDDEN, HIDDEN))
    learner = STLLRLearner(net, rule="dvs_gesture", layer_rules={"0": "shd", "4": "ottt"}, exclude=["3"])
    result = learner.verify(x, lambda out: F.cross_entropy(out[0], y))
    assert_right(result, unchecked=("3.weight", "3.bias"))
    assert all("excluded" in row.advice for row in result.unchecked)


def test_convolutions_pooling_and_batch_norm(batch):
    _, y = batch
    torch.manual_seed(2)
    options = {"beta": 0.9, "threshold": 0.5, "init_hidden": True}
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        snn.Leaky(**options),
        nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        snn.Leaky(**options),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )
    running = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.rand(T, B, 2, 10, 10)
    assert_right(verify(net, x, lambda out: F.cross_entropy(out, y), rule="cifar10_dvs"))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, running[name], rtol=0, atol=0)


class Norse(nn.Module):
    """Cells with explicit states, given to forward and returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        p = norse.LIFParameters(v_th=torch.tensor(0.1))
        self.fc, self.lif = nn.Linear(INPUTS, HIDDEN), norse.LIFCell(p)
        self.rec = norse.LIFRecurrentCell(HIDDEN, HIDDEN, p)
        self.out, self.li = nn.Linear(HIDDEN, CLASSES), norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s1, s2, s3 = (None, None, None) if state is None else state
        z, s1 = self.lif(self.fc(x), s1)
        z, s2 = self.rec(z, s2)
        v, s3 = self.li(self.out(z), s3)
        return v, (s1, s2, s3)


def test_norse_cells(batch):
    x, y = batch
    assert_right(verify(Norse(), 3 * x, lambda v: F.cross_entropy(v, y), rule="dvs_gesture"))


@pytest.mark.parametrize("sequence", [False, True])
def test_norse_containers(batch, sequence):
    x, y = batch
    torch.manual_seed(3)
    p = norse.LIFParameters(v_th=torch.tensor(0.1))
    if sequence:
        parts = [norse.Lift(nn.Linear(INPUTS, HIDDEN)), norse.LIF(p), nn.Linear(HIDDEN, CLASSES), norse.LI()]
    else:
        parts = [nn.Linear(INPUTS, HIDDEN), norse.LIFCell(p), nn.Linear(HIDDEN, CLASSES), norse.LICell()]
    net = norse.SequentialState(*parts)
    assert_right(verify(net, 3 * x, lambda v: F.cross_entropy(v, y), rule="dvs_gesture"))


class Branches(nn.Module):
    """A block that serves two branches, a recurrence by hand, two readouts, one of them an integrator by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = parametrizations.weight_norm(nn.Linear(INPUTS, HIDDEN))
        self.block, self.lif = nn.Linear(HIDDEN, HIDDEN), snn.Leaky(beta=0.9, threshold=0.3)
        self.back, self.lif0 = nn.Linear(HIDDEN, HIDDEN, bias=False), snn.Leaky(beta=0.8, threshold=0.3)
        self.head, self.other = nn.Linear(2 * HIDDEN, CLASSES), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem0, one, two = self.lif0.reset_mem(), self.lif.reset_mem(), self.lif.reset_mem()
        before = torch.zeros(x.shape[1], HIDDEN)
        integrated, rest = torch.zeros(x.shape[1], CLASSES), []
        for step in x:
            spk, mem0 = self.lif0(self.first(step) + self.back(before), mem0)
            before = spk
            a, one = self.lif(self.block(spk), one)
            b, two = self.lif(self.block(1 - spk), two)
            integrated = 0.9 * integrated + self.head(torch.cat((a, b), 1))
            rest.append(self.other(spk))
        return integrated, torch.stack(rest)


def test_shared_blocks_recurrences_by_hand_and_two_readouts(batch):
    x, y = batch

    def loss(out: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(out[0], y) + F.cross_entropy(out[1].mean(0), y)

    assert_right(verify(Branches(), x, loss, rule="dvs_gesture"))


def test_a_loop_of_the_users_own(batch):
    """forward= serves every other way to run a model, here a list of modules and states in the script."""
    x, y = batch
    torch.manual_seed(5)
    neuron = snn.Leaky(beta=0.9, threshold=0.4, learn_beta=True)
    net = nn.ModuleDict({"fc": nn.Linear(INPUTS, HIDDEN), "lif": neuron, "out": nn.Linear(HIDDEN, CLASSES)})

    def run(model: Any, x: Tensor) -> list[Tensor]:
        mem, record = model["lif"].reset_mem(), []
        for step in x:
            spikes, mem = model["lif"](model["fc"](step), mem)
            record.append(model["out"](spikes))
        return record

    result = verify(net, x, lambda record: F.cross_entropy(torch.stack(record).mean(0), y), rule="shd", forward=run)
    assert_right(result)


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + ((x * 8).round() / 8 - x).detach()


def test_a_quantiser_in_between_is_no_spiking_neuron(batch):
    x, y = batch
    net = hidden_net()
    net.insert(1, Quantised())
    result = verify(net, x, lambda out: F.cross_entropy(out[0], y), rule="dvs_gesture")
    assert_right(result)
    assert "staircase" in str(result)


def test_a_weight_penalty_and_a_layer_that_is_not_used(batch):
    x, y = batch
    net = hidden_net()
    net.register_module("spare", nn.Linear(2, 2))
    net.forward = lambda x: nn.Sequential.forward(net[:4], x)  # type: ignore[method-assign]
    with pytest.raises(Exception, match="No layer or neuron of the model ran"):
        verify(net, x, lambda out: F.cross_entropy(out[0], y), rule="dvs_gesture")  # the lambda holds the original

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = hidden_net(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return self.body(x)[0], sum(p.pow(2).sum() for p in self.body.parameters())

    result = verify(Net(), x, lambda out: F.cross_entropy(out[0], y) + 0.1 * out[1], rule="dvs_gesture")
    assert_right(result)
    assert {row.name for row in result.rows if row.verdict == "no gradient"} == {"spare.weight", "spare.bias"}


def test_a_neuron_whose_input_acts_a_step_later_is_not_checked(batch):
    x, y = batch
    torch.manual_seed(6)
    cell = norse.LSNNRecurrentCell(INPUTS, HIDDEN, norse.LSNNParameters(v_th=torch.tensor(0.05)))
    net = norse.SequentialState(cell, nn.Linear(HIDDEN, CLASSES))
    result = verify(net, 20 * x, lambda out: F.cross_entropy(out, y), rule="dvs_gesture")
    assert result.passed, result
    assert result.unchecked and all("step later" in row.advice for row in result.unchecked), result


class EverySecondStep(Explicit):
    """The upper layer runs at every second step."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for t, step in enumerate(x):
            spikes, mem1 = self.lif1(self.fc1(step), mem1)
            if t % 2:
                spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
                record.append(spikes)
        return torch.stack(record), mem2


def test_a_layer_at_every_second_step(batch):
    x, y = batch
    assert_right(verify(EverySecondStep(), x, lambda out: F.cross_entropy(out[0].sum(0), y), rule="dvs_gesture"))


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_spikingjelly(batch, kind):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    x, y = batch
    torch.manual_seed(7)
    parts = [nn.Linear(INPUTS, HIDDEN), getattr(neuron, kind)(), nn.Linear(HIDDEN, CLASSES), getattr(neuron, kind)()]
    assert_right(verify(nn.Sequential(*parts), 3 * x, lambda out: F.cross_entropy(out, y), rule="dvs_gesture"))


def test_a_threshold_that_only_acts_later_is_no_failure(batch):
    """The loss is on membranes: the threshold decides about the reset of the next step, through which nothing flows."""
    x, y = batch
    torch.manual_seed(8)
    options = {"beta": 0.9, "threshold": 0.5, "reset_mechanism": "zero", "init_hidden": True}
    neuron = snn.Leaky(**options, learn_threshold=True, output=True)
    result = verify(
        nn.Sequential(nn.Linear(INPUTS, CLASSES), neuron), x, lambda out: F.cross_entropy(out[1], y), rule="shd"
    )
    assert_right(result)
    assert [row.verdict in ("ok", "no gradient") for row in result.rows if row.name == "1.threshold"] == [True]
