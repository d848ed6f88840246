"""Networks for the catalogue: those of the oracle's cases, and more around containers, layers and whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.setup import STEPS, Setup

Build = Callable[[torch.dtype], Setup]
INPUTS, HIDDEN, CLASSES, BATCH = 4, 5, 3, 4


def spikes(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).double()


def even(xs: Tensor) -> Tensor:
    """The first steps, with an even number of samples."""
    return torch.cat((xs, xs.flip(1)), 1)[:STEPS] if xs.shape[1] % 2 else xs[:STEPS]


def oracle_case(name: str) -> Build:
    """The network of a case that tests.test_exactness or tests.test_exactness_neurons compares with the oracle."""

    def build(dtype: torch.dtype) -> Setup:
        from tests.cases.modules import CaseNet
        from tests.cases.neurons import MORE_READOUTS, READOUTS, neuron_case, readout_case
        from tests.oracles.spec import SEQUENCES

        readout = name in READOUTS or name in MORE_READOUTS
        case = readout_case(name) if readout else neuron_case(name, "all")
        if name.endswith("spikes-only"):
            case = neuron_case(name, "spikes")
        drive = "stream" if any(node.kind in SEQUENCES for node in case.net.nodes) else "state"
        net = CaseNet(case.net, dtype=dtype, hidden=case.hidden)
        for part in net.modules():
            if type(part).__name__ in ("StateLeaky", "LinearLeaky") and "beta" in part._parameters:
                part._parameters["beta"].requires_grad_(False)  # snnTorch learns tau, and never uses beta
        return Setup(net, even(case.xs).to(dtype), drive)

    return build


def jelly_case(name: str) -> Build:
    """The network of a case that tests/spikingjelly compares with the oracle written for it."""

    def build(dtype: torch.dtype) -> Setup:
        from tests.spikingjelly.networks import build as make
        from tests.spikingjelly.test_nodes import case

        layers, xs = case(name, "dense")
        return Setup(make(layers, dtype), even(xs).to(dtype), "hidden")

    return build


def made(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...] = (BATCH, INPUTS),
    gain: float = 2.0,
    **options: Any,
) -> Build:
    """A network made here, with the same weights each time."""

    def build(dtype: torch.dtype) -> Setup:
        torch.manual_seed(0)
        net = make()
        with torch.no_grad():
            for parameter in net.parameters() if gain != 1 else ():
                parameter.mul_(gain)
        if hasattr(net, "dtype"):
            net.dtype = dtype  # of what Norse's ConvNet returns
        return Setup(net.to(dtype), spikes(STEPS, *shape).to(dtype), **options)

    return build


def single_precision(build: Build) -> Build:
    """For modules that make weights in their constructor and do not convert them."""
    return lambda dtype: build(torch.float32)


# Norse. Imports are inside the functions, so that the table can be written without the libraries.


def lif(threshold: float = 0.3) -> Any:
    import norse.torch as norse

    return norse.LIFParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(threshold))


def sequential_state() -> nn.Module:
    import norse.torch as norse

    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN), norse.LIFCell(lif()), nn.Linear(HIDDEN, CLASSES), norse.LICell()
    )


def lifted() -> nn.Module:
    import norse.torch as norse

    return norse.SequentialState(
        norse.Lift(nn.Linear(INPUTS, HIDDEN)), norse.LIF(lif()), norse.Lift(nn.Linear(HIDDEN, CLASSES)), norse.LI()
    )


class FedBack(nn.Module):
    """A RecurrentSequential, whose output is its input at the next step, below a readout."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.below = nn.Linear(INPUTS, HIDDEN)
        self.block = norse.RecurrentSequential(nn.Linear(HIDDEN, HIDDEN), norse.LIFCell(lif()))
        self.readout = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.block(self.below(x), state)
        return self.readout(y), state


