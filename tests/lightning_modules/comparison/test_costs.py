"""Formulas of the paper against numbers written out, and operations counted from spikes against loops written out."""

import pytest
import snntorch as snn
import torch
from torch import nn

from lightning_modules import RecurrentSNN, SpikingClassifier
from lightning_modules.comparison.costs import (
    Learning,
    counted_energy,
    energy_pj,
    format_count,
    format_energy,
    learning_macs,
    learning_values,
)
from lightning_modules.comparison.counting import _reached, count_operations
from lightning_modules.comparison.signal_costs import price_of
from lightning_modules.comparison.training import RunError, _check_price
from lightning_modules.tasks.rules import loss_signals
from stllr_plugin import STLLRRule
from stllr_plugin.signals import SIGNALS, LearningSignal

BPTT = Learning(through_time=True)
STLLR = Learning(through_time=False, noncausal=True)
OTTT = Learning(through_time=False)
SLTT = Learning(through_time=False, trace=False)
TESS = Learning(through_time=False, noncausal=True, signal="tess")


def test_macs_of_a_small_network():
    connections = 700 * 450 + 450 * 20
    assert learning_macs(BPTT, connections, 100, 90) == 2 * 100 * 324_000 == 64_800_000
    assert learning_macs(STLLR, connections, 100, 90) == 3 * 90 * 324_000 == 87_480_000
    assert learning_macs(OTTT, connections, 100, 90) == 2 * 90 * 324_000
    assert learning_macs(SLTT, connections, 100, 90) == 2 * 90 * 324_000
    assert learning_macs(TESS, connections, 100, 90) == 2 * 90 * 324_000  # nothing is passed down


@pytest.mark.parametrize(
    ("steps", "supervised", "published"),  # gigaMACs of BPTT and S-TLLR in the paper's tables
    [(20, 5, (6.06, 2.27)), (10, 5, (6.82, 5.12)), (10, 10, (6.82, 10.26)), (10, 5, (22.81, 17.22))],
)
def test_ratios_of_macs_are_the_published_ones(steps, supervised, published):
    ratio = learning_macs(STLLR, 1000, steps, supervised) / learning_macs(BPTT, 1000, steps, supervised)
    assert ratio == pytest.approx(published[1] / published[0], rel=0.01)


@pytest.mark.parametrize(("steps", "published"), [(20, (16.13, 1.61)), (10, (18.12, 3.62)), (100, (0.961, 0.01922))])
def test_ratios_of_memory_are_the_published_ones(steps, published):
    ratio = learning_values(BPTT, 500, steps) / learning_values(STLLR, 500, steps)
    assert ratio == steps / 2 == pytest.approx(published[0] / published[1], rel=0.01)


def test_memory_of_rules_with_fewer_traces():
    assert [learning_values(one, 500, 20) for one in (BPTT, STLLR, OTTT, SLTT)] == [10_000, 1000, 500, 0]


def test_energy():
    assert energy_pj(1000, 2000) == pytest.approx(4.6 * 1000 + 0.9 * 2000)
    counts = {
        "forward_macs": 1,
        "forward_additions": 10,
        "dense_macs": 100,
        "learning_macs": 5,
        "learning_additions": 0,
    }
    assert counted_energy(counts) == pytest.approx({"forward": 13.6, "dense": 460.0, "learning": 23.0})
    assert [format_energy(x) for x in (3.0, 4600.0, 2.5e6, 1e9)] == ["3 pJ", "4.6 nJ", "2.5 uJ", "1 mJ"]
    assert [format_count(x) for x in (12, 4500, 2.5e6, 1.234e9)] == ["12", "4.5 k", "2.5 M", "1.23 G"]


def edge(synapse, rule, neuron="1"):
    return {"synapse": synapse, "neuron": neuron, "rule": rule.describe(), "spiking": True}


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(4, 6, (3, 1), padding=(0, 1), groups=2, dilation=(2, 1)),
        nn.Conv1d(4, 6, 5, padding=2),
        nn.Linear(5, 3),
    ],
)
def test_pairs_that_spikes_reach_are_counted_one_by_one(module):
    torch.manual_seed(0)
    shape = {nn.Conv2d: (2, 4, 7, 5), nn.Conv1d: (2, 4, 9), nn.Linear: (2, 5)}[type(module)]
    inputs = torch.rand(shape) < 0.3
    plain = type(module)(
        **{
            name: getattr(module, name)
            for name in module.__constants__
            if name
            in (
                "in_features",
                "out_features",
                "in_channels",
                "out_channels",
                "kernel_size",
                "stride",
                "padding",
                "dilation",
                "groups",
            )
        },
        bias=False,
    )
    nn.init.constant_(plain.weight, 1.0)
    expected = torch.zeros(shape[0])
    for sample in range(shape[0]):
        for place in torch.nonzero(inputs[sample]):
            alone = torch.zeros(1, *shape[1:])
            alone[(0, *place)] = 1.0
            expected[sample] += (plain(alone) != 0).sum()
    assert _reached(module, inputs).tolist() == expected.tolist()


