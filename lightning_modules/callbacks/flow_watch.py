"""The flows that a network gives while it runs anyway."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.flow.batch import FlowBatch


class FlowWatch:
    """Keeps the finest flow of each time step of one batch, of the first so many samples (all if ``None``)."""

    def __init__(self, samples: int | None = None) -> None:
        self._samples = samples
        self._handle: RemovableHandle | None = None
        self._steps: list[Tensor] = []

    def start(self, task: LightningModule) -> None:
        """Watch the task's network."""
        self.stop()
        self._handle = getattr(task, "network", task).register_forward_hook(self._keep)

    def stop(self, batch: Any = None) -> list[Tensor]:
        """Stop watching.

        Returns:
            The flow [B, 2, H, W] of each window of the batch; nothing if the network was not called once for each time
            step, or if nobody watched.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        steps, self._steps = self._steps, []
        if not steps or not isinstance(batch, FlowBatch):
            return []
        per_window = batch.counts.shape[2]
        return steps[per_window - 1 :: per_window] if len(steps) == batch.num_windows * per_window else []

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        finest = output[-1] if isinstance(output, (list, tuple)) else output
        self._steps.append(finest.detach()[: self._samples])
