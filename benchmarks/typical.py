"""Time and memory of a training batch on networks that users have, relative to backpropagation through time.

The networks are those of snnTorch's tutorials 5 and 6, a small one with long sequences, recurrent ones, and one each of
Norse and SpikingJelly; the losses are those that go with them: of membranes, counts or rates. Every way of use trains
from the same weights on made-up data; the contenders take turns, and a ratio is the median of those within the rounds.
Peak memory is that of one batch, each figure from a process of its own, without what the caller's data take.

    python -m benchmarks.typical                         # time and memory of all: about half an hour
    python -m benchmarks.typical --only tutorial5 --rounds 3 --no-memory
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.speed.measure import alternate, paired_ratio
from benchmarks.speed.memory import freed_memory_goes_back
from lightning_modules.memory import measure_peak_memory
from stllr_plugin import STLLRLearner

WAYS = ("BPTT", "one line", "each step", "fold_steps=5", "run", "two_pass", "forward")
RULE = "dvs_gesture"


class Network(nn.Module):
    """A network that is called once per time step.

    Its states are passed in and out; with ``hidden``, which ``run`` needs, the neurons keep them themselves.
    """

    hidden = False

    def start(self) -> Any:
        """The states before the first step."""
        return None

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Returns spikes and membranes of the last layer, and the states."""
        raise NotImplementedError

    def _leaky(self) -> nn.Module:
        import snntorch

        return snntorch.Leaky(beta=0.95, init_hidden=self.hidden, output=True)

    def _called(self, neuron: nn.Module, current: Tensor, *states: Any) -> Any:
        return neuron(current) if self.hidden else neuron(current, *states)


class Dense(Network):
    """Fully connected layers of snnTorch's Leaky: tutorial 5."""

    def __init__(self, *sizes: int, hidden: bool = False) -> None:
        """Args: numbers of inputs, neurons of each layer, and classes; whether states are hidden."""
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(nn.Linear(one, two) for one, two in zip(sizes, sizes[1:], strict=False))
        self.neurons = nn.ModuleList(self._leaky() for _ in sizes[1:])

    def start(self) -> Any:
        """See the base class."""
        return [neuron.init_leaky() for neuron in self.neurons]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """See the base class."""
        after = []
        for i, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
            x, membrane = self._called(neuron, layer(x), None if self.hidden else states[i])
            after.append(membrane)
        return x, after[-1], None if self.hidden else after


class Convolutional(Network):
    """Tutorial 6: 12C5-P2-64C5-P2-10."""

    def __init__(self, hidden: bool = False) -> None:
        """Args: whether states are hidden."""
        super().__init__()
        self.hidden = hidden
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), self._leaky()
        self.conv2, self.lif2 = nn.Conv2d(12, 64, 5), self._leaky()
        self.fc, self.lif3 = nn.Linear(64 * 4 * 4, 10), self._leaky()

    def start(self) -> Any:
        """See the base class."""
        return [neuron.init_leaky() for neuron in (self.lif1, self.lif2, self.lif3)]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """See the base class."""
        one, two, three = [None] * 3 if self.hidden else states
        x, one = self._called(self.lif1, functional.max_pool2d(self.conv1(x), 2), one)
        x, two = self._called(self.lif2, functional.max_pool2d(self.conv2(x), 2), two)
        x, three = self._called(self.lif3, self.fc(x.flatten(1)), three)
        return x, three, None if self.hidden else [one, two, three]


class Recurrent(Network):
    """A recurrent layer of snnTorch's, and a readout."""

    def __init__(self, *sizes: int, hidden: bool = False) -> None:
        """Args: numbers of inputs, neurons and classes; whether states are hidden."""
        super().__init__()
        import snntorch

        self.hidden = hidden
        self.fc1, self.fc2 = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.lif1 = snntorch.RLeaky(beta=0.95, linear_features=sizes[1], init_hidden=hidden, output=True)
        self.lif2 = self._leaky()

    def start(self) -> Any:
        """See the base class."""
        return [*self.lif1.init_rleaky(), self.lif2.init_leaky()]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """See the base class."""
        before = [None] * 3 if self.hidden else states
        spikes, one = self._called(self.lif1, self.fc1(x), before[0], before[1])
        out, two = self._called(self.lif2, self.fc2(spikes), before[2])
        return out, two, None if self.hidden else [spikes, one, two]


