"""The picture of ``stllr demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.demo.inspection import Recording
from lightning_modules.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#22303c", "#6b7785", "#dfe4ea"
ON, OFF = "#d1495b", "#2f6690"
CAUSAL, NONCAUSAL, GOOD = "#e07a2f", "#7a5195", "#2a9d6f"


@dataclass(frozen=True)
class DemoPicture:
    """What the picture shows.

    Attributes:
        frames: Some samples, [N, T, 2, H, W]; the first is the one that is looked into.
        labels: Their classes, [N].
        predictions: What the network says, [N].
        recording: The inside of the network during the first sample.
        train_accuracy: Per epoch, 0 to 1.
        val_accuracy: Per epoch, 0 to 1.
        test_labels: Classes of all test samples.
        test_predictions: Predictions for all test samples.
        memory: Peak bytes for "stllr" and "bptt".
        num_steps: Time steps of the batch for which the memory was measured.
    """

    frames: Tensor
    labels: Tensor
    predictions: Tensor
    recording: Recording
    train_accuracy: list[float]
    val_accuracy: list[float]
    test_labels: Tensor
    test_predictions: Tensor
    memory: dict[str, int]
    num_steps: int


def draw_demo(content: DemoPicture, path: Path) -> None:
    """Draw the picture into a PNG file."""
    import matplotlib

    style: Any = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": SOFT,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "figure.facecolor": "white",
    }
    with matplotlib.rc_context(style):
        figure = _compose(content)
        figure.savefig(path, dpi=150)


def _compose(content: DemoPicture) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10.8))
    FigureCanvasAgg(figure)
    left, right = 0.062, 0.972
    accuracy = float((content.test_labels == content.test_predictions).float().mean())
    figure.text(left, 0.962, "A spiking network learns online, with S-TLLR", fontsize=20, weight="bold", va="center")
    figure.text(
        left,
        0.930,
        f"Test accuracy {accuracy:.1%} on handwritten digits seen by a simulated event camera. "
        "No gradient flows from one time step to another.",
        fontsize=11.5,
        color=SOFT,
        va="center",
    )
    count = min(len(content.frames), 8)
    top = figure.add_gridspec(1, count, left=left, right=right, top=0.872, bottom=0.742, wspace=0.08)
    for index in range(count):
        axes = figure.add_subplot(top[index])
        _sample(axes, content.frames[index], int(content.labels[index]), int(content.predictions[index]))
        if index == 0:
            axes.set_title("Test samples: events of the first saccade")
            _frame(axes, INK)
    for offset, colour, text in ((0.0, ON, "brighter"), (0.052, OFF, "darker")):
        figure.text(right - offset, 0.8865, text, color=colour, ha="right", weight="bold", fontsize=10)

    raster = figure.add_gridspec(1, 1, left=left, right=0.44, top=0.655, bottom=0.415)
    _raster(figure.add_subplot(raster[0]), content.recording, int(content.labels[0]))
    traces = figure.add_gridspec(
        3, 1, left=0.52, right=right, top=0.655, bottom=0.415, hspace=0.25, height_ratios=(1, 1, 1.5)
    )
    _traces([figure.add_subplot(traces[index]) for index in range(3)], content.recording)

    bottom = figure.add_gridspec(
        1, 3, left=left, right=right, top=0.305, bottom=0.062, width_ratios=(1.4, 0.95, 1), wspace=0.24
    )
    _learning_curve(figure.add_subplot(bottom[0]), content)
    _confusion(figure.add_subplot(bottom[1]), content)
    _memory(figure.add_subplot(bottom[2]), content)
    return figure


def _sample(axes: Axes, frames: Tensor, label: int, prediction: int) -> None:
    """All events of one saccade in one image: red where brightness rose, blue where it fell."""
    counts = frames[: max(1, len(frames) // 3)].sum(0).float().cpu().numpy()
    strength = np.clip(counts / max(1.0, float(np.percentile(counts[counts > 0], 90)) if counts.any() else 1.0), 0, 1)
    image = np.ones((*counts.shape[1:], 3))
    for channel, colour in ((0, OFF), (1, ON)):
        paint = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        image *= 1 - strength[channel][..., None] * (1 - paint)
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    _frame(axes, GRID)
    right = label == prediction
    text = f"says {prediction}" if right else f"says {prediction}, is {label}"
    axes.set_xlabel(text, color=GOOD if right else ON, weight="bold", labelpad=5)


def _frame(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        spine.set_linewidth(1.6)


def _raster(axes: Axes, recording: Recording, label: int, count: int = 70) -> None:
    """Neurons of all degrees of activity, the busiest at the top."""
    spikes = recording.spikes.cpu()
    fired = spikes.sum(0)
    ranked = fired.argsort(stable=True)[int((fired == 0).sum()) :]
    shown = ranked[torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).long()] if len(ranked) else ranked
    step, neuron = torch.nonzero(spikes[:, shown], as_tuple=True)
    axes.scatter(step, neuron, s=9, color=INK, linewidths=0)
    layer = recording.edge.partition("->")[2].rpartition(".")[2]
    axes.set_title(f"Spikes of hidden layer {layer} for the first sample, a {label}")
    axes.set_xlabel("time step")
    axes.set_ylabel(f"{len(shown)} of its {spikes.shape[1]} neurons")
    axes.set_ylim(-2, len(shown) + 1)
    axes.set_yticks([])
    _time_axis(axes, len(spikes))


def _time_axis(axes: Axes, num_steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.6, num_steps - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _traces(panels: list[Axes], recording: Recording) -> None:
    from matplotlib.ticker import MaxNLocator

    pre_axes, post_axes, eligibility = panels
    steps = np.arange(len(recording.pre))
    pre, post = recording.pre.numpy(), recording.post.numpy()
    inputs, causal, noncausal = recording.inputs.numpy(), recording.causal.numpy(), recording.noncausal.numpy()
    arrived = steps[inputs > 0.5]

    pre_axes.set_title(
        f"One synapse of {recording.edge.partition('->')[0].rpartition('.')[2]}, remembered by two traces"
    )
    pre_axes.fill_between(steps, pre, color=CAUSAL, alpha=0.18, linewidth=0)
    pre_axes.plot(steps, pre, color=CAUSAL, linewidth=1.8)
    pre_axes.vlines(arrived, -0.22 * pre.max(), -0.06 * pre.max(), color=INK, linewidth=1.6)
    pre_axes.set_ylabel("pre\ntrace", rotation=0, ha="right", va="center")
    post_axes.fill_between(steps, post, color=NONCAUSAL, alpha=0.16, linewidth=0)
    post_axes.plot(steps, post, color=NONCAUSAL, linewidth=1.8)
    post_axes.set_ylabel("post\ntrace", rotation=0, ha="right", va="center")

    eligibility.bar(steps, causal, width=0.75, color=CAUSAL, label="causal: input first, then activity")
    eligibility.bar(steps, noncausal, width=0.75, color=NONCAUSAL, label="non-causal: activity first")
    eligibility.plot(steps, causal + noncausal, color=INK, linewidth=1.4, marker="o", markersize=3, label="sum")
    eligibility.axhline(0, color=SOFT, linewidth=0.8)
    eligibility.set_ylabel("eligi-\nbility", rotation=0, ha="right", va="center")
    eligibility.set_xlabel("time step   (ticks under the first curve: spikes that arrive)")
    low, high = eligibility.get_ylim()
    eligibility.set_ylim(low, high + 0.5 * (high - low))
    handles, names = eligibility.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] == "sum")
    eligibility.legend(
        [handles[i] for i in order],
        [names[i] for i in order],
        loc="upper left",
        ncols=3,
        frameon=False,
        fontsize=8.8,
        handlelength=1.2,
        borderaxespad=0.1,
    )
    for axes in panels:
        _time_axis(axes, len(steps))
        axes.yaxis.set_major_locator(MaxNLocator(2))
        if axes is not eligibility:
            axes.tick_params(labelbottom=False, length=0)


def _learning_curve(axes: Axes, content: DemoPicture) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for values, colour, name in (
        (content.train_accuracy, SOFT, "training"),
        (content.val_accuracy, GOOD, "validation"),
    ):
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, color=colour, linewidth=2.2, marker="o", markersize=4, label=name)
    axes.axhline(0.1, color=GRID, linewidth=1.2, linestyle="--")
    axes.text(1, 0.115, "chance", color=SOFT, fontsize=8.5, ha="left")
    axes.set_title("Learning curve")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")


def _confusion(axes: Axes, content: DemoPicture) -> None:
    classes = int(max(content.test_labels.max(), content.test_predictions.max())) + 1
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix.index_put_((content.test_labels.cpu(), content.test_predictions.cpu()), torch.tensor(1), accumulate=True)
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Greens", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix.numpy()):
        if number:
            dark = share[row, column] > 0.5
            axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_title("Test samples")
    axes.set_xlabel("network says")
    axes.set_ylabel("digit")
    axes.set_xticks(range(classes))
    axes.set_yticks(range(classes))
    axes.tick_params(length=0)
    _frame(axes, GRID)


def _memory(axes: Axes, content: DemoPicture) -> None:
    values = [content.memory["bptt"], content.memory["stllr"]]
    bars = axes.barh([0, 1], values, height=0.5, color=[SOFT, GOOD])
    for bar, value in zip(bars, values, strict=True):
        axes.text(
            bar.get_width() + 0.02 * max(values),
            bar.get_y() + bar.get_height() / 2,
            format_bytes(value),
            va="center",
            weight="bold",
        )
    axes.set_yticks([0, 1], ["BPTT", "S-TLLR"])
    axes.tick_params(axis="y", length=0, labelsize=11, labelcolor=INK)
    axes.set_xticks([])
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_ylim(-0.55, 1.5)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Peak memory of a training batch")
    axes.text(
        0,
        0.0,
        f"Same network, same {content.num_steps} time steps. Process memory\nabove its level before the batch.",
        transform=axes.transAxes,
        va="top",
        fontsize=9,
        color=SOFT,
    )