class FedBackByHand(nn.Module):
    """The same without the container."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.below = nn.Linear(INPUTS, HIDDEN)
        self.block = nn.Linear(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.neuron = norse.LIFCell(lif())

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        current = self.below(x)
        if state is not None:
            current = current + state[0].detach()
        y, neuron = self.neuron(self.block(current), None if state is None else state[1])
        return self.readout(y), (y, neuron)


class Regularized(nn.Module):
    """A cell that counts the spikes of a layer for a term of the loss, or the same count by hand."""

    def __init__(self, counter: bool = True) -> None:
        import norse.torch as norse

        super().__init__()
        self.below, self.neuron = nn.Linear(INPUTS, HIDDEN), norse.LIFCell(lif())
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.counter = norse.RegularizationCell() if counter else None
        self.batch, self.count = BATCH, torch.zeros(())

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.neuron(self.below(x), state)
        self.batch = len(x)
        if self.counter is None:
            self.count = y.sum()
        else:
            y, _ = self.counter(y, state)
        return self.readout(y), state


def counted(net: nn.Module) -> Tensor:
    """The count of the cell, averaged over the batch as the rest of the loss is."""
    value: Any = net
    return 0.1 * value.counter.state / value.batch


def counted_by_hand(net: nn.Module) -> Tensor:
    """The count of the newest step."""
    value: Any = net
    return 0.1 * value.count / value.batch


class Convolved(nn.Module):
    """A convolution over sequences, or the lifted one that it equals."""

    def __init__(self, lift: bool = False) -> None:
        import norse.torch as norse

        super().__init__()
        conv = norse.Lift(nn.Conv2d(2, 3, 2, bias=False)) if lift else norse.LConv2d(2, 3, 2)
        self.layers = norse.SequentialState(conv, norse.LIF(lif()), nn.Flatten(2), norse.Lift(nn.Linear(12, CLASSES)))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layers(x, state)


class Imported(nn.Module):
    """What Norse makes of NIR's CubaLIF: a leaky integrator before a neuron."""

    def __init__(self) -> None:
        import norse.torch as norse
        from norse.torch.utils.import_nir import CubaLIF

        super().__init__()
        box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.2))
        slow = norse.LIBoxParameters(tau_mem_inv=torch.tensor(500.0))
        self.layers = norse.SequentialState(
            nn.Linear(INPUTS, HIDDEN),
            CubaLIF(torch.tensor(2.0), norse.LIBoxCell(slow), torch.tensor(1.5), norse.LIFBoxCell(box)),
            nn.Linear(HIDDEN, CLASSES),
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layers(x, state)


class Field(nn.Module):
    """A receptive field below two spiking layers."""

    def __init__(self, make: Callable[[], nn.Module], features: int) -> None:
        import norse.torch as norse

        super().__init__()
        self.field, self.first = make(), norse.LIFCell(lif())
        self.below, self.second = nn.Linear(features, CLASSES), norse.LIFCell(lif())

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, second = state or (None, None)
        y, first = self.first(self.field(x), first)
        y, second = self.second(self.below(y.flatten(1)), second)
        return second.v, (first, second)


def fields() -> Tensor:
    return torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [2.0, 0.5, 1.0, 0.0, 0.0]])


def spatial_field() -> nn.Module:
    import norse.torch as norse

    return Field(lambda: norse.SpatialReceptiveField2d(2, 3, fields(), domain=3), 8)


def sampled_field() -> nn.Module:
    import norse.torch as norse

    scales, angles, ratios = torch.tensor([1.0, 2.0]), torch.tensor([0.5]), torch.tensor([0.75])
    return Field(lambda: norse.SampledSpatialReceptiveField2d(2, 3, scales, angles, ratios, [(0, 0)], domain=3), 8)


def parameterized_field() -> nn.Module:
    import norse.torch as norse

    scales, angles, ratios = torch.tensor([1.0, 2.0]), torch.tensor([0.5]), torch.tensor([0.75])
    return Field(
        lambda: norse.ParameterizedSpatialReceptiveField2d(2, 3, scales, angles, ratios, [(0, 0)], domain=3), 8
    )


class TemporalField(nn.Module):
    """Leaky integrators with learned time constants below a spiking layer."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.field = norse.TemporalReceptiveField((INPUTS,), 2)
        self.below, self.neuron = nn.Linear(2 * INPUTS, HIDDEN), norse.LIFCell(lif())
        self.readout = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, second = (None, None) if state is None else state
        y, first = self.field(x, first)
        y, second = self.neuron(self.below(y.flatten(1)), second)
        return self.readout(y), (first, second)


def conv_net(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import norse.torch as norse

        net = getattr(norse, name)(feature_size=16)
        with torch.no_grad():
            net.conv1.weight.mul_(6)
            net.fc1.weight.mul_(10)
        return net

    return make


# snnTorch.


class Graded(nn.Module):
    """The layer that gives each neuron's spikes a learned size."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.below, self.neuron = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, threshold=0.3, init_hidden=True)
        self.sizes = snn.GradedSpikes(HIDDEN, 0.75)
        self.above, self.top = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, threshold=0.3, init_hidden=True, output=True)

    def forward(self, x: Tensor, state: None = None) -> tuple[Any, None]:
        y = self.sizes(self.neuron(self.below(x)).unsqueeze(-1)).squeeze(-1)
        return self.top(self.above(y)), None


