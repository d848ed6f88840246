"""VGG9 and ResNet18: the paper's layers, awake from the start, dropout per sequence, every layer learns."""

import pytest
import torch

from lightning_modules.networks import SpikingResNet, SpikingVGG
from lightning_modules.tasks.states import reset_states, spiking_modules
from stllr_plugin import STLLRLearner
from stllr_plugin.nn import SequenceDropout

VGG9_CHANNELS = [64, 128, 256, 256, 512, 512, 512, 512]


def firing(network, frames):
    """Mean rate of every layer of neurons over the steps."""
    rates = {}
    for name, neuron in spiking_modules(network).items():
        neuron.register_forward_hook(
            lambda module, inputs, spikes, name=name: rates.setdefault(name, []).append(spikes.mean().item())
        )
    with torch.no_grad():
        for frame in frames:
            network(frame)
    return {name: sum(values) / len(values) for name, values in rates.items()}


def sparse_frames(steps, batch, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, batch, 2, *size, generator=generator) < 0.2).float()


def test_vgg9_is_the_paper_s():
    network = SpikingVGG(width=1.0, num_classes=11)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == VGG9_CHANNELS
    assert all(layer.kernel_size == (3, 3) and layer.padding == (1, 1) for layer in convolutions)
    order = "".join(name[0] for name, _ in network.features.named_children() if name[:4] in ("conv", "pool"))
    assert order == "ccpccpccpccp"
    neurons = spiking_modules(network)
    assert len(neurons) == 8 and all(n.beta == 0.5 and n.threshold == 0.8 for n in neurons.values())


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("size", [16, (17, 32)])
def test_vgg_steps_and_is_awake(pool, size):
    torch.manual_seed(0)
    network = SpikingVGG(size=size, width=0.25, pool=pool, num_classes=7)
    shape = (size, size) if isinstance(size, int) else size
    assert network(torch.zeros(3, 2, *shape)).shape == (3, 7)
    network = SpikingVGG(size=size, width=0.25, pool=pool, num_classes=7)
    rates = firing(network, sparse_frames(8, 3, shape))
    assert all(0.02 < rate < 0.6 for rate in rates.values()), list(rates.values())


def test_vgg_without_global_pool():
    network = SpikingVGG(size=(32, 20), width=0.1, layers=[8, "P", 16, "P"], global_pool=False)
    assert network(torch.zeros(2, 2, 32, 20)).shape == (2, 10)
    assert network.readout.in_features == 2 * 8 * 5


def test_dropout_keeps_its_mask_for_a_sequence_and_is_off_in_evaluation():
    for network in (SpikingVGG(size=16, width=0.1, dropout=0.3), SpikingResNet(width=0.1, dropout=0.3)):
        dropouts = [module for module in network.modules() if isinstance(module, SequenceDropout)]
        assert len(dropouts) in (8, 16)
        frames = sparse_frames(2, 2, (16, 16))
        network(frames[0])
        masks = [dropout.mask for dropout in dropouts]
        network(frames[1])
        assert all(dropout.mask is mask for dropout, mask in zip(dropouts, masks, strict=True))
        reset_states(network)
        assert all(dropout.mask is None for dropout in dropouts)


def test_resnet18_has_its_layers_and_is_awake():
    torch.manual_seed(0)
    network = SpikingResNet(width=0.25)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 16 + 3 and len(spiking_modules(network)) == 17
    rates = firing(network, sparse_frames(6, 2, (16, 16)))
    assert all(0.02 < rate < 0.7 for rate in rates.values()), list(rates.values())


def test_shortcut_adds_the_spikes_to_the_current():
    network = SpikingResNet(width=0.1, blocks=(1,), channels=(64,))
    block = network.stages[0][0]
    seen = {}
    block.lif2.register_forward_pre_hook(lambda module, inputs: seen.update(current=inputs[0]))
    spikes = (torch.rand(2, 6, 8, 8) < 0.3).float()
    block(spikes)
    reset_states(network)
    inner = block.lif1(block.conv1(spikes))
    torch.testing.assert_close(seen["current"], block.conv2(inner) + spikes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikingVGG(size=8), "too small to be halved 4 times"),
        (lambda: SpikingVGG(layers=[8, "Q"]), "found 'Q'"),
        (lambda: SpikingVGG(pool="sum"), "Unknown pool 'sum'"),
        (lambda: SpikingResNet(blocks=(2, 2), channels=(8,)), "Each stage"),
        (lambda: SpikingResNet(blocks=(0,), channels=(8,)), "Each stage"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: SpikingVGG(size=16, width=0.1), lambda: SpikingResNet(width=0.1)])
def test_the_learner_takes_every_convolution(make):
    torch.manual_seed(0)
    network = make()
    learner = STLLRLearner(network, torch.optim.SGD(network.parameters(), lr=0.1), rule="cifar10_dvs")
    for frame in sparse_frames(4, 2, (16, 16)):
        network(frame).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not without
    learner.detach()
