"""One training batch, the same work done in several ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.networks import build_network, build_spikingjelly, has_spikingjelly, reset_spikingjelly
from benchmarks.speed.settings import Workload
from lightning_modules.tasks.rules import make_rule
from lightning_modules.tasks.states import reset_states
from stllr_plugin import STLLRLearner

Train = Callable[[Tensor, Tensor], None]
COMPILED = (
    "snntorch_bptt",
    "stllr_attached",
    "stllr_folded",
    "stllr_run",
    "forward",
    "spikingjelly_bptt",
)  # with torch.compile too


class NotHereError(RuntimeError):
    """A contender cannot take part on this machine."""


def data(workload: Workload, density: float, device: str, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """Random spikes [T, B, ...] and labels [B]."""
    generator = torch.Generator().manual_seed(1)
    shape = (workload.steps if steps is None else steps, workload.batch, *workload.input_shape)
    x = torch.empty(shape)
    for frame in x:  # step by step: no second tensor of this size
        frame.copy_(torch.rand(shape[1:], generator=generator) < density)
    y = torch.randint(workload.classes, (workload.batch,), generator=generator)
    return x.to(device), y.to(device)


def make(
    contender: str, workload: Workload, supervise_last: int, device: str = "cpu", compile_mode: str | None = None
) -> Train:
    """Builds everything that a contender needs.

    Args:
        contender: A key of ``settings.CONTENDERS``.
        workload: The network and how it is trained.
        supervise_last: Supervised steps; 0 for all.
        device: Where.
        compile_mode: A mode of torch.compile; None runs eagerly.

    Returns:
        A function that trains on one batch: x [T, B, ...], y [B].

    Raises:
        NotHereError: If it cannot take part.
    """
    if contender.startswith("spikingjelly") and not has_spikingjelly():
        raise NotHereError("SpikingJelly is not installed")
    torch.manual_seed(0)
    return _Made(workload, supervise_last, device, compile_mode).train(contender)


class _Made:
    """What the contenders share."""

    def __init__(self, workload: Workload, supervise_last: int, device: str, compile_mode: str | None) -> None:
        self.workload = workload
        self.last = supervise_last
        self.device = device
        self.compile_mode = compile_mode

    def train(self, contender: str) -> Train:
        found: Train = getattr(self, contender)()
        if not self.workload.autocast:
            return found

        def under_autocast(x: Tensor, y: Tensor) -> None:
            with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
                found(x, y)

        return under_autocast

    def first(self, x: Tensor) -> int:
        """The first supervised step."""
        return max(0, len(x) - self.last) if self.last else 0

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(output, y) / (self.last or self.workload.steps)

    def network(self) -> nn.Module:
        return build_network(self.workload).to(self.device)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=self.workload.learning_rate)

    def called(self, network: nn.Module) -> Any:
        """The network as it is called."""
        return network if self.compile_mode is None else torch.compile(network, mode=self.compile_mode)

    def learner(self, network: nn.Module, **options: Any) -> STLLRLearner:
        workload = self.workload
        return STLLRLearner(
            network,
            self.optimizer(network),
            rule=make_rule(workload.rule),
            layer_rules={pattern: make_rule(rule) for pattern, rule in workload.layer_rules.items()},
            product_dtype=torch.bfloat16 if workload.products == "bfloat16" else None,
            **options,
        )

    def snntorch_bptt(self) -> Train:
        network = self.network()
        optimizer, called = self.optimizer(network), self.called(network)

        def train(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            loss: Any = 0.0
            for t, frame in enumerate(x):
                output = called(frame)
                if t >= self.first(x):
                    loss = loss + self.loss(output, y)
            loss.backward()
            optimizer.step()
            reset_states(network)

        return train

    def stllr_attached(self) -> Train:
        network = self.network()
        return self._attached(self._told(network), self.called(network))

    def _attached(self, learner: STLLRLearner, called: Any) -> Train:
        def train(x: Tensor, y: Tensor) -> None:
            if len(x) != self.workload.steps:
                learner.reset(num_steps=len(x))
            learner.zero_grad()
            for t, frame in enumerate(x):
                output = called(frame)
                if t >= self.first(x):
                    self.loss(output, y).backward()
            learner.step()

        return train

    def stllr_folded(self) -> Train:
        network = self.network()
        return self._attached(self._told(network, fold_steps=self.workload.fold_steps), self.called(network))

    def _told(self, network: nn.Module, **options: Any) -> STLLRLearner:
        """A learner that knows which steps are supervised, so that the others build no graph."""
        return self.learner(network, supervise_last=self.last or None, num_steps=self.workload.steps, **options)

    def stllr_run(self) -> Train:
        network = self.network()
        learner, called = self.learner(network), self.called(network)

        def train(x: Tensor, y: Tensor) -> None:
            learner.zero_grad()
            result = learner.run(called, x, y, self.loss, window=self.workload.window, supervise_last=self.last or None)
            learner.step()
            if result.steps_because is not None:
                raise NotHereError(f"the network runs step by step: {result.steps_because}")

        return train

    def stllr_online(self) -> Train:
        looping = _Looping(self.network())
        learner = self._told(looping)

        def train(x: Tensor, y: Tensor) -> None:
            learner.zero_grad()
            with learner.online(looping.network, lambda output: self.loss(output, y), num_steps=len(x)):
                looping(x)
            learner.step()

        return train

    def forward(self) -> Train:
        network = self.network()
        called = self.called(network)

        def run(x: Tensor, y: Tensor) -> None:
            with torch.no_grad():
                for frame in x:
                    called(frame)
            reset_states(network)

        return run

    def stllr_unsupervised(self) -> Train:
        network = self.network()
        # The supervised step would be the one after the last.
        learner = self.learner(network, supervise_last=1, num_steps=self.workload.steps + 1)

        def run(x: Tensor, y: Tensor) -> None:
            for frame in x:
                network(frame)
            learner.reset()

        return run

    def spikingjelly_bptt(self) -> Train:
        network = build_spikingjelly(self.workload, online=False).to(self.device)
        optimizer, called = self.optimizer(network), self.called(network)

        def train(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            outputs = called(x)[self.first(x) :]
            self.loss(outputs.flatten(0, 1), y.repeat(len(outputs))).backward()
            optimizer.step()
            reset_spikingjelly(network)

        return train

    def spikingjelly_sltt(self) -> Train:
        network = build_spikingjelly(self.workload, online=True).to(self.device)
        optimizer = self.optimizer(network)

        def train(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            first = self.first(x)
            with torch.no_grad():
                for frame in x[:first]:
                    network(frame)
            for frame in x[first:]:
                self.loss(network(frame), y).backward()
            optimizer.step()
            reset_spikingjelly(network)

        return train


class _Looping(nn.Module):
    """A network whose time loop is inside ``forward``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> None:
        for frame in x:
            self.network(frame)
