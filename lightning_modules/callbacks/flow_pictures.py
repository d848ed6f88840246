"""Pictures of optical flow: of a few validation samples while a network trains, and of whole recordings it predicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from lightning_modules.callbacks.flow_watch import FlowWatch
from lightning_modules.flow.batch import FlowBatch
from lightning_modules.flow.pictures import check_torchvision, flow_figure, nice_scale, rendered
from lightning_modules.processes import log_folder


class FlowPictures(BasePredictionWriter):
    """Draws events, true and predicted flow, and the events moved with the flow.

    **While a network trains** it draws the last window of some samples of the first validation batch, in every epoch
    or every so many. The pictures ``flow/<recording>`` go to TensorBoard (tab "Images") where that is the logger, and
    otherwise into ``pictures/epoch_<n>_<recording>.png`` in the folder of the logs. Nothing is run for them.

    **stllr predict** gets a folder ``flow/<recording>`` beside the logs, with a picture of each window
    (``000000.png``, ...) and with ``<recording>.gif``. In all pictures of a recording the same colour is the same flow.

    The task is an `OpticalFlowEstimator`, or another one whose batches are `FlowBatch`, whose ``network`` is called
    once for each time step, and whose ``predict_step`` gives flows [B, W, 2, H, W].

    Args:
        every_n_epochs: Draw in every so many epochs, the first included.
        samples: How many samples of the validation batch are drawn.
        every_n_windows: In prediction, draw every so many windows of a recording, the first included.
        windows: In prediction, the most windows of a recording that are drawn.
        gif: Whether to write the GIF.
        gif_fps: Its pictures per second.
        flows: Also keep the predicted flow of each window that is drawn, as ``000000.npy`` ([2, H, W], pixels per
            window).
        dpi: Resolution of the pictures, in points per inch.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        samples: int = 2,
        every_n_windows: int = 1,
        windows: int = 100,
        gif: bool = True,
        gif_fps: float = 8.0,
        flows: bool = False,
        dpi: int = 100,
    ) -> None:
        super().__init__(write_interval="batch")
        if min(every_n_epochs, samples, every_n_windows, windows, dpi) < 1 or gif_fps <= 0:
            raise ValueError(
                "FlowPictures: every_n_epochs, samples, every_n_windows, windows and dpi must be at least 1, and "
                "gif_fps must be positive."
            )
        check_torchvision()
        self.every_n_epochs = every_n_epochs
        self.samples = samples
        self.every_n_windows = every_n_windows
        self.windows = windows
        self.gif = gif
        self.gif_fps = gif_fps
        self.flows = flows
        self.dpi = dpi
        self._watch = FlowWatch(samples)
        self._folder = Path("flow")
        self._lanes: dict[int, _Album] = {}
        self._names: set[str] = set()

    # While a network trains.

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to watch the network's flows."""
        self._watch.stop()
        if batch_idx or dataloader_idx or trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs:
            return
        if trainer.is_global_zero and isinstance(batch, FlowBatch):
            self._watch.start(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw samples of the first batch."""
        due = batch_idx == dataloader_idx == 0 and not trainer.sanity_checking and not _dry(trainer)
        folder = log_folder(trainer) if due else None  # asks all processes
        flows = self._watch.stop(batch)
        if not due or not flows:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for sample in range(min(self.samples, len(batch.new_recording))):
            present = batch.present[sample].nonzero()
            if not len(present):
                continue
            last = int(present[-1])
            name = _name(batch, sample)
            title = f"{name}, window {last}, epoch {trainer.current_epoch}"
            figure = flow_figure(batch.window(last), flows[last], sample, title)
            for board in boards:
                board.experiment.add_figure(f"flow/{name}", figure, trainer.global_step, close=False)
            if not boards and folder is not None:
                path = Path(folder, "pictures", f"epoch_{trainer.current_epoch}_{_file_name(name)}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rendered(figure, self.dpi)).save(path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._watch.stop()

    # What ``stllr predict`` writes.

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        self._lanes.clear()
        self._names.clear()
        # This asks all processes, which later have batches of their own.
        self._folder = Path(log_folder(trainer) or ".", "flow")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Draw the windows of one batch."""
        if not isinstance(batch, FlowBatch) or not isinstance(prediction, Tensor):
            raise TypeError(
                f"FlowPictures: expected batches of FlowBatch and predicted flows as a tensor [B, W, 2, H, W], got "
                f"{type(batch).__name__} and {type(prediction).__name__}. Leave FlowPictures out of the callbacks."
            )
        if _dry(trainer):
            return
        for sample in range(len(batch.new_recording)):
            if sample not in self._lanes or bool(batch.new_recording[sample]):
                self._end(sample)
                name = _name(batch, sample)
                unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 10**6))) if n not in self._names)
                self._names.add(unique)
                self._lanes[sample] = _Album(
                    unique, self._folder / _file_name(unique), self._scale(batch, prediction, sample)
                )
            album = self._lanes[sample]
            for w in range(batch.num_windows):
                if not bool(batch.present[sample, w]):
                    continue
                index, album.seen = album.seen, album.seen + 1
                if index % self.every_n_windows or album.drawn >= self.windows:
                    continue
                album.drawn += 1
                title = f"{album.name}, window {index}"
                figure = flow_figure(batch.window(w), prediction[:, w], sample, title, album.scale)
                album.folder.mkdir(parents=True, exist_ok=True)
                path = album.folder / f"{index:06d}.png"
                picture = Image.fromarray(rendered(figure, self.dpi))
                picture.save(path)
                if self.flows:
                    np.save(path.with_suffix(".npy"), prediction[sample, w].float().cpu().numpy())
                if self.gif:
                    album.frames.append(picture.quantize(256))  # the colours of a GIF, in a third of the memory

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left, and say where everything is."""
        for sample in list(self._lanes):
            self._end(sample)
        if self._names:
            rank_zero_info(f"Pictures of the flow: {self._folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching, and let go of the pictures."""
        self._watch.stop()
        self._lanes.clear()

    def _end(self, sample: int) -> None:
        album = self._lanes.pop(sample, None)
        if album is not None and len(album.frames) > 1:
            path = album.folder / f"{album.folder.name}.gif"
            pause = round(1000 / self.gif_fps)
            album.frames[0].save(path, save_all=True, append_images=album.frames[1:], duration=pause, loop=0)

    def _scale(self, batch: FlowBatch, prediction: Tensor, sample: int) -> float:
        """One scale for a recording, from its first windows: the true flow where there is one."""
        present = batch.present[sample]
        flow = prediction[sample][present]
        if batch.flow is not None:
            known = batch.flow.isfinite().all(2)
            if batch.valid is not None:
                known = known & batch.valid
            truth = batch.flow.where(known.unsqueeze(2), 0)[sample][present]
            flow = truth if truth.any() else flow
        return nice_scale(*flow.unbind(0)) if len(flow) else 1.0


class _Album:
    """The pictures of one recording."""

    def __init__(self, name: str, folder: Path, scale: float) -> None:
        self.name, self.folder, self.scale = name, folder, scale
        self.seen = self.drawn = 0
        self.frames: list[Image.Image] = []


def _dry(trainer: Trainer) -> bool:
    """Whether this is a trial run, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _name(batch: FlowBatch, sample: int) -> str:
    return batch.names[sample] if sample < len(batch.names) else f"sample {sample}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "recording"
