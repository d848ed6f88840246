"""Peak memory and time of a training batch, on a real batch stretched to any number of time steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.comparison.experiment import Experiment, RunCLI, Variant
from lightning_modules.comparison.training import quiet
from lightning_modules.memory import measure_peak_memory
from lightning_modules.tasks.classes import UNLABELLED

Batch = tuple[Tensor, Tensor, Tensor]


def stretch(batch: Batch, num_steps: int) -> Batch:
    """The batch with so many time steps: cut off, or repeated from its beginning.

    Args:
        batch: Frames [B, T, ...], lengths [B], labels [B] or one for each step [B, T].
        num_steps: Wanted number of time steps; all samples get this length.
    """
    frames, lengths, labels = batch
    steps = torch.arange(num_steps) % frames.shape[1]
    per_step = labels.dim() == 2
    return frames[:, steps], torch.full_like(lengths, num_steps), labels[:, steps] if per_step else labels


def peak_memory(experiment: Experiment, variant: Variant, num_steps: int, device: str = "cpu") -> int | None:
    """Peak bytes of one training batch, in a process of its own; None if the process dies, as where memory runs out."""
    arguments = experiment.arguments(variant)
    try:
        return measure_peak_memory(prepare_batch, arguments, num_steps, device=device)
    except RuntimeError as error:
        if "ended without an answer" in str(error) or "out of memory" in str(error).lower():
            return None
        raise


def prepare_batch(arguments: list[str], num_steps: int) -> Callable[[], object]:
    """One training batch as a function; a short sequence runs before, so that first-use costs do not count."""
    run = _Contender(arguments)
    run.fit(run.batch_of(1 + getattr(run.cli.model, "skip_first", 0)))
    return partial(run.fit, run.batch_of(num_steps))


def seconds_per_step(
    experiment: Experiment, variants: Sequence[Variant], rounds: int = 5, batches: int = 3
) -> dict[str, dict[str, float]]:
    """Seconds of one training step (a batch: forward, learning, update), median and quartiles, by variant.

    The contenders take turns, so that a machine whose speed drifts is fair to all of them. The first batch of each turn
    does not count, and each turn begins with the same weights.

    Args:
        experiment: The configuration.
        variants: The contenders.
        rounds: Turns of each contender.
        batches: Batches of a turn that count.
    """
    contenders = {variant.name: _Contender(experiment.arguments(variant)) for variant in variants}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.restore()
            contender.fit(*[contender.batch] * (batches + 1))
            times[name] += contender.watch.seconds[1:]
    return {name: _quartiles(values) for name, values in times.items()}


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": median, "low": low, "high": high, "count": len(values)}


class _Contender:
    """A task with one real batch."""

    def __init__(self, arguments: list[str]) -> None:
        self.watch = _Watch()
        with quiet():
            once: dict[str, Any] = {
                "max_epochs": 1,
                "max_steps": -1,
                "limit_train_batches": None,
                "limit_val_batches": 0,
            }
            self.cli = RunCLI(arguments, trainer=once | {"callbacks": [self.watch], "enable_checkpointing": False})
            self.cli.datamodule.prepare_data()
            self.cli.datamodule.setup("fit")
            self.batch: Batch = next(iter(self.cli.datamodule.train_dataloader()))
        self._weights = {name: value.clone() for name, value in self.cli.model.state_dict().items()}

    def batch_of(self, num_steps: int) -> Batch:
        frames, lengths, labels = stretch(self.batch, num_steps)
        return frames, lengths, labels.masked_fill(labels == UNLABELLED, 0)

    def restore(self) -> None:
        self.cli.model.load_state_dict(self._weights)

    def fit(self, *batches: Batch) -> None:
        """Train on these batches, with a trainer of its own."""
        loader: DataLoader[Any] = DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]
        self.watch.seconds.clear()
        with quiet():
            self.cli.instantiate_trainer().fit(self.cli.model, loader)


class _Watch(Callback):
    """Seconds of each training batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        _finish(pl_module.device)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _finish(pl_module.device)
        self.seconds.append(time.perf_counter() - self._began)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_steps(num_steps: int) -> list[int]:
    """Numbers of time steps for memory against T: a half, one, two and four times the data's."""
    return sorted({max(1, num_steps // 2), num_steps, 2 * num_steps, 4 * num_steps})
