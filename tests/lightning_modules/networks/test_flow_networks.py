"""Networks for optical flow: shapes at any resolution, layers that fire, and gradients that are the rule's."""

import pytest
import torch
from torch.nn.grad import conv2d_weight

from lightning_modules import FSFN, SpikingFireNet
from lightning_modules.networks.flow_blocks import crop_flows, pad_to_multiple
from lightning_modules.tasks.states import detach_states, reset_states, spiking_modules
from stllr_plugin import STLLRLearner, STLLRRule

NETWORKS = {
    "fsfn": lambda **more: FSFN(base_channels=4, levels=2, residual_blocks=1, **more),
    "fsfn, nearest": lambda **more: FSFN(base_channels=4, levels=2, residual_blocks=1, upsampling="nearest", **more),
    "fsfn, recurrent": lambda **more: FSFN(base_channels=3, levels=2, residual_blocks=1, recurrent="all", **more),
    "firenet": lambda **more: SpikingFireNet(channels=4, blocks=2, dilations=[1, 2], **more),
}
LIBRARIES = ("snntorch", "norse")
COMBINATIONS = [(name, library) for name in NETWORKS for library in LIBRARIES]
PLAIN = STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate")  # the gradient of autograd, where no state has a graph


def events(steps, size=(12, 16), batch=2, rate=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, batch, 2, *size, generator=generator) < rate).float()


def make(name, library, **more):
    torch.manual_seed(0)
    return NETWORKS[name](neuron=library, **more)


