"""Losses of optical flow written out in loops and float64: slow, obvious, and without anything of the package.

Pictures are lists of rows; flow is [2][H][W] (x before y) as a numpy array; events are rows (time, x, y, polarity).
"""

import math

import numpy as np


def sample(picture, x, y):
    """A picture between its pixels."""
    column, row = math.floor(x), math.floor(y)
    total = 0.0
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (1 - abs(x - column - dx)) * (1 - abs(y - row - dy))
        if weight > 0:
            total += weight * picture[row + dy, column + dx]
    return total


def reduce(picture, height, width):
    """A smaller picture, each pixel the mean of a block."""
    bh, bw = picture.shape[0] // height, picture.shape[1] // width
    return np.array(
        [[np.mean(picture[bh * i : bh * (i + 1), bw * j : bw * (j + 1)]) for j in range(width)] for i in range(height)]
    )


def enlarge(flow, height, width):
    """A flow at every pixel of a larger picture: between the centres of its cells, constant beyond the outer ones."""
    _, h, w = flow.shape
    out = np.zeros((2, height, width))
    for c in range(2):
        for i in range(height):
            for j in range(width):
                y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
                x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
                out[c, i, j] = sample(flow[c], x, y)
    return out


def second_order(flow):
    _, h, w = flow.shape
    xx, yy, xy = [], [], []
    for f in flow:
        for i in range(h):
            for j in range(w):
                if j + 2 < w:
                    xx.append(abs(f[i, j] - 2 * f[i, j + 1] + f[i, j + 2]))
                if i + 2 < h:
                    yy.append(abs(f[i, j] - 2 * f[i + 1, j] + f[i + 2, j]))
                if i + 1 < h and j + 1 < w:
                    xy.append(abs(f[i, j] - f[i, j + 1] - f[i + 1, j] + f[i + 1, j + 1]))
    return sum(np.mean(part) for part in (xx, yy, xy, xy) if part)


def photometric(flows, before, after, smoothness, alpha=0.45, eps=1e-3, reduction="mean"):
    height, width = before.shape
    total = 0.0
    for scale, flow in enumerate(reversed(flows)):
        _, h, w = flow.shape
        then, now = reduce(before, h, w), reduce(after, h, w)
        costs = []
        for i in range(h):
            for j in range(w):
                x, y = j + flow[0, i, j] * w / width, i + flow[1, i, j] * h / height
                if 0 <= x <= w - 1 and 0 <= y <= h - 1:
                    costs.append(((sample(now, x, y) - then[i, j]) ** 2 + eps**2) ** alpha)
        if costs:
            total += (np.mean(costs) if reduction == "mean" else sum(costs)) / len(flows)
        total += smoothness / 2**scale * second_order(flow)
    return total


def mean_times(flow, events, time, eps=1e-9, per_event=False, shift=(0.0, 0.0)):
    _, height, width = flow.shape
    reached, total, arrived = set(), 0.0, 0.0
    for polarity in (-1, 1):
        weights, times = {}, {}
        for t, x, y, p in events:
            if p != polarity:
                continue
            u, v = flow[:, round(y), round(x)]
            there = (x + (time - t) * u + shift[0], y + (time - t) * v + shift[1])
            for column in range(width):
                for row in range(height):
                    weight = max(0, 1 - abs(column - there[0])) * max(0, 1 - abs(row - there[1]))
                    if weight > 0:
                        key = (row, column)
                        weights[key] = weights.get(key, 0) + weight
                        times[key] = times.get(key, 0) + weight * (t if time == 1 else 1 - t)
        reached |= set(weights)
        arrived += sum(weights.values())
        if per_event:
            total += sum(weights[key] * (times[key] / weights[key]) ** 2 for key in weights)
        else:
            total += sum((times[key] / (weights[key] + eps)) ** 2 for key in weights)
    return total / (arrived if per_event else len(reached)) if reached else 0.0


def charbonnier(flow, mask=None, eps=1e-3):
    _, h, w = flow.shape
    total = 0.0
    for c in range(2):
        for i in range(h):
            for j in range(w):
                for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    k, m = i + di, j + dj
                    if k < h and 0 <= m < w and (mask is None or (mask[i, j] and mask[k, m])):
                        total += math.sqrt((flow[c, i, j] - flow[c, k, m]) ** 2 + eps**2)
    return total / 4


def contrast(flows, events, size, smoothness, mask=None, per_event=False, shifts=((0.0, 0.0),)):
    total = 0.0
    for flow in flows:
        flow = enlarge(flow, *size)
        for shift in shifts:
            for time in (1, 0):
                total += mean_times(flow, events, time, per_event=per_event, shift=shift) / len(shifts)
        total += smoothness * charbonnier(flow / max(size), mask)
    return total / len(flows)


def endpoint_error(flows, truth, counted):
    total = 0.0
    for flow in flows:
        flow = enlarge(flow, *counted.shape)
        errors = [
            math.hypot(flow[0, i, j] - truth[0, i, j], flow[1, i, j] - truth[1, i, j])
            for i in range(counted.shape[0])
            for j in range(counted.shape[1])
            if counted[i, j]
        ]
        total += np.mean(errors) if errors else 0.0
    return total / len(flows)