class Looped(nn.Module):
    """A ConvNet of Norse's without its loop: the same modules, one step a call."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = make()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        net: Any = self.net
        s0, s1, s2, so = state or (None, None, None, None)
        y, s0 = net.lif0(net.conv1(x), s0)
        y, s1 = net.lif1(10 * net.conv2(nn.functional.max_pool2d(y, 2, 2)), s1)
        y = nn.functional.max_pool2d(y, 2, 2).flatten(1)
        y, s2 = net.lif2(net.fc1(y), s2)
        y, so = net.out(torch.relu(y), so)
        return y, (s0, s1, s2, so)


def vgg() -> nn.Module:
    """The class with a small classifier in place of its own, which has 120 million weights."""
    import norse.torch as norse

    features = nn.Sequential(
        norse.Lift(nn.Conv2d(1, 2, 3, padding=1)), norse.LIF(lif(0.1)), norse.Lift(nn.MaxPool2d(2))
    )
    with torch.device("meta"):
        net = norse.VGG(features, init_weights=False)
    net.classifier = nn.Sequential(
        norse.Lift(nn.Linear(98, HIDDEN)), norse.LIF(lif(0.1)), norse.Lift(nn.Linear(HIDDEN, CLASSES))
    )
    return net


class Cells(nn.Module):
    """What :func:`vgg` computes, with cells that carry their states."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.conv, self.first = nn.Conv2d(1, 2, 3, padding=1), norse.LIFCell(lif(0.1))
        self.below, self.second, self.readout = (
            nn.Linear(98, HIDDEN),
            norse.LIFCell(lif(0.1)),
            nn.Linear(HIDDEN, CLASSES),
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, second = state or (None, None)
        y, first = self.first(self.conv(x), first)
        y = nn.functional.adaptive_avg_pool2d(nn.functional.max_pool2d(y, 2), 7).flatten(1)
        y, second = self.second(self.below(y), second)
        return self.readout(y), (first, second)


class Block(nn.Module):
    """MobileNetV2's convolution, norm and neurons; the block returns the neurons' state with their spikes."""

    def __init__(self) -> None:
        import norse.torch as norse
        from norse.torch.models.mobilenet import ConvBNReLU

        super().__init__()
        self.block = ConvBNReLU(1, 2, nn.BatchNorm2d)
        self.block[2].p = lif()
        self.readout = norse.Lift(nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.block(x)[0].flatten(2))


class BlockOfCells(nn.Module):
    """What :class:`Block` computes, with a cell."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.neuron, self.readout = norse.LIFCell(lif()), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.neuron(self.norm(self.conv(x)), state)
        return self.readout(y.flatten(1)), state


class Inverted(nn.Module):
    """MobileNetV2's residual block."""

    def __init__(self) -> None:
        import norse.torch as norse
        from norse.torch.models.mobilenet import InvertedResidual

        super().__init__()
        self.block = InvertedResidual(2, 2, 1, 2, nn.BatchNorm2d)
        for part in self.block.modules():
            if isinstance(part, norse.LIF):
                part.p = lif()
        self.readout = norse.Lift(nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.block(x).flatten(2))


class InvertedOfCells(nn.Module):
    """What :class:`Inverted` computes, with cells."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.readout = nn.Linear(32, CLASSES)
        self.first, self.second = norse.LIFCell(lif()), norse.LIFCell(lif())

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, second = state or (None, None)
        y, first = self.first(self.norm1(self.conv1(x)), first)
        y, second = self.second(self.norm2(self.conv2(y)), second)
        return self.readout((x + self.norm3(self.conv3(y))).flatten(1)), (first, second)


def user_node() -> nn.Module:
    """A node of the user's own, by its charging equation alone."""
    from spikingjelly.activation_based import neuron

    class Own(neuron.SimpleBaseNode):
        def neuronal_charge(self, x: Tensor) -> None:
            self.v = 0.75 * self.v + x

    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), Own(0.5), nn.Linear(HIDDEN, CLASSES), Own(0.5))


def known_node() -> nn.Module:
    """What :func:`user_node` computes: tau = 4, input not decayed."""
    from spikingjelly.activation_based import neuron

    def node() -> nn.Module:
        return neuron.LIFNode(tau=4.0, decay_input=False, v_threshold=0.5)

    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), node(), nn.Linear(HIDDEN, CLASSES), node())


def sparse_input(network: str) -> Callable[[], nn.Module]:
    """A recurrent cell of Norse's whose input is a sparse tensor, or the same one whose input is not."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            import norse.torch as norse

            super().__init__()
            self.cell, self.readout = norse.LIFRecurrentCell(INPUTS, HIDDEN, lif()), nn.Linear(HIDDEN, CLASSES)

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            y, state = self.cell(x.to_sparse() if network == "sparse" else x, state)
            return self.readout(y.to_dense() if y.is_sparse else y), state

    return Sparse