class Norse(Network):
    """A feed-forward or recurrent layer of Norse's, and a leaky integrator."""

    def __init__(self, recurrent: bool, *sizes: int, hidden: bool = False) -> None:
        """Args: whether the layer is recurrent; numbers of inputs, neurons and classes; nothing else to choose."""
        super().__init__()
        import norse.torch as norse

        first = [norse.LIFRecurrentCell(sizes[0], sizes[1])] if recurrent else []
        if not recurrent:
            first = [nn.Linear(sizes[0], sizes[1]), norse.LIFCell()]
        self.layers = norse.SequentialState(*first, nn.Linear(sizes[1], sizes[2]), norse.LICell())

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """See the base class."""
        out, states = self.layers(x, states)
        return out, out, states


class SpikingJelly(Network):
    """Two layers of SpikingJelly's LIFNode, which keep their states themselves."""

    def __init__(self, *sizes: int, hidden: bool = False) -> None:
        """Args: numbers of inputs, neurons and classes; states are hidden in any case."""
        super().__init__()
        from spikingjelly.activation_based import neuron

        self.fc1, self.lif1 = nn.Linear(sizes[0], sizes[1]), neuron.LIFNode(detach_reset=True)
        self.fc2, self.lif2 = nn.Linear(sizes[1], sizes[2]), neuron.LIFNode(detach_reset=True)

    def start(self) -> Any:
        """See the base class."""
        self.lif1.reset()
        self.lif2.reset()

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Tensor, Any]:
        """See the base class."""
        out = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return out, self.lif2.v, None


def of_membrane(spikes: list[Tensor], membranes: list[Tensor], y: Tensor) -> Tensor:
    """Cross entropy of the membranes at each step, summed: tutorial 5."""
    return torch.stack([functional.cross_entropy(membrane, y) for membrane in membranes]).sum()


def of_rate(spikes: list[Tensor], membranes: list[Tensor], y: Tensor) -> Tensor:
    """Cross entropy of the spikes at each step: snnTorch's ce_rate_loss."""
    return torch.stack([functional.cross_entropy(one, y) for one in spikes]).mean()


def of_count(spikes: list[Tensor], membranes: list[Tensor], y: Tensor) -> Tensor:
    """Cross entropy of the numbers of spikes: snnTorch's ce_count_loss."""
    return functional.cross_entropy(torch.stack(spikes).sum(0), y) / len(spikes)


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        network: Builds it.
        shape: Of the input at one step, without the batch.
        classes: Their number.
        steps: T.
        batch: B.
        density: Share of inputs that spike; 0 for a picture that is the same at each step; above 1 for random numbers.
        loss: Of all steps.
        needs: The library.
        last: Supervised steps at the end; None for all.
    """

    network: Callable[..., Network]
    shape: tuple[int, ...]
    classes: int
    steps: int
    batch: int
    density: float
    loss: Callable[[list[Tensor], list[Tensor], Tensor], Tensor]
    needs: str = "snntorch"
    last: int | None = None

    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs [T, B, ...] and labels [B]."""
        generator = torch.Generator().manual_seed(1)
        y = torch.randint(self.classes, (self.batch,), generator=generator)
        if self.density == 0.0:
            x = torch.rand(self.batch, *self.shape, generator=generator)
            return x.expand(self.steps, *x.shape), y
        x = torch.rand(self.steps, self.batch, *self.shape, generator=generator)
        return (x if self.density > 1.0 else (x < self.density).float()), y


WORKLOADS = {
    "tutorial5": Workload(partial(Dense, 784, 1000, 10), (784,), 10, 25, 128, 0.0, of_membrane),
    "tutorial5_sparse": Workload(partial(Dense, 784, 1000, 10), (784,), 10, 25, 128, 0.05, of_membrane),
    "tutorial6": Workload(Convolutional, (1, 28, 28), 10, 50, 128, 0.0, of_rate),
    "tutorial6_count": Workload(Convolutional, (1, 28, 28), 10, 50, 128, 0.0, of_count),
    "small": Workload(partial(Dense, 4, 64, 64, 6), (4,), 6, 200, 32, 2.0, of_membrane),
    "recurrent": Workload(partial(Recurrent, 100, 256, 10), (100,), 10, 100, 64, 0.05, of_membrane),
    "recurrent_last10": Workload(partial(Recurrent, 100, 256, 10), (100,), 10, 100, 64, 0.05, of_membrane, last=10),
    "norse": Workload(partial(Norse, False, 100, 256, 10), (100,), 10, 100, 64, 0.05, of_membrane, "norse"),
    "norse_recurrent": Workload(partial(Norse, True, 100, 256, 10), (100,), 10, 100, 64, 0.05, of_membrane, "norse"),
    "spikingjelly": Workload(
        partial(SpikingJelly, 100, 256, 10), (100,), 10, 100, 64, 0.05, of_membrane, "spikingjelly"
    ),
}


