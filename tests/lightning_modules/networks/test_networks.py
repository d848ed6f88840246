"""The networks: one call is one time step, and every layer fires from the start."""

import pytest
import torch

from lightning_modules import RecurrentSNN, SpikingConvNet, SpikingMLP, TimescaleSNN
from lightning_modules.networks.blocks import make_neuron, make_readout, make_surrogate
from lightning_modules.tasks.states import spikes_of, spiking_modules

NETWORKS = {
    "conv": lambda: SpikingConvNet(size=34),
    "conv, plain weights": lambda: SpikingConvNet(size=34, weight_standardization=False, gain=2.0),
    "conv, pooled spikes": lambda: SpikingConvNet(size=34, pool="max", pool_currents=False, gain=3.0),
    "conv, no pool, leaky readout": lambda: SpikingConvNet(
        size=[20, 34], pool="none", readout="leaky", padding=2, gain=2.0
    ),
    "conv, dropout": lambda: SpikingConvNet(size=34, dropout=0.2),
    "conv, norse": lambda: SpikingConvNet(size=34, neuron="norse_lifbox"),
    "mlp": lambda: SpikingMLP(hidden=(50, 40)),
    "mlp, norse": lambda: SpikingMLP(hidden=(50,), neuron="norse_lifbox", readout="leaky"),
    "recurrent": lambda: RecurrentSNN(in_features=2 * 34 * 34, hidden=60, num_classes=10),
    "recurrent, standardised": lambda: RecurrentSNN(2 * 34 * 34, 60, 10, weight_standardization=True),
    "timescales": lambda: TimescaleSNN(2 * 34 * 34, 60, (0.5, 0.9, 0.97), 10, gain=4.0),
    "timescales, feed-forward": lambda: TimescaleSNN(2 * 34 * 34, 60, (0.5, 0.9), 10, recurrent=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_call_is_one_step_and_every_layer_fires(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    size = (20, 34) if "no pool" in name else (34, 34)
    fired = dict.fromkeys(spiking_modules(network, skip=("readout*",)), 0.0)
    for layer in fired:
        network.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: fired.__setitem__(
                layer, fired[layer] + float(spikes_of(output).detach().mean())
            )
        )
    steps = 10
    for _ in range(steps):
        logits = network((torch.rand(4, 2, *size) < 0.05).float())
        assert logits.shape == (4, 10) and logits.isfinite().all()
    assert fired
    for layer, total in fired.items():
        assert 0.005 < total / steps < 0.7, f"{layer} fires at {total / steps:.4f}"


def test_gain_is_the_initial_gain_of_standardised_weights():
    network = SpikingConvNet(size=34, gain=1.5)
    deviation = network.features.conv2.weight.flatten(1).std(1) * 300**0.5  # fan-in 12 x 5 x 5
    torch.testing.assert_close(deviation, torch.full((32,), 1.5), rtol=1e-3, atol=0)


def test_norse_neuron_behaves_like_snntorchs():
    """Same decay, threshold and input gain: membranes agree until the first spike (the resets differ)."""
    current = torch.full((2, 3), 0.15)
    leaky, box = make_neuron("leaky", 0.8, 10.0, "atan", 2.0), make_neuron("norse_lifbox", 0.8, 10.0, "atan", 2.0)
    for _ in range(6):
        leaky(current), box(current)
    torch.testing.assert_close(leaky.mem, box._state[0])


def test_norse_neuron_starts_anew_with_another_batch_size():
    box = make_neuron("norse_lifbox", 0.8, 1.0, "atan", 2.0)
    box(torch.ones(4, 3))
    assert box(torch.ones(2, 3)).shape == (2, 3)


def test_leaky_readout_integrates():
    readout = make_readout("leaky", 3, 2, beta=0.5)
    with torch.no_grad():
        drive = readout.linear(torch.ones(1, 3))
        readout(torch.ones(1, 3))
        torch.testing.assert_close(readout(torch.ones(1, 3)), 1.5 * drive)


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="Unknown pool 'mean'; known: max, avg, none"):
        SpikingConvNet(pool="mean")
    with pytest.raises(ValueError, match="Unknown neuron 'lif'"):
        make_neuron("lif", 0.5, 1.0, "atan", 2.0)
    with pytest.raises(ValueError, match="Unknown surrogate 'relu'"):
        make_surrogate("relu", 1.0)
    with pytest.raises(ValueError, match="Unknown readout 'mean'"):
        make_readout("mean", 3, 2, 0.5)
    with pytest.raises(ValueError, match="too small"):
        SpikingConvNet(size=8)
    with pytest.raises(ValueError, match="beta must lie in"):
        make_neuron("norse_lifbox", 1.0, 1.0, "atan", 2.0)
