"""The errors of optical flow of each recording, as tables in papers have them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.callbacks.flow_watch import FlowWatch
from lightning_modules.flow.batch import FlowBatch, FlowWindow
from lightning_modules.flow.fields import Mask
from lightning_modules.flow.metrics import flow_metrics
from lightning_modules.processes import from_all_processes, log_folder

Sums = dict[str, dict[str, float]]
SHOWN = {
    "windows": "windows",
    "aee": "AEE",
    "aee_zero": "zero flow",
    "outliers_1px": "> 1 px",
    "outliers_2px": "> 2 px",
    "outliers_3px": "> 3 px",
    "outliers_kitti": "KITTI",
}


class FlowTable(Callback):
    """In the test, a line for each recording: its AEE, that of zero flow, and its outliers in per cent.

    The table is printed, written to ``flow_table.csv`` beside the logs, and logged: ``test_aee/<recording>``,
    ``test_aee_zero/<recording>``, and with several recordings ``test_aee_sum`` and ``test_aee_zero_sum``. A recording's
    value is the mean over its windows of each window's mean over the pixels that count. Recordings without true flow
    are left out. Nothing is run for it.

    Args:
        mask: Pixels that count: "valid", "events" or "both" (see `AverageEndpointError`). If left out, as the task
            says.
    """

    def __init__(self, mask: Mask | None = None) -> None:
        if mask not in (None, "valid", "events", "both"):
            raise ValueError(f'FlowTable: mask={mask!r} is not known; use "valid", "events" or "both".')
        self.mask = mask
        self._watch = FlowWatch()
        self._sums: Sums = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        self._sums = {}

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to watch the network's flows."""
        if isinstance(batch, FlowBatch) and batch.flow is not None:
            self._watch.start(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the windows of each recording."""
        flows = self._watch.stop(batch)
        if not flows and isinstance(batch, FlowBatch) and batch.flow is not None and batch.present.any():
            raise TypeError(
                f"FlowTable: the network of {type(pl_module).__name__} was not called once for each time step, so that "
                "its flows are not known. Leave FlowTable out of the callbacks."
            )
        mask: Mask = self.mask if self.mask is not None else getattr(pl_module, "metric_mask", "valid")
        for w, flow in enumerate(flows):
            window = batch.window(w)
            for sample, present in enumerate(window.present.tolist()):
                if not present:
                    continue
                metrics = flow_metrics(mask, events=False, sync_on_compute=False).to(flow.device)
                one = slice(sample, sample + 1)
                metrics.update(flow[one], _one(window, one))
                values = {name: float(value) for name, value in metrics.compute().items()}
                if not math.isnan(values["aee"]):
                    name = batch.names[sample] if sample < len(batch.names) else f"sample {sample}"
                    _add(self._sums, {name: values | {"windows": 1.0}})

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, write and log the table."""
        folder = log_folder(trainer)  # asks all processes
        means = {name: _mean(sums) for name, sums in sorted(_over_processes(self._sums).items())}
        if not means:
            return
        for name, row in means.items():
            pl_module.log_dict({f"test_{kind}/{name}": row[kind] for kind in ("aee", "aee_zero")}, sync_dist=True)
        if len(means) > 1:
            total = {kind: sum(row[kind] for row in means.values()) for kind in ("windows", "aee", "aee_zero")}
            pl_module.log_dict({f"test_{kind}_sum": total[kind] for kind in ("aee", "aee_zero")}, sync_dist=True)
            means["sum"] = total
        rank_zero_info(_text(means))
        if trainer.is_global_zero and folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            Path(folder).mkdir(parents=True, exist_ok=True)
            with open(Path(folder, "flow_table.csv"), "w", newline="") as file:
                writer = csv.DictWriter(file, ["recording", *SHOWN], restval="")
                writer.writeheader()
                writer.writerows({"recording": name, **row} for name, row in means.items())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._watch.stop()


def _one(window: FlowWindow, samples: slice) -> FlowWindow:
    """What the errors need of one sample."""
    valid = None if window.valid is None else window.valid[samples]
    assert window.flow is not None
    return FlowWindow(window.counts[samples], window.present[samples], flow=window.flow[samples], valid=valid)


def _add(sums: Sums, more: Mapping[str, Mapping[str, float]]) -> None:
    for name, values in more.items():
        mine = sums.setdefault(name, dict.fromkeys(SHOWN, 0.0))
        for kind, value in values.items():
            mine[kind] += value


def _mean(sums: Mapping[str, float]) -> dict[str, float]:
    windows = sums["windows"]
    return {kind: value if kind == "windows" else value / windows for kind, value in sums.items()}


def _over_processes(sums: Sums) -> Sums:
    """The sums of all processes, on each of them."""
    whole: Sums = {}
    for part in from_all_processes(sums):
        _add(whole, part)
    return whole


def _text(means: Mapping[str, Mapping[str, float]]) -> str:
    width = max(len(name) for name in (*means, "recording"))
    lines = [f"{'recording':{width}}" + "".join(f"{title:>11}" for title in SHOWN.values())]
    for name, row in means.items():
        cells = [
            f"{row[kind]:.0f}" if kind == "windows" else f"{row[kind]:.2f}" if kind in row else "" for kind in SHOWN
        ]
        lines.append(f"{name:{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
