"""A classifier of its own for every hidden layer: the signals "local", "local_random" and "tess".

Each layer reads its own spikes y[t] out linearly, and learns from that readout's cross-entropy with the target:
``p = softmax(R y)``, ``delta = R^T (p - Y) / B``.

- "local": R is trained along with the network.
- "local_random": R stays as it was drawn, as in DECOLLE (Kaiser, Mostafa & Neftci, Frontiers in Neuroscience 2020).
- "tess": R is fixed, made of square waves, ``sign(sin(f_c k))`` for class c and channel k with frequencies f_c evenly
  spaced from 50 to 512, and layers with spatial dimensions are averaged over these first (Apolinario, Roy & Frenkel,
  "TESS: A Scalable Temporally and Spatially Local Learning Rule for Spiking Neural Networks", IJCNN 2025).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stllr_plugin.errors import RuleError
from stllr_plugin.registry import register_signal
from stllr_plugin.session import several_processes
from stllr_plugin.signals.base import SignalCost, SignalSetup
from stllr_plugin.signals.direct import Hidden, Projection
from stllr_plugin.signals.feedback import Feedback
from stllr_plugin.signals.target import TargetSignal


@register_signal("local_random")
class LocalReadouts(TargetSignal):
    """The signal "local_random"; the readouts stay as they were drawn, unless a subclass trains them."""

    def __init__(self, setup: SignalSetup) -> None:
        """See the base class."""
        super().__init__(setup)
        self._twin: Optimizer | None = None
        self._twin_state: dict[str, Any] | None = None

    def make_feedback(self, hidden: list[str], seed: int) -> Feedback:
        """See the base class."""
        return Feedback(hidden, seed, trained=self.needs_optimizer)

    def projection(self, spikes: Hidden, outputs: int) -> Projection:
        """See the base class."""
        first = spikes[0][1]
        target = self.target_rows(outputs, first)
        scale, loss_scale = self.scale_rows(first), self.loss_scale
        readouts = [(self.feedback.matrix(name, target.shape[1], y), y) for name, y in spikes]
        sequence, step = self.session.sequence, self.session.clock

        def project(error: Tensor) -> list[Tensor]:
            deltas = []
            for matrix, y in readouts:
                weight = matrix.detach().flatten(1).to(y.dtype)
                y = y.flatten(1)
                mistake = (torch.softmax(y @ weight.t(), 1) - target) * scale
                deltas.append(mistake @ weight * loss_scale)
                counted = sequence.mask(mistake, step) if self.feedback.trained else None
                if counted is not None:
                    gradient = (counted.t() @ y).reshape(matrix.shape).to(matrix.dtype)
                    matrix.grad = gradient if matrix.grad is None else matrix.grad + gradient
            return deltas

        return project

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost:
        """See the base class: spikes are read, once more for the gradient of a readout that is trained."""
        reads = 2 if cls.needs_optimizer else 1
        return SignalCost(reads * _active(spikes) * outputs, outputs * spikes[0].numel())

    # Training the readouts.

    def zero_grad(self) -> None:
        """See the base class."""
        for matrix in self.feedback.values():
            matrix.grad = None

    def step(self, inner: Optimizer) -> None:
        """Updates the readouts with an optimizer of the inner one's class and settings, at its learning rate."""
        ready = {name: matrix for name, matrix in self.feedback.items() if matrix.grad is not None}
        if not ready:
            return
        if several_processes():  # DDP averages the gradients of the model's parameters, not of these
            for matrix in ready.values():
                assert matrix.grad is not None
                torch.distributed.all_reduce(matrix.grad)
                matrix.grad.div_(torch.distributed.get_world_size())
        if self._twin is None:
            self._twin = self._make_twin(inner)
        held = {id(matrix) for group in self._twin.param_groups for matrix in group["params"]}
        added = [matrix for matrix in self.feedback.values() if id(matrix) not in held]
        if added:
            self._twin.add_param_group({"params": added})
        for group in self._twin.param_groups:
            group["lr"] = inner.param_groups[0]["lr"]
        self._twin.step()

    def _make_twin(self, inner: Optimizer) -> Optimizer:
        accepted = inspect.signature(type(inner)).parameters
        settings = {name: value for name, value in inner.defaults.items() if name in accepted}
        try:
            twin = type(inner)(list(self.feedback.values()), **settings)
        except Exception as error:  # optimizers of others may ask for anything
            raise RuleError(
                f"The local readouts are trained by an optimizer like yours, but {type(inner).__name__} could not be "
                f'made with its own defaults ({error}). Use another one, or learning_signal="local_random".'
            ) from error
        if self._twin_state is not None:
            twin.load_state_dict(self._twin_state)
            self._twin_state = None
        return twin

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        own = {"readout_optimizer": self._twin.state_dict()} if self._twin is not None else {}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self._twin = None
        self._twin_state = state.get("readout_optimizer")


@register_signal("local")
class TrainedReadouts(LocalReadouts):
    """The signal "local"."""

    needs_optimizer = True


@register_signal("tess")
class SquareWaves(LocalReadouts):
    """The signal "tess"."""

    def make_feedback(self, hidden: list[str], seed: int) -> Feedback:
        """See the base class."""
        return Feedback(hidden, seed, make=square_waves)

    def projection(self, spikes: Hidden, outputs: int) -> Projection:
        """See the base class; layers with spatial dimensions are read out, and taught, through their averages."""
        pooled = [(name, y.flatten(2).mean(2) if y.dim() > 2 else y) for name, y in spikes]
        project = super().projection(pooled, outputs)

        def spread(error: Tensor) -> list[Tensor]:
            deltas = []
            for delta, (_, y) in zip(project(error), spikes, strict=True):
                if y.dim() > 2:
                    places = y[0, 0].numel()
                    delta = (delta / places).reshape(*y.shape[:2], *[1] * (y.dim() - 2)).expand_as(y)
                deltas.append(delta)
            return deltas

        return spread

    @classmethod
    def cost(cls, name: str, spikes: Tensor, outputs: int) -> SignalCost:
        """See the base class: products with -1 and 1 are additions; spatial dimensions are averaged over."""
        if spikes.dim() == 2:
            return SignalCost(_active(spikes) * outputs + outputs * spikes[0].numel(), 0)
        return SignalCost(_active(spikes) + outputs * spikes.shape[1], outputs * spikes.shape[1])


def _active(spikes: Tensor) -> Tensor:
    """Number of spikes of each sample."""
    return (spikes != 0).flatten(1).sum(1, dtype=torch.float64)


def square_waves(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """``sign(sin(f_c k))`` for class c and channel k = 1, 2, ...; f_c evenly spaced in [50, 512]. Shape [C, n]."""
    frequencies = torch.linspace(50.0, 512.0, shape[0], dtype=torch.float64)
    channels = torch.arange(1, shape[1] + 1, dtype=torch.float64)
    return torch.sin(frequencies[:, None] * channels).sign().float()