@pytest.mark.parametrize("algorithm", ["bptt", "stllr", "ottt", "sltt", "tess"])
def test_operations_of_a_small_network_written_out(algorithm):
    """Two layers 4-3-2, three time steps, the last two supervised; the second sample is one step shorter."""
    torch.manual_seed(0)
    beta, threshold = 0.8, 0.5
    network = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta, threshold=threshold, init_hidden=True), nn.Linear(3, 2))
    frames = torch.randint(0, 3, (2, 3, 4)).float()
    frames[1, 2] = 0
    lengths = [3, 2]
    rule = STLLRRule.preset("dvs_gesture") if algorithm == "stllr" else None
    if algorithm in ("ottt", "sltt", "tess"):
        rule = STLLRRule.preset(algorithm)
    task = SpikingClassifier(network, num_classes=2, algorithm=algorithm, rule=rule, supervise_last=2)
    edges = None if rule is None else [edge("0", rule)]
    batches = [(frames, torch.tensor(lengths), torch.tensor([0, 1]))]
    found = count_operations(task, batches, edges, "tess" if algorithm == "tess" else "bp")

    expected = dict.fromkeys(
        ("forward_additions", "forward_macs", "dense_macs", "learning_additions", "learning_macs"), 0.0
    )
    fired = 0.0
    weight, bias = network[0].weight.detach(), network[0].bias.detach()
    for sample, length in enumerate(lengths):
        membrane, spikes, seen = torch.zeros(3), torch.zeros(3), torch.zeros(4, dtype=torch.bool)
        for t in range(length):
            x = frames[sample, t]
            reset = (membrane > threshold).float() * threshold
            membrane = beta * membrane + weight @ x + bias - reset
            spikes = (membrane > threshold).float()
            ones, others, y = int((x == 1).sum()), int((x > 1).sum()), int(spikes.sum())
            seen |= x > 0
            expected["forward_additions"] += 3 * ones + 2 * y
            expected["forward_macs"] += 3 * others
            expected["dense_macs"] += 12 + 6
            fired += y / 3
            supervised = t >= length - 2
            if algorithm == "bptt":
                expected["learning_additions"] += 3 * ones + 2 * y
                expected["learning_macs"] += 3 * others + 6
            elif supervised:
                expected["learning_additions"] += 2 * y  # the readout's plain gradient
                expected["learning_macs"] += 6 if algorithm != "tess" else 0  # the signal, through the readout
                if algorithm != "sltt":
                    expected["learning_macs"] += 3 * int(seen.sum())
                if (
                    algorithm == "tess"
                ):  # the layer's classifier of -1 and 1: two classes read the spikes, teach 3 neurons
                    expected["learning_additions"] += 2 * y + 2 * 3
                if algorithm != "ottt":  # the non-causal term, or the causal one without a trace
                    expected["learning_additions"] += 3 * ones
                    expected["learning_macs"] += 3 * others
    assert fired > 0
    assert {name: found[name] for name in expected} == pytest.approx({k: v / 2 for k, v in expected.items()})
    assert found["rates"] == pytest.approx({"1": fired / sum(lengths)})
    assert (found["connections"], found["neurons"], found["samples"]) == (18, 5, 2)
    assert task.training and not any(module._forward_hooks for module in network.modules())


def test_a_readout_of_membranes_has_one_product_and_recurrence_passes_nothing_down():
    """Learning of a recurrent network 6-5-3, all steps supervised: only the input layer's products are as in others."""
    network = RecurrentSNN(6, hidden=5, num_classes=3, threshold=0.2)
    rule = STLLRRule.preset("dvs_gesture")
    pairs = (("fc1", "lif1"), ("lif1.recurrent", "lif1"), ("readout.linear", "readout.integrator"))
    edges = [edge(synapse, rule, neuron) for synapse, neuron in pairs]
    task = SpikingClassifier(network, num_classes=3, rule=rule)
    frames = torch.ones(1, 4, 6)
    spikes = []
    handle = network.lif1.register_forward_hook(lambda module, args, output: spikes.append(output[0].detach() != 0))
    layers = count_operations(task, [(frames, torch.tensor([4]), torch.tensor([0]))], edges)["layers"]
    handle.remove()
    assert torch.stack(spikes).any()
    seen = torch.stack(spikes).int().cumsum(0) > 0  # neurons that have spiked so far, [T, 5]
    one_earlier = torch.cat((torch.zeros(1, 5, dtype=torch.bool), seen[:-1]))

    assert layers["fc1"]["learning_macs"] == layers["fc1"]["learning_additions"] == 4 * 6 * 5
    assert layers["readout.linear"]["learning_additions"] == 0
    assert layers["readout.linear"]["learning_macs"] == 3 * int(seen.sum()) + 4 * 15
    assert layers["lif1.recurrent"]["learning_macs"] == 5 * int(one_earlier.sum())


