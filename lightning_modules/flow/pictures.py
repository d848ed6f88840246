"""Pictures of optical flow: events, true and predicted flow in colours, events moved with the flow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_modules.flow.batch import FlowWindow
from lightning_modules.flow.fields import pixels_with_events, true_flow
from lightning_modules.flow.metrics import FlowWarpLoss
from lightning_modules.flow.warp import at_size, move_events, splat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]

INK = "#22303c"
ON, OFF, UNKNOWN = (33, 102, 172), (178, 24, 43), (190, 190, 190)


def check_torchvision() -> None:
    """Raises ImportError, with what to do, where the colours of flow cannot be made."""
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Pictures of optical flow need torchvision: pip install 'stllr-plugin[vision]' (or leave FlowPictures out)."
        ) from error


def flow_colours(flow: Tensor, scale: float, known: Tensor | None = None) -> Image:
    """Flow in the colours of the Middlebury benchmark: the hue is the direction, white is rest.

    Args:
        flow: [2, H, W].
        scale: Length with the fullest colour; longer flow has the same.
        known: Pixels that are False here are grey, [H, W] bool.

    Returns:
        [H, W, 3] uint8.
    """
    from torchvision.utils import flow_to_image

    flow = flow.detach().float().cpu()
    flow = flow * (scale / torch.linalg.vector_norm(flow, dim=0).clamp(min=scale))
    # torchvision takes the longest flow as the scale; one more column makes that the wanted one.
    longest = torch.tensor([scale, 0.0]).view(2, 1, 1).expand(2, flow.shape[1], 1)
    colours = flow_to_image(torch.cat((flow, longest), dim=2))[..., :-1].permute(1, 2, 0)
    if known is not None:
        colours[~known.cpu()] = torch.tensor(UNKNOWN, dtype=torch.uint8)
    picture: Image = colours.numpy()
    return picture


def colour_wheel(size: int = 129) -> Image:
    """What the colours of `flow_colours` mean: each pixel shows the flow that leads there from the centre.

    Returns:
        [size, size, 3] uint8, white outside of the wheel.
    """
    axis = torch.linspace(-1, 1, size)
    flow = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    wheel = flow_colours(flow, 1.0)
    wheel[(torch.linalg.vector_norm(flow, dim=0) > 1).numpy()] = 255
    return wheel


def event_colours(window: FlowWindow, sample: int) -> Image:
    """The events of a window: ON blue, OFF red, on white or on the grey picture at the window's start; [H, W, 3]."""
    counts = window.counts[sample].detach().float().cpu().sum(0)
    ground = torch.full((*counts.shape[1:], 3), 255.0)
    if window.before is not None:
        grey = window.before[sample, 0].detach().float().cpu().clamp(0, 1)
        ground = (110 + 145 * grey).unsqueeze(2).expand(-1, -1, 3)
    number = counts.sum(0)
    some = number[number > 0]
    full = max(float(some.quantile(0.8)), 1.0) if len(some) else 1.0
    strength = torch.where(number > 0, (0.35 + 0.65 * number / full).clamp(max=1), 0).unsqueeze(2)
    share = (counts[1] / number.clamp(min=1)).unsqueeze(2)
    colour = share * torch.tensor(ON, dtype=torch.float) + (1 - share) * torch.tensor(OFF, dtype=torch.float)
    picture: Image = (strength * colour + (1 - strength) * ground).round().to(torch.uint8).numpy()
    return picture


def moved_events(window: FlowWindow, sample: int, flow: Tensor) -> Tensor:
    """How many events are at each pixel once they have moved with the flow [2, H, W] to the window's end: [H, W].

    Where the window has no single events, those of each time step move from the step's middle.
    """
    events, weights = _events(window, sample)
    flow = flow.detach().float().cpu().unsqueeze(0)
    places = move_events(events, flow, 1)
    size = (flow.shape[-2], flow.shape[-1])
    return splat(places, torch.zeros_like(weights), (weights,), size)[0][0, 0]


