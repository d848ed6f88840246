"""One long sequence: are its last steps as fast, and as small, as its first?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.contenders import data
from benchmarks.speed.measure import in_new_process, synchronise
from benchmarks.speed.networks import build_network
from benchmarks.speed.settings import Long, SettingsError, Workload
from lightning_modules.memory import PeakMemoryMeter
from lightning_modules.tasks.rules import make_rule
from stllr_plugin import STLLRLearner

FRAMES = 100  # different ones, which come again and again: data for so many steps would itself be large


class _Blocks:
    """Notes time and memory at the end of each block of steps."""

    def __init__(self, block: int, device: str) -> None:
        self.block = block
        self.device = device
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak: list[int] = []
        self.meter = PeakMemoryMeter(device)

    def start(self) -> None:
        self.meter.start()
        self._clock()

    def _clock(self) -> None:
        synchronise(self.device)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def done(self, steps: int) -> None:
        """So many steps are done."""
        if steps == 0 or steps < self.block * (len(self.wall) + 1):
            return
        wall, cpu = self._wall, self._cpu
        self._clock()
        self.wall.append(self._wall - wall)
        self.cpu.append(self._cpu - cpu)
        self.peak.append(self.meter.peak())


def measure_long(settings: Long, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Each contender in a process of its own, and the targets."""
    found: dict[str, Any] = {}
    targets: list[dict[str, Any]] = []
    for contender in settings.workload.cases[0].contenders:
        say(f"long: {contender}, {settings.workload.steps} steps")
        found[contender] = in_new_process(run_long, contender, settings, device, torch.get_num_threads())
        targets += judged(contender, settings, found[contender], device)
    workload = settings.workload
    return {
        "title": workload.title,
        "steps": workload.steps,
        "block": settings.block,
        "contenders": found,
        "targets": targets,
    }


def judged(contender: str, settings: Long, blocks: dict[str, list[Any]], device: str) -> list[dict[str, Any]]:
    """The targets with what was measured. Time is the processor's on the CPU, which other processes disturb least."""
    times = blocks["cpu_s"] if torch.device(device).type == "cpu" else blocks["wall_s"]
    ratio = times[-1] / times[0]
    growth = (blocks["peak_bytes"][-1] - blocks["peak_bytes"][0]) / 1e6
    name = f"{settings.block:,} steps"
    return [
        {
            "contender": contender,
            "what": f"time of the last {name} to that of the first",
            "at_most": 1 + settings.within,
            "measured": ratio,
            "met": ratio <= 1 + settings.within,
        },
        {
            "contender": contender,
            "what": f"growth of the peak memory after the first {name}, MB",
            "at_most": settings.memory_within,
            "measured": growth,
            "met": growth <= settings.memory_within,
        },
    ]


def run_long(contender: str, settings: Long, device: str, threads: int) -> dict[str, list[Any]]:
    """Time and peak memory (above the start) of each block."""
    torch.set_num_threads(threads)
    ways = {"stllr_attached": _attached, "stllr_run": _run}
    if contender not in ways:
        raise SettingsError(f"a long sequence is for {', '.join(ways)}; found {contender!r}.")
    workload = settings.workload
    x, y = data(workload, workload.densities[0], device, steps=min(FRAMES, workload.steps))
    network = build_network(workload).to(device)
    learner = STLLRLearner(
        network, torch.optim.Adam(network.parameters(), lr=workload.learning_rate), rule=make_rule(workload.rule)
    )
    way = ways[contender]
    way(learner, network, x, y, replace(workload, steps=len(x), cases=[]), _Blocks(settings.block, device))  # warm-up
    blocks = _Blocks(settings.block, device)
    way(learner, network, x, y, workload, blocks)
    return {"wall_s": blocks.wall, "cpu_s": blocks.cpu, "peak_bytes": blocks.peak}


def _attached(
    learner: STLLRLearner, network: nn.Module, x: Tensor, y: Tensor, workload: Workload, blocks: _Blocks
) -> None:
    learner.zero_grad()
    blocks.start()
    for t in range(workload.steps):
        cross_entropy(network(x[t % len(x)]), y).backward()
        blocks.done(t + 1)
    learner.step()


def _run(learner: STLLRLearner, network: nn.Module, x: Tensor, y: Tensor, workload: Workload, blocks: _Blocks) -> None:
    frames = [x[t % len(x)] for t in range(workload.steps)]
    learner.zero_grad()
    blocks.start()
    learner.run(
        network,
        frames,
        y,
        cross_entropy,
        window=workload.window,
        keep_outputs=False,
        before_window=lambda start, stop: blocks.done(start),
    )
    blocks.done(workload.steps)
    learner.step()


def per_step(blocks: dict[str, list[Any]], block: int) -> list[float]:
    """Seconds of wall time per step of each block."""
    return [wall / block for wall in blocks["wall_s"]]


def typical(blocks: dict[str, list[Any]], block: int) -> float:
    """Their median."""
    return statistics.median(per_step(blocks, block))