@pytest.mark.parametrize(
    ("signal", "shape", "additions", "macs"),
    [
        ("local", (6,), 2 * 3 * 2, 3 * 6),  # 2 of 6 neurons fire, 3 classes; the gradient of the classifier as well
        ("local_random", (6,), 3 * 2, 3 * 6),
        ("tess", (6,), 3 * 2 + 3 * 6, 0),
        ("tess", (2, 3), 2 + 3 * 2, 3 * 2),  # averages of two channels
        ("drtp", (6,), 6, 0),
        ("dfa", (6,), 0, 3 * 6),
        ("sign_dfa", (6,), 3 * 6, 0),
    ],
)
def test_what_makes_the_signals_is_counted(signal, shape, additions, macs):
    """At two of three steps."""

    class Layer(nn.Module):
        is_spiking = True

        def forward(self, x):
            return torch.tensor([1.0, 0, 0, 1, 0, 0]).reshape(1, *shape)

    network = nn.Sequential(Layer(), nn.Flatten(), nn.Linear(6, 3))
    task = SpikingClassifier(network, num_classes=3, supervise_last=2)
    batch = (torch.zeros(1, 3, 6), torch.tensor([3]), torch.tensor([0]))
    layers = count_operations(task, [batch], [], signal)["layers"]
    found = layers[f"0: {signal}"]
    assert (found["learning_additions"], found["learning_macs"]) == (2 * additions, 2 * macs)


def test_weights_that_norse_cells_hold_are_counted():
    """Input 4, a recurrent cell of 3 neurons, 2 classes; one neuron fires at each step, by its bias-free input."""
    norse = pytest.importorskip("norse.torch")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = norse.LIFRecurrentCell(4, 3, p=norse.LIFParameters(tau_syn_inv=1000.0, tau_mem_inv=1000.0))
            self.readout = nn.Linear(3, 2)
            with torch.no_grad():
                self.cell.input_weights.zero_()[0] = 10.0
                self.cell.recurrent_weights.zero_()
            self.state = None

        def reset_states(self):
            self.state = None

        def forward(self, x):
            spikes, self.state = self.cell(x, self.state)
            self.fired.append(int(spikes.sum()))
            return self.readout(spikes)

    network = Network()
    network.fired = []
    task = SpikingClassifier(network, num_classes=2)
    frames = torch.tensor([[[1.0, 1, 0, 0]] * 3])
    found = count_operations(task, [(frames, torch.tensor([3]), torch.tensor([0]))], None)
    assert sum(network.fired[:-1]) > 0
    assert found["connections"] == 4 * 3 + 3 * 3 + 3 * 2
    assert found["layers"]["cell.input_weights"]["forward_additions"] == 3 * 2 * 3
    assert found["layers"]["cell.recurrent_weights"]["forward_additions"] == 3 * sum(network.fired[:-1])
    assert found["layers"]["cell.recurrent_weights"]["recurrent"] and found["rates"].keys() == {"cell"}


def test_learning_is_read_from_the_edges():
    assert Learning.of(None) == BPTT
    assert Learning.of([edge("0", STLLRRule.preset("dvs_gesture"))]) == STLLR
    assert Learning.of([edge("0", STLLRRule.preset("ottt"))]) == OTTT
    assert Learning.of([edge("0", STLLRRule.preset("sltt"))]) == SLTT
    assert Learning.of([edge("0", STLLRRule.preset("tess"))], "tess") == TESS


def test_a_signal_of_unknown_cost_is_refused(monkeypatch):
    """It is not counted as another one; and each that can be trained with has its price."""
    task = SpikingClassifier(nn.Linear(6, 3), num_classes=3)
    batch = (torch.zeros(1, 3, 6), torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(ValueError, match="'mine' costs is not known; known are bp, dfa.* classmethod cost"):
        count_operations(task, [batch], [], "mine")
    for name in loss_signals():
        assert len(price_of(name)(torch.ones(1, 4), 3)) == 2
    monkeypatch.setitem(SIGNALS, "mine", type("Mine", (LearningSignal,), {}))
    with pytest.raises(ValueError, match="'mine' costs is not known"):
        count_operations(task, [batch], [], "mine")


def test_a_run_whose_signal_cannot_be_counted_is_refused_before_it():
    task = SpikingClassifier(nn.Linear(6, 3), num_classes=3)
    task.learning_signal = "mine"
    with pytest.raises(RunError, match="'mine' costs is not known"):
        _check_price(task)
