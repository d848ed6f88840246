"""Pictures of what one sequence does in the network: spikes of every layer, traces of every edge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.processes import log_folder
from lightning_modules.tasks.states import spikes_of, spiking_modules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PRE, POST = "#22303c", "#e07a2f", "#7a5195"


class SequencePictures(Callback):
    """Draws the first sample of an epoch's first training batch: a raster per spiking layer, traces per edge.

    Nothing is run for it: the callback watches the batch that is trained on anyway. The figure ``sequence`` goes to
    TensorBoard (tab "Images") where that is the logger, and otherwise into ``pictures/epoch_<n>.png`` in the folder of
    the logs. Without a learner ("bptt") there are rasters only.

    Args:
        every_n_epochs: Draw in every so many epochs, the first included.
        neurons: Most neurons of a layer in a raster, spread evenly over the layer.
        traces: Most traces in the panel of an edge; those that vary most are drawn.
        skip: Patterns of layers to leave out.
    """

    def __init__(self, every_n_epochs: int = 1, neurons: int = 64, traces: int = 3, skip: tuple[str, ...] = ()) -> None:
        if min(every_n_epochs, neurons, traces) < 1:
            raise ValueError("SequencePictures: every_n_epochs, neurons and traces must be at least 1.")
        self.every_n_epochs = every_n_epochs
        self.neurons = neurons
        self.traces = traces
        self.skip = tuple(skip)
        self._handles: list[RemovableHandle] = []
        self._task: Any = None
        self._spikes: dict[str, list[Tensor]] = {}
        self._traces: dict[str, dict[str, list[Tensor]]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to watch."""
        self._stop()
        if batch_idx or trainer.current_epoch % self.every_n_epochs:
            return
        self._task = pl_module
        # Single time steps are drawn, so this batch runs step by step: in all processes, since windows exchange more.
        self._task.watched = True
        if not trainer.is_global_zero:
            return
        network = getattr(pl_module, "network", pl_module)
        for name, module in spiking_modules(network, self.skip).items():
            self._handles.append(module.register_forward_hook(_Watch(self, name, pl_module)))
        if network is not pl_module:
            self._handles.append(network.register_forward_hook(_Watch(self, None, pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw."""
        due = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        folder = log_folder(trainer) if due else None  # asks all processes
        if self._spikes:
            figure = self._draw(f"Epoch {trainer.current_epoch}, first training sample")
            boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
            for board in boards:
                board.experiment.add_figure("sequence", figure, trainer.global_step, close=False)
            if not boards and folder is not None:
                path = Path(folder, "pictures", f"epoch_{trainer.current_epoch}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=110)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._stop()

    def watch_spikes(self, layer: str, spikes: Tensor) -> None:
        """Keep some neurons of the first sample at one time step; ``spikes`` has the shape [B, ...]."""
        self._spikes.setdefault(layer, []).append(_some(spikes, self.neurons))

    def watch_traces(self, traces: dict[str, dict[str, Tensor | None]]) -> None:
        """Keep some traces of the first sample at one time step."""
        for edge, kinds in traces.items():
            for kind, trace in kinds.items():
                if trace is not None:
                    self._traces.setdefault(edge, {}).setdefault(kind, []).append(_some(trace, 8 * self.neurons))

    def _draw(self, title: str) -> Figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = len(self._spikes) + len(self._traces)
        figure = Figure(figsize=(9, 0.7 + 1.7 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, color=INK)
        panels = iter(figure.subplots(rows, 1, squeeze=False)[:, 0])
        steps = max(len(kept) for kept in self._spikes.values())
        for layer, kept in self._spikes.items():
            axes, spikes = next(panels), torch.stack(kept)
            step, neuron = torch.nonzero(spikes, as_tuple=True)
            axes.scatter(step, neuron, s=5, color=INK, linewidths=0)
            axes.set_ylim(-1, spikes.shape[1])
            axes.set_title(f"{layer}: {float((spikes != 0).float().mean()):.1%} of steps with a spike", fontsize=9)
            axes.set_ylabel("neuron")
        for edge, kinds in self._traces.items():
            axes = next(panels)
            for kind, colour in (("pre", PRE), ("post", POST)):
                if kind in kinds:
                    curves = torch.stack(kinds[kind])
                    chosen = curves.std(0, unbiased=False).topk(min(self.traces, curves.shape[1])).indices
                    lines = axes.plot(curves[:, chosen], color=colour, linewidth=1)
                    lines[0].set_label(kind)
            axes.set_title(f"{edge}: traces that vary most", fontsize=9)
            axes.legend(loc="upper left", fontsize=8, frameon=False)
        for axes in figure.axes:
            axes.set_xlim(-0.5, steps - 0.5)
            axes.tick_params(labelsize=8)
        figure.axes[-1].set_xlabel("time step")
        return figure

    def _stop(self) -> None:
        if self._task is not None:
            self._task.watched = False
        self._task = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._spikes.clear()
        self._traces.clear()


class _Watch:
    """Forward hook of one layer, or of the whole network (``layer=None``); on a copy of the module it does nothing."""

    def __init__(self, callback: SequencePictures | None, layer: str | None, task: LightningModule | None) -> None:
        self.callback, self.layer, self.task = callback, layer, task

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        active = getattr(self.task, "active", None)
        if self.callback is None or not module.training or (active is not None and not bool(active[0])):
            return  # the sample is over
        if self.layer is not None:
            self.callback.watch_spikes(self.layer, spikes_of(output))
        elif (learner := getattr(self.task, "learner", None)) is not None:
            self.callback.watch_traces(learner.traces())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watch:
        return _Watch(None, self.layer, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watch, (None, self.layer, None)


def _some(values: Tensor, count: int) -> Tensor:
    """Up to ``count`` values of the first sample, spread evenly over the layer."""
    flat = values.detach()[0].flatten()
    places = torch.linspace(0, len(flat) - 1, min(count, len(flat)), device=flat.device).long()
    return flat[places].float().cpu()
