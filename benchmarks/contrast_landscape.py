"""Where contrast maximisation has its minima on a real recording: the true flow, times a factor, given to the loss.

No network and no training. For windows of several durations a line for each variant of the loss; the smallest value is
marked. A useful loss falls from every side to the true flow (factor 1).

    python benchmarks/contrast_landscape.py PATH/rot_disk_flow.npz [--durations 75 150] [--downsample 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lightning_modules.data.flow.rot_disk import RotDiskDataModule
from lightning_modules.flow.contrast import ContrastMaximisationLoss

FACTORS = [-1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
VARIANTS = {
    "published": ContrastMaximisationLoss(0),
    "shift_grid": ContrastMaximisationLoss(0, shift_grid=True),
    "weighting: events": ContrastMaximisationLoss(0, weighting="events"),
    "both": ContrastMaximisationLoss(0, weighting="events", shift_grid=True),
}


def landscape(path: Path, window_us: int, downsample: int) -> tuple[dict[str, list[float]], int, float]:
    """Mean loss of each variant at each factor over the training windows, their number, and events per window."""
    data = RotDiskDataModule(
        path, window_us=window_us, shifts=1, downsample=downsample, bins=1, batch_size=1, events=True
    )
    data.setup()
    sums = {name: torch.zeros(len(FACTORS)) for name in VARIANTS}
    windows, events = 0, 0.0
    dataset = data.dataset("train")
    for i in range(len(dataset)):
        batch = dataset[i]
        for w in range(batch.num_windows):
            window = batch.window(w)
            if not window.present.any() or window.flow is None or window.event_mask is None:
                continue
            windows += 1
            events += float(window.event_mask.sum())
            for name, loss in VARIANTS.items():
                sums[name] += torch.stack([loss([factor * window.flow], window)[0] for factor in FACTORS])
    return {name: (values / windows).tolist() for name, values in sums.items()}, windows, events / windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the archive of recordings")
    parser.add_argument("--durations", type=int, nargs="+", default=[50, 75, 100, 150, 200], metavar="MS")
    parser.add_argument("--downsample", type=int, default=2)
    arguments = parser.parse_args()
    for variant in VARIANTS.values():
        variant.eval()
    print("| window | loss | " + " | ".join(f"{factor:g}" for factor in FACTORS) + " |")
    print("|---|---|" + "---|" * len(FACTORS))
    for duration in arguments.durations:
        lines, windows, events = landscape(arguments.path, duration * 1000, arguments.downsample)
        for name, values in lines.items():
            cells = (f"**{value:.3f}**" if value == min(values) else f"{value:.3f}" for value in values)
            print(f"| {duration} ms | {name} | " + " | ".join(cells) + " |")
        print(f"<!-- {windows} windows of {events:.0f} events -->", flush=True)


if __name__ == "__main__":
    main()