@pytest.mark.parametrize(("name", "library"), COMBINATIONS)
def test_every_layer_fires_from_the_start(name, library):
    network, rates = make(name, library), {}
    for layer, neurons in spiking_modules(network, skip=("readout*",)).items():
        neurons.register_forward_hook(lambda _, args, spikes, n=layer: rates.setdefault(n, []).append(spikes.detach()))
    for counts in events(10):
        flows = network(counts)
    assert len(flows) == (1 if name == "firenet" else 2)
    assert all(flow.isfinite().all() for flow in flows) and flows[-1].abs().max() < 3.0
    for layer, spikes in rates.items():
        assert 0.02 < float(torch.stack(spikes).mean()) < 0.6, layer
        assert set(torch.stack(spikes).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("size", [(180, 240), (260, 346), (64, 64), (5, 7)])
def test_flows_cover_the_frame_at_any_resolution(size):
    network = FSFN(base_channels=1, residual_blocks=0, levels=4, scales=3)
    flows = network(torch.zeros(1, 2, *size))
    assert [tuple(flow.shape[2:]) for flow in flows] == [
        (-(-size[0] // scale), -(-size[1] // scale)) for scale in (4, 2, 1)
    ]


def test_cropping_takes_off_what_padding_added():
    """A flow that says where its pixels are in the frame does so at every scale after the crop."""
    size, multiple = (10, 21), 8
    padded, first = pad_to_multiple(torch.ones(1, 2, *size), multiple)
    assert padded.shape == (1, 2, 16, 24) and first == (3, 1) and padded.sum() == 2 * 10 * 21
    assert (padded[:, :, 3:13, 1:22] == 1).all()

    def places(height, width, scale, top=0, left=0):
        rows = (torch.arange(height) + 0.5) * scale - 0.5 - top
        columns = (torch.arange(width) + 0.5) * scale - 0.5 - left
        return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]

    flows = [places(16 // scale, 24 // scale, scale, *first) for scale in (4, 2, 1)]
    for flow, scale in zip(crop_flows(flows, size, first, multiple), (4, 2, 1), strict=True):
        height, width = -(-size[0] // scale), -(-size[1] // scale)
        assert flow.shape == (1, 2, height, width)
        expected = places(height, width, 1)
        expected[:, 0] = (expected[:, 0] + 0.5) * size[1] / width - 0.5
        expected[:, 1] = (expected[:, 1] + 0.5) * size[0] / height - 0.5
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # adaptive pooling rounds at the border
        torch.testing.assert_close(flow[inner], expected[inner], rtol=0, atol=0.0 if scale == 1 else 0.6)
    assert all(kept is flow for kept, flow in zip(crop_flows(flows, (16, 24), (0, 0), 8), flows, strict=True))


@pytest.mark.parametrize(("name", "library"), COMBINATIONS)
def test_without_traces_the_gradient_is_plain_autograd_with_detached_states(name, library):
    frames = events(5)

    def gradients(network, before):
        for counts in frames:
            before(network)
            sum((flow - 1.0).square().mean() for flow in network(counts)).backward()
        return {key: weight.grad for key, weight in network.named_parameters()}

    expected = gradients(make(name, library), detach_states)
    network = make(name, library)
    with STLLRLearner(network, rule=PLAIN):
        found = gradients(network, lambda network: None)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    assert any(gradient.abs().max() > 1e-4 for key, gradient in expected.items() if "recurrent" in key) == (
        "recurrent" in name or name == "firenet"
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_recurrent_weights_learn_from_the_spikes_of_the_step_before(library):
    """dL/dW = sum over t of delta[t] * (psi(v[t]) * trace of y[t-1] - 0.2 * y[t-1] * trace of psi[t-1])."""
    torch.manual_seed(1)
    network = SpikingFireNet(channels=3, blocks=1, neuron=library, weight_standardization=False)
    layer = network.blocks[0][1]
    spikes, deltas, currents = [], [], []

    def keep(module, args, output):
        spikes.append(output.detach())
        output.register_hook(lambda delta: deltas.append(delta.clone()))

    layer.recurrent.register_forward_hook(lambda module, args, output: currents.append(output.detach()))
    network.blocks[0][0].register_forward_hook(lambda module, args, output: currents.append(output.detach()))
    with STLLRLearner(network, rule="mvsec") as learner:
        layer.register_forward_hook(keep)  # behind the learner's own
        for counts in events(6):
            network(counts)[0].square().sum().backward()
        assert {edge.synapse for edge in learner.report().edges} >= {"blocks.0.1.recurrent", "blocks.0.0"}
    weight = layer.recurrent.weight
    membrane = trace = psi_trace = last = torch.zeros_like(spikes[0])
    expected = torch.zeros_like(weight)
    for t, (y, delta) in enumerate(zip(spikes, deltas, strict=True)):
        reset = 0.6 * (membrane > 0.6) if library == "snntorch" else 0.88 * membrane * last
        membrane = 0.88 * membrane + currents[2 * t] + currents[2 * t + 1] - reset
        v = membrane - 0.6
        assert torch.equal((v > 0).float(), y)
        psi = 1 / (1 + (10 * v) ** 2)
        trace = 0.8 * trace + last
        for factor, x in ((delta * psi, trace), (-0.2 * delta * psi_trace, last)):
            expected += conv2d_weight(x, weight.shape, factor, padding=1)
        psi_trace, last = 0.5 * psi_trace + psi, y
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_membranes_of_the_readout_are_the_flow(library):
    network = make("firenet", library, readout_beta=0.5, flow_scale=3.0)
    total, currents = 0.0, []
    network.readout.conv.register_forward_hook(lambda module, args, output: currents.append(output))
    for counts in events(4):
        (flow,) = network(counts)
        total = 0.5 * total + currents[-1]
        torch.testing.assert_close(flow, 3.0 * total)
    reset_states(network)
    torch.testing.assert_close(network(events(1)[0])[0], 3.0 * currents[-1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one time step of events, \\[batch, 2, height, width\\].*\\(1, 5, 2, 8, 8\\)"):
        make("fsfn", "snntorch")(torch.zeros(1, 5, 2, 8, 8))
    for options, message in (
        ({"neuron": "brian"}, "Unknown neuron 'brian'; known: snntorch, norse"),
        ({"levels": 0}, "at least 1 level"),
        ({"scales": 5}, "scales must lie in 1..4"),
        ({"recurrent": "middle"}, "Unknown recurrent 'middle'"),
        ({"upsampling": "bilinear"}, "Unknown upsampling 'bilinear'"),
    ):
        with pytest.raises(ValueError, match=message):
            FSFN(**{"base_channels": 2, **options})
    with pytest.raises(ValueError, match="Each of the 2 blocks needs one dilation"):
        SpikingFireNet(dilations=[1])
    with pytest.raises(ValueError, match="needs channels and blocks"):
        SpikingFireNet(blocks=0)