def work_of(way: str, name: str) -> Callable[[], None]:
    """A function that trains on one batch.

    Args:
        way: One of :data:`WAYS`.
        name: One of :data:`WORKLOADS`.
    """
    workload = WORKLOADS[name]
    x, y = workload.data()
    torch.manual_seed(0)
    net = workload.network(hidden=way == "run")
    optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=1e-6)
    first = 0 if workload.last is None else workload.steps - workload.last

    def outputs(steps: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        states: Any = net.start()
        spikes, membranes = [], []
        for t, step in enumerate(steps):
            out, membrane, states = net(step, states)
            if t >= first:
                spikes.append(out)
                membranes.append(membrane)
        return spikes, membranes

    def loss_of(out: Any) -> Tensor:
        return workload.loss(*out, y)

    def step_loss(out: Any) -> Tensor:
        return workload.loss([out[0]], [out[1]], y)

    told: dict[str, Any] = {} if workload.last is None else {"supervise_last": workload.last}
    if way in ("each step", "fold_steps=5"):
        told["num_steps"] = workload.steps
    if way == "fold_steps=5":
        told["fold_steps"] = 5
    model = net.layers if way == "run" and isinstance(net, Norse) else net
    learner = None if way in ("BPTT", "forward") else STLLRLearner(model, optimizer, rule=RULE, **told)

    def whole() -> None:
        loss_of(outputs(x)).backward()

    def forward() -> None:
        with torch.no_grad():
            outputs(x)

    def each_step() -> None:
        states: Any = net.start()
        for t, step in enumerate(x):
            out, membrane, states = net(step, states)
            if t >= first:
                step_loss((out, membrane)).backward()

    def run() -> None:
        assert learner is not None
        if isinstance(net, Norse):  # whose container carries the states
            found = learner.run(net.layers, x, y, lambda out, y: step_loss((out, out)))
        else:
            found = learner.run(net, x, y, lambda out, y: step_loss(out))
        if found.steps_because is not None:
            raise RuntimeError(f"step by step: {found.steps_because}")

    def two_pass() -> None:
        assert learner is not None
        last = [module for module in net.modules() if not list(module.children())][-1]
        learner.two_pass(last, loss_of, lambda: outputs(x))

    works = {"forward": forward, "each step": each_step, "fold_steps=5": each_step, "run": run, "two_pass": two_pass}
    work = works.get(way, whole)
    updates = learner or optimizer

    def train() -> None:
        updates.zero_grad()
        work()
        if way != "forward":
            updates.step()

    return train


def prepared(way: str, name: str) -> Callable[[], None]:
    """The same, after a batch that was not counted."""
    torch.set_num_threads(1)
    train = work_of(way, name)
    train()
    return train


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = ["BPTT", *(way for way in arguments.ways if way != "BPTT")]
    print(f"torch {torch.__version__}, one thread; time of a batch to that of BPTT\n")
    print(f"| network | BPTT, ms | {' | '.join(ways[1:])} |\n|---|---|{'---|' * len(ways[1:])}")
    for name in arguments.only:
        works, absent = _works(ways, name)
        times = alternate(works, arguments.rounds, "cpu")
        base = [wall for wall, _ in times["BPTT"]]
        cells = [
            f"{paired_ratio([wall for wall, _ in times[way]], base)['median']:.2f}" if way in times else absent[way]
            for way in ways[1:]
        ]
        print(f"| {name} | {1000 * statistics.median(base):.0f} | {' | '.join(cells)} |", flush=True)
    if arguments.no_memory:
        return
    print("\nPeak memory of a batch to that of BPTT\n")
    print(f"| network | BPTT, MB | {' | '.join(ways[1:])} |\n|---|---|{'---|' * len(ways[1:])}")
    for name in arguments.only:
        peaks = [_peak(way, name) for way in ways]
        base_peak = peaks[0] or 0
        cells = ["-" if peak is None else f"{peak / base_peak:.2f}" for peak in peaks[1:]]
        print(f"| {name} | {base_peak / 2**20:.1f} | {' | '.join(cells)} |", flush=True)


def _works(ways: list[str], name: str) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Who takes part, after a first batch; and who cannot."""
    works, absent = {}, {}
    for way in ways:
        try:
            works[way] = prepared(way, name)
        except Exception as error:  # what a way refuses is part of the table
            if way == "BPTT":
                raise
            absent[way] = type(error).__name__
    return works, absent


def _peak(way: str, name: str) -> int | None:
    try:
        with freed_memory_goes_back():
            return measure_peak_memory(prepared, way, name)
    except RuntimeError:
        return None


if __name__ == "__main__":
    main()
