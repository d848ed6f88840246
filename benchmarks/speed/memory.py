"""Peak memory of one batch, each figure from a process of its own.

glibc keeps part of what is freed for itself, another part each time: with its defaults BPTT on VGG9 took 416 to 704 MB.
The processes here are told to give freed tensors back at once, so that a figure is what the work needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.speed.contenders import data, make
from benchmarks.speed.networks import has_spikingjelly
from benchmarks.speed.settings import Memory, Workload
from lightning_modules.memory import format_bytes, measure_peak_memory

WARM_UP = 6  # steps: libraries are loaded, and run() has tried the network out
SHARE = 0.7  # of the free memory that a measurement may be expected to take


def prepare(contender: str, workload: Workload, supervise_last: int, device: str) -> Callable[[], None]:
    """Everything up to the batch that is measured: the network, the optimizer with its state, the data."""
    train = make(contender, workload, supervise_last, device)
    x, y = data(workload, workload.densities[0], device)
    train(x[:WARM_UP], y)
    return lambda: train(x, y)


def measure_memory(name: str, workload: Workload, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes of each contender at its numbers of time steps, and the targets."""
    settings = workload.memory
    assert settings is not None
    if settings.windows:
        workload = replace(workload, window=settings.windows[0])
    peaks: dict[str, dict[int, int]] = {}
    absent: dict[str, str] = {}
    for contender, all_steps in settings.steps.items():
        if contender.startswith("spikingjelly") and not has_spikingjelly():
            absent[contender] = "SpikingJelly is not installed"
            continue
        for steps in sorted(all_steps):
            found = peaks.setdefault(contender, {})
            expected = max((peak * steps // known for known, peak in found.items()), default=0)
            free = free_memory(device)
            if contender.endswith("bptt") and free is not None and expected > SHARE * free:
                absent[f"{contender} at T={steps}"] = f"would need about {format_bytes(expected)}"
                continue
            say(f"memory: {name}, {contender}, T={steps}")
            try:
                found[steps] = _measured(contender, workload, settings, steps, device)
            except RuntimeError as error:
                absent[f"{contender} at T={steps}"] = str(error).strip().splitlines()[-1]
    by_window: dict[int, int] = {}
    if "stllr_run" in settings.steps:
        for window in settings.windows:
            say(f"memory: {name}, stllr_run, window {window}")
            other = replace(workload, window=window)
            by_window[window] = _measured("stllr_run", other, settings, settings.ratio_steps, device)
    return {
        "name": name,
        "title": workload.title,
        "supervise_last": settings.supervise_last,
        "ratio_steps": settings.ratio_steps,
        "peak_bytes": {who: values for who, values in peaks.items() if values},
        "window": (settings.windows or [workload.window])[0],
        "run_bytes_by_window": by_window,
        "absent": absent,
        "targets": judged(settings, peaks),
    }


def _measured(contender: str, workload: Workload, settings: Memory, steps: int, device: str) -> int:
    length = replace(workload, steps=steps, cases=[])
    with freed_memory_goes_back():
        return measure_peak_memory(prepare, contender, length, settings.supervise_last, device, device=device)


@contextmanager
def freed_memory_goes_back() -> Iterator[None]:
    """Tells glibc in new processes to map and unmap each tensor; nothing elsewhere."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = str(2**17)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def judged(settings: Memory, peaks: dict[str, dict[int, int]]) -> list[dict[str, Any]]:
    """The targets with what was measured; ``met`` is None where it could not be."""
    found = []
    base = peaks.get("snntorch_bptt", {}).get(settings.ratio_steps)
    for who, limit in settings.ratio_targets.items():
        peak = peaks.get(who, {}).get(settings.ratio_steps)
        ratio = None if base is None or peak is None else peak / base
        what = f"memory at T={settings.ratio_steps} to that of BPTT"
        found.append(_target(who, what, limit, ratio))
    for who in settings.flat:
        values = peaks.get(who, {})
        first, last = min(settings.steps[who]), max(settings.steps[who])
        ratio = values[last] / values[first] if {first, last} <= set(values) else None
        found.append(_target(who, f"memory at T={last} to that at T={first}", 1 + settings.flat_within, ratio))
    return found


def _target(contender: str, what: str, limit: float, measured: float | None) -> dict[str, Any]:
    met = None if measured is None else measured <= limit
    return {"contender": contender, "what": what, "at_most": limit, "measured": measured, "met": met}


def free_memory(device: str) -> int | None:
    """Bytes that can still be had; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    return found[0] if found else None
