"""Windows of event recordings with what is known about their optical flow.

A recording is cut into consecutive windows, and each window into time steps. Optical flow is given in pixels per
window, x (to the right) before y (down).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class FlowWindow:
    """One window of every sample of a batch.

    Attributes:
        counts: Events per pixel and time step, [B, T, 2, H, W]; channel 0 OFF, channel 1 ON.
        present: False for samples whose recording is over, [B] bool. Their other fields hold zeros.
        events: The single events [B, N, 4] float32: time in [0, 1] of the window, x, y, polarity -1 or +1. None where
            nobody asked for them.
        event_mask: False where a row of ``events`` is padding, [B, N] bool.
        before: Grey picture at the start of the window, [B, 1, H, W] in [0, 1]; None for recordings without pictures.
        after: Grey picture at the end of the window.
        flow: True flow [B, 2, H, W] in pixels per window; None where it is not known.
        valid: Pixels whose true flow is known and counted, [B, H, W] bool.
    """

    counts: Tensor
    present: Tensor
    events: Tensor | None = None
    event_mask: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    flow: Tensor | None = None
    valid: Tensor | None = None


@dataclass
class FlowBatch:
    """Consecutive windows of several recordings, one recording per sample.

    Attributes:
        counts: Events per pixel and time step, [B, W, T, 2, H, W]; channel 0 OFF, channel 1 ON.
        present: False for windows behind the end of the sample's recording, [B, W] bool.
        new_recording: True where the first window is the first of a recording, [B] bool. Elsewhere the windows follow
            on those of the same sample in the batch before.
        events: The single events, [B, W, N, 4], as in `FlowWindow`.
        event_mask: False where a row of ``events`` is padding, [B, W, N] bool.
        frames: Grey pictures at the ends of the windows, [B, W + 1, 1, H, W] in [0, 1].
        flow: True flow [B, W, 2, H, W] in pixels per window.
        valid: Pixels whose true flow is known and counted, [B, W, H, W] bool.
        names: What the recording of each sample is called.
    """

    counts: Tensor
    present: Tensor
    new_recording: Tensor
    events: Tensor | None = None
    event_mask: Tensor | None = None
    frames: Tensor | None = None
    flow: Tensor | None = None
    valid: Tensor | None = None
    names: list[str] = field(default_factory=list)

    @property
    def num_windows(self) -> int:
        """Windows of each sample, those behind its recording's end included."""
        return self.counts.shape[1]

    def window(self, index: int) -> FlowWindow:
        """The window at a position, of every sample."""

        def at(values: Tensor | None, position: int = index) -> Tensor | None:
            return None if values is None else values[:, position]

        return FlowWindow(
            counts=self.counts[:, index],
            present=self.present[:, index],
            events=at(self.events),
            event_mask=at(self.event_mask),
            before=at(self.frames),
            after=at(self.frames, index + 1),
            flow=at(self.flow),
            valid=at(self.valid),
        )
