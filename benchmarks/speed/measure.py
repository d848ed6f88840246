"""Clocks, rounds, statistics."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

Work = Callable[[], Any]


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def clocked(work: Work, device: str = "cpu") -> tuple[float, float]:
    """Wall time and processor time of all threads, in seconds, of one call."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(works: Mapping[str, Work], rounds: int, device: str = "cpu") -> dict[str, list[tuple[float, float]]]:
    """Times of each work in each round.

    A round runs everyone once, so that a machine whose speed drifts is fair to all. Each round begins with another one,
    so that nobody always comes after the same.
    """
    names = list(works)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % max(1, len(names))
        for name in names[start:] + names[:start]:
            found[name].append(clocked(works[name], device))
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "q1": low, "q3": high, "all": list(values)}


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Spread of the ratios within the rounds: what both have in common in a round drops out."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def utilisation(work: Work, device: str) -> float | None:
    """Share of the wall time in which a CUDA device computes; None elsewhere."""
    if torch.device(device).type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # no CPU activity: it would slow the host down
        wall, _ = clocked(work, device)
    busy = float(sum(event.self_device_time_total for event in profiler.key_averages())) * 1e-6
    return min(1.0, busy / wall)


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of the top level of a module in a process of its own and returns what it returns."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
