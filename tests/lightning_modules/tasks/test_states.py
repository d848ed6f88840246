"""Hidden states: reset in this network and no other; which buffers and modules they are."""

import snntorch
import torch
from torch import nn

from lightning_modules.tasks.states import hidden_buffer_names, reset_states, spikes_of, spiking_modules
from stllr_plugin.nn import SequenceDropout
from tests.lightning_modules.helpers import SIZE, make_network


def run(network, steps=3):
    frame = torch.rand(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(steps):
            output = network(frame)
    return output


def test_reset_reaches_nested_neurons_and_no_other_network():
    first, second = make_network(0), make_network(1)
    run(first), run(second)
    before = second.features.lif2.mem.clone()
    reset_states(first)
    assert not first.features.lif1.mem.any() and not first.features.lif2.mem.any()
    assert before.any() and torch.equal(second.features.lif2.mem, before)


def test_after_reset_a_network_repeats_itself():
    for neuron in ("leaky", "norse_lifbox"):
        network = make_network(neuron=neuron, readout="leaky")
        once = run(network)
        assert not torch.equal(run(network), once)
        reset_states(network)
        assert torch.equal(run(network), once)


def test_reset_draws_a_new_dropout_mask():
    network = nn.Sequential(SequenceDropout(0.5))
    one = network(torch.ones(1, 200))
    assert torch.equal(network(torch.ones(1, 200)), one)
    reset_states(network)
    assert not torch.equal(network(torch.ones(1, 200)), one)


def test_hidden_buffers_are_the_states_alone():
    network = make_network(readout="leaky")
    names = hidden_buffer_names(network, prefix="network")
    assert names == ["network.features.lif1.mem", "network.features.lif2.mem", "network.readout.integrator.mem"]


def test_spiking_modules_of_both_libraries():
    assert list(spiking_modules(make_network())) == ["features.lif1", "features.lif2"]
    assert list(spiking_modules(make_network(neuron="norse_lifbox"))) == ["features.lif1", "features.lif2"]
    assert "readout.integrator" in spiking_modules(make_network(readout="leaky"))
    assert list(spiking_modules(make_network(readout="leaky"), skip=("readout*",))) == [
        "features.lif1",
        "features.lif2",
    ]
    from norse.torch import LICell, LIFCell

    assert list(spiking_modules(nn.Sequential(LIFCell(), LICell()))) == ["0"]


def test_spikes_are_the_first_output():
    spikes, membrane = snntorch.Leaky(beta=0.5)(torch.ones(1, 3), torch.zeros(1, 3))
    assert spikes_of((spikes, membrane)) is spikes
    assert spikes_of(spikes) is spikes