def nice_scale(*flows: Tensor) -> float:
    """A round number of pixels near the longest flow: 1, 2 or 5 times a power of ten."""
    lengths = torch.cat([torch.linalg.vector_norm(flow.detach().float(), dim=0).flatten().cpu() for flow in flows])
    lengths = lengths[lengths.isfinite() & (lengths > 0)]
    if not len(lengths):
        return 1.0
    longest = max(float(np.quantile(lengths.numpy(), 0.98)), 1e-3)
    power = 10.0 ** math.floor(math.log10(longest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= longest * 0.999)


def flow_figure(
    window: FlowWindow, flow: Tensor, sample: int = 0, title: str = "", scale: float | None = None
) -> Figure:
    """One window in one picture.

    Above: the events, the true flow where there is one, and the predicted flow. Below: the events as they are, and
    after each has moved with the true and with the predicted flow; the sharper, the better. The wheel says what the
    colours mean.

    Args:
        window: The window.
        flow: Predicted flow of all samples, [B, 2, h, w].
        sample: Which sample to draw.
        title: Above everything.
        scale: Flow with the fullest colour, in pixels per window. If left out, a round number that suits the flow.
    """
    size = window.counts.shape[-2:]
    predicted = at_size(flow.detach().float(), (size[0], size[1]))[sample].cpu()
    known = truth = None
    if window.flow is not None:
        whole, counted = true_flow(window, "flow_figure")
        truth, known = whole[sample].float().cpu(), counted[sample].cpu()
    if scale is None:
        scale = nice_scale(predicted if truth is None else truth, *(() if truth is None else (predicted,)))
    sheet = _Sheet(2 if truth is None else 3, size[0] / size[1], bool(title))
    sheet.place(0, 0, event_colours(window, sample), "events: ON blue, OFF red")
    flows = {"prediction": predicted}
    if truth is not None and known is not None:
        unknown = "" if known.all() else " (grey: not known)"
        sheet.place(0, 1, flow_colours(truth, scale, known), f"true flow{unknown}")
        flows = {"truth": truth, "prediction": predicted}
    text = "predicted flow" + _errors(window, sample, predicted, truth, known)
    sheet.place(0, sheet.columns - 1, flow_colours(predicted, scale), text)
    _place_moved(sheet, window, sample, flows, known)
    return sheet.finish(scale, title)


class _Sheet:
    """A figure with two rows of pictures, a wheel of colours beside them, and a title."""

    PANEL, GAP, HEAD, MARGIN = 2.9, 0.08, 0.28, 0.06  # inches

    def __init__(self, columns: int, shape: float, titled: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.columns = columns
        self.tall = self.PANEL * min(max(shape, 0.4), 1.5)
        self.top = 0.3 if titled else 0.0
        wide = columns * (self.PANEL + self.GAP) + 1.0
        self.high = 2 * (self.tall + self.HEAD) + self.top + self.MARGIN
        self.figure = Figure(figsize=(wide, self.high))
        FigureCanvasAgg(self.figure)
        # One coordinate system in inches for everything: seven of them would take most of the time.
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self._limits = {"xlim": (0, wide), "ylim": (0, self.high), "aspect": "auto"}

    def place(self, row: int, column: int, picture: Image, text: str) -> None:
        """A picture with a line of text above it."""
        from matplotlib.patches import Rectangle

        left = self.MARGIN + column * (self.PANEL + self.GAP)
        bottom = self.high - self.top - (row + 1) * (self.tall + self.HEAD)
        self._show(picture, left, bottom, self.PANEL, self.tall, interpolation="nearest")
        frame = Rectangle((left, bottom), self.PANEL, self.tall, fill=False, edgecolor="#b8bec4", linewidth=0.8)
        self.axes.add_patch(frame)
        self.axes.text(left + self.PANEL / 2, bottom + self.tall + 0.06, text, fontsize=9, color=INK, ha="center")

    def finish(self, scale: float, title: str) -> Figure:
        """What the colours mean, and the title."""
        left = self.MARGIN + self.columns * (self.PANEL + self.GAP)
        bottom = self.high - self.top - self.HEAD - 1.2
        self._show(colour_wheel(), left, bottom, 0.85, 0.85)
        text = f"{scale:g} px\nper window"
        self.axes.text(left + 0.425, bottom + 0.92, text, fontsize=8, color=INK, ha="center")
        if title:
            self.axes.text(self.MARGIN, self.high - 0.23, title, fontsize=11, color=INK)
        return self.figure

    def _show(self, picture: Image, left: float, bottom: float, wide: float, tall: float, **options: Any) -> None:
        self.axes.imshow(picture, extent=(left, left + wide, bottom, bottom + tall), **options)
        self.axes.set(**self._limits)  # imshow changes them


def _errors(window: FlowWindow, sample: int, predicted: Tensor, truth: Tensor | None, known: Tensor | None) -> str:
    """The endpoint errors of a prediction, where the true flow is known."""
    if truth is None or known is None or not known.any():
        return ""
    error = torch.linalg.vector_norm(predicted - truth, dim=0)
    text = f": AEE {float(error[known].mean()):.2f} px"
    both = known & pixels_with_events(window)[sample].cpu()
    return text + (f", at events {float(error[both].mean()):.2f}" if both.any() else "")


def _place_moved(
    sheet: _Sheet, window: FlowWindow, sample: int, flows: dict[str, Tensor], known: Tensor | None
) -> None:
    """The lower row: the events as they are, and moved with each flow."""
    still = moved_events(window, sample, torch.zeros_like(flows["prediction"]))
    pictures = {name: moved_events(window, sample, one) for name, one in flows.items()}
    some = torch.cat([picture[picture > 0.01].flatten() for picture in (still, *pictures.values())])
    full = max(float(np.quantile(some.numpy(), 0.97)), 1e-6) if len(some) else 1.0
    sheet.place(1, 0, _ink(still, full), f"events as they are: {round(float(still.sum()))}")
    for column, (name, picture) in enumerate(pictures.items(), start=1):
        everywhere = name == "prediction" or bool(known is not None and known.all())
        sharper = _sharpness(window, sample, flows[name]) if everywhere else None
        said = f": FWL {sharper:.2f}" if sharper else ""
        sheet.place(1, column, _ink(picture, full), f"moved with the {name}{said}")


def rendered(figure: Figure, dpi: int) -> Image:
    """The figure as an image [rows, columns, 3]."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    return np.ascontiguousarray(pixels)


def _ink(picture: Tensor, full: float) -> Image:
    dark = (picture / full).clamp(0, 1).unsqueeze(2)
    ink = torch.tensor([34.0, 48.0, 60.0])
    image: Image = (255 - dark * (255 - ink)).round().to(torch.uint8).numpy()
    return image


def _events(window: FlowWindow, sample: int) -> tuple[Tensor, Tensor]:
    """Events [1, N, 4] of one sample and how often each counts [1, N]."""
    if window.events is not None:
        events = window.events[sample].detach().float().cpu()
        if window.event_mask is not None:
            events = events[window.event_mask[sample].cpu()]
        return events.unsqueeze(0), torch.ones(1, len(events))
    counts = window.counts[sample].detach().float().cpu()
    step, channel, row, column = counts.nonzero().unbind(1)
    time, polarity = (step + 0.5) / len(counts), 2.0 * channel - 1
    events = torch.stack((time, column.float(), row.float(), polarity), dim=1)
    return events.unsqueeze(0), counts[step, channel, row, column].unsqueeze(0)


def _sharpness(window: FlowWindow, sample: int, flow: Tensor) -> float | None:
    """FWL of one sample; None where it is not defined or the window has no single events."""
    if window.events is None or window.event_mask is None:
        return None
    one = FlowWindow(
        counts=window.counts[sample : sample + 1].cpu(),
        present=torch.ones(1, dtype=torch.bool),
        events=window.events[sample : sample + 1].float().cpu(),
        event_mask=window.event_mask[sample : sample + 1].cpu(),
    )
    metric = FlowWarpLoss(sync_on_compute=False)  # one process draws
    metric.update(flow.unsqueeze(0), one)
    value = float(metric.compute())
    return None if math.isnan(value) else value
