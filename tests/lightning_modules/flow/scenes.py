"""Windows for the tests of losses, metrics and pictures: random ones, and a pattern that moves by a known flow."""

import torch

from lightning_modules.flow.batch import FlowWindow


def random_window(batch=2, size=(8, 12), events=25, seed=0, dtype=torch.float64):
    """Everything that a window can hold; the counts agree with the events, a fifth of which are padding."""
    make = torch.Generator().manual_seed(seed)
    height, width = size

    def rand(*shape):
        return torch.rand(*shape, generator=make, dtype=dtype)

    listed = torch.stack(
        (
            rand(batch, events).sort(1).values,
            (rand(batch, events) * width).floor(),
            (rand(batch, events) * height).floor(),
            (rand(batch, events) > 0.5) * 2.0 - 1,
        ),
        dim=2,
    )
    mask = rand(batch, events) > 0.2
    return FlowWindow(
        counts=counts_of(listed, mask, size),
        present=torch.ones(batch, dtype=torch.bool),
        events=listed * mask.unsqueeze(2),
        event_mask=mask,
        before=rand(batch, 1, *size),
        after=rand(batch, 1, *size),
        flow=3 * rand(batch, 2, *size) - 1.5,
        valid=rand(batch, *size) > 0.3,
    )


def random_flows(sizes=((4, 6), (8, 12)), batch=2, seed=1, dtype=torch.float64, reach=3.0):
    make = torch.Generator().manual_seed(seed)
    return [
        (reach * (2 * torch.rand(batch, 2, *size, generator=make, dtype=dtype) - 1)).requires_grad_() for size in sizes
    ]


def counts_of(events, mask, size, steps=2):
    counts = torch.zeros(len(events), steps, 2, *size, dtype=events.dtype)
    for b in range(len(events)):
        for (t, x, y, p), counted in zip(events[b].tolist(), mask[b].tolist(), strict=True):
            if counted:
                counts[b, min(int(t * steps), steps - 1), int(p > 0), int(y), int(x)] += 1
    return counts


def moving_window(flow=(4.0, -2.0), size=(24, 32), dots=14, per_dot=12, seed=0):
    """Dots on a dark ground move by ``flow`` in the window: pictures, events at their pixels, and the true flow."""
    make = torch.Generator().manual_seed(seed)
    height, width = size
    start = torch.rand(dots, 2, generator=make) * torch.tensor([width - 12.0, height - 12.0]) + 6
    on = torch.rand(dots, generator=make) > 0.5
    rows = []
    for (x, y), bright in zip(start.tolist(), on.tolist(), strict=True):
        for t in torch.linspace(0, 1, per_dot).tolist():
            rows.append((t, round(x + flow[0] * t), round(y + flow[1] * t), 1.0 if bright else -1.0))
    events = torch.tensor(sorted(rows)).unsqueeze(0)
    mask = torch.ones(1, len(rows), dtype=torch.bool)
    return FlowWindow(
        counts=counts_of(events, mask, size),
        present=torch.tensor([True]),
        events=events,
        event_mask=mask,
        before=pattern(size, (0.0, 0.0)),
        after=pattern(size, flow),
        flow=torch.tensor(flow).view(1, 2, 1, 1).expand(1, 2, *size).clone(),
        valid=torch.ones(1, *size, dtype=torch.bool),
    )


def pattern(size, shift):
    """A smooth picture [1, 1, H, W], moved."""
    x = torch.arange(size[1]) - shift[0]
    y = torch.arange(size[0]).unsqueeze(1) - shift[1]
    waves = (0.35 * x).sin() * (0.45 * y).cos() + (0.21 * x + 0.3 * y).sin() + (0.13 * x - 0.17 * y).cos()
    return (waves / 6 + 0.5).view(1, 1, *size)
