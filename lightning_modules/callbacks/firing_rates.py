"""Firing rates of spiking layers, with advice where a layer cannot learn."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.processes import over_processes
from lightning_modules.tasks.states import spikes_of, spiking_modules

_PHASES = {"train": "train", "validate": "val", "test": "test"}


class FiringRates(Callback):
    """Logs the mean firing rate of each spiking layer: spikes per neuron and time step, padding excluded.

    Logged once per epoch as ``train_rate/<layer>``, ``val_rate/<layer>`` and ``test_rate/<layer>``. A layer that is
    nearly silent or nearly always active over a training epoch gets one warning with advice.

    Args:
        dead: Warn below this rate.
        saturated: Warn above this rate.
        skip: Patterns of module names to leave out; by default everything in a readout.
    """

    def __init__(
        self, dead: float = 0.001, saturated: float = 0.6, skip: tuple[str, ...] = ("readout*", "*.readout*")
    ) -> None:
        self.dead = dead
        self.saturated = saturated
        self.skip = tuple(skip)
        self._handles: list[RemovableHandle] = []
        self._totals: dict[
            tuple[str, str], Tensor
        ] = {}  # (phase, layer) -> [sum of rates, number of samples and steps]
        self._warned: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the neurons."""
        self._forget()
        network = getattr(pl_module, "network", pl_module)
        for name, module in spiking_modules(network, self.skip).items():
            self._handles.append(module.register_forward_hook(_RateHook(self, name, pl_module)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._forget()

    def record(self, phase: str, name: str, spikes: Tensor, active: Tensor | None) -> None:
        """Count the spikes [B, ...] of one time step; ``active`` [B] marks the samples that are not padding."""
        with torch.no_grad():
            rates = spikes.detach().flatten(1).mean(1, dtype=torch.float32)
            weights = torch.ones_like(rates) if active is None else active.to(rates)
            total = torch.stack(((rates * weights).sum(), weights.sum()))
        known = self._totals.get((phase, name))
        self._totals[phase, name] = total if known is None else known + total

    def rates(self, phase: str) -> dict[str, float]:
        """Mean rate of each layer since the phase ("train", "val" or "test") began."""
        return {
            name: float(total[0] / total[1].clamp(min=1))
            for (recorded, name), total in self._totals.items()
            if recorded == phase
        }

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._clear("train")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._clear("val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._clear("test")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rates, and warn where a layer cannot learn."""
        self._log(trainer, pl_module, "train")
        for name, rate in self.rates("train").items():
            advice = self.advice(name, rate)
            if advice and name not in self._warned:
                self._warned.add(name)
                rank_zero_warn(advice)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rates."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rates."""
        self._log(trainer, pl_module, "test")

    def advice(self, name: str, rate: float) -> str | None:
        """What to do about a layer with this firing rate; None when it is fine."""
        if rate < self.dead:
            return (
                f"Layer {name!r} is nearly silent: {rate:.2%} of its neurons fire per time step, so little can be "
                "learned above and below it. Lower its threshold, raise the initial weights (`gain`) or the membrane "
                "decay (`beta`), or use longer time bins, which hold more events."
            )
        if rate > self.saturated:
            return (
                f"Layer {name!r} is saturated: {rate:.0%} of its neurons fire per time step, so its spikes say little. "
                "Raise its threshold, lower the initial weights (`gain`) or the membrane decay (`beta`), or clip the "
                "event counts of the frames."
            )
        return None

    def _log(self, trainer: Trainer, pl_module: LightningModule, phase: str) -> None:
        for key, total in self._totals.items():
            if key[0] == phase:  # over all processes, each with its own number of samples and steps
                self._totals[key] = over_processes(trainer, total)
        rates = {f"{phase}_rate/{name}": rate for name, rate in self.rates(phase).items()}
        pl_module.log_dict(rates, sync_dist=True)

    def _clear(self, phase: str) -> None:
        self._totals = {key: total for key, total in self._totals.items() if key[0] != phase}

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._totals.clear()


class _RateHook:
    """Forward hook of one layer; a copy of the module carries a hook that does nothing."""

    def __init__(self, callback: FiringRates | None, name: str, task: LightningModule | None) -> None:
        self.callback, self.name, self.task = callback, name, task

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.callback is None or self.task is None or getattr(getattr(self.task, "learner", None), "trial", False):
            return
        trainer = self.task._trainer
        phase = _PHASES.get(str(trainer.state.stage.value)) if trainer is not None and trainer.state.stage else None
        if phase is not None:
            self.callback.record(phase, self.name, spikes_of(output), getattr(self.task, "active", None))

    def __deepcopy__(self, memo: dict[int, Any]) -> _RateHook:
        return _RateHook(None, self.name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RateHook, (None, self.name, None)
