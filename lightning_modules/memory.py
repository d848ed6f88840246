"""Peak memory, measured the same way whatever is measured.

* CUDA: the highest number of bytes that torch's allocator had handed out (``torch.cuda.max_memory_allocated``).
* elsewhere: the highest resident set size (RSS) of the process, from the operating system, minus the RSS at the start.
  This counts everything the process really held, allocator slack included, and is what an out-of-memory killer sees.
  Linux can reset the high-water mark; on other systems only a process-wide maximum is available, so the
  figure there is a lower bound when the process had been larger before. :func:`measure_peak_memory` uses a new process
  for each measurement, which makes that case rare.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"


class PeakMemoryMeter:
    """Peak memory since :meth:`start`, in bytes.

    Args:
        device: Where the work runs. Only its type matters.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._baseline = 0

    @property
    def method(self) -> str:
        """What the figures of this meter are, for tables and logs."""
        if self.device.type == "cuda":
            return "CUDA allocator peak above start"
        return "process RSS peak above start"

    def start(self) -> None:
        """Take the present memory as zero and forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._baseline = torch.cuda.memory_allocated(self.device)
            return
        _return_free_memory()
        _reset_peak_rss()
        self._baseline = _current_rss()

    def peak(self) -> int:
        """Highest memory since :meth:`start`, above the level at the start."""
        if self.device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self.device) - self._baseline)
        return max(0, _peak_rss() - self._baseline)


def measure_peak_memory(prepare: Callable[..., Callable[[], object]], *args: Any, device: str = "cpu") -> int:
    """Peak memory of one piece of work, measured in a process of its own.

    The new process calls ``prepare(*args)``, which builds everything and returns the work as a function without
    arguments; what ``prepare`` allocates (model, optimizer, data, warm-up of the libraries) does not count. Then
    the meter starts, the work runs once, and the peak above the start is returned.

    Args:
        prepare: A function that can be pickled (defined at the top level of a module).
        *args: Its arguments; they are pickled as well.
        device: Type of the device that the work uses.

    Returns:
        Bytes.

    Raises:
        RuntimeError: If the work fails; the message holds the traceback of the other process.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, prepare, args, device, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        succeeded, value = receiver.recv()
    except EOFError:
        succeeded, value = False, "The measuring process ended without an answer."
    finally:
        process.join()
        receiver.close()
    if not succeeded:
        raise RuntimeError(f"Measuring peak memory failed in its process:\n{value}")
    return int(value)


def _measure(
    sender: Connection, prepare: Callable[..., Callable[[], object]], args: tuple[Any, ...], device: str, threads: int
) -> None:
    try:
        torch.set_num_threads(threads)
        work = prepare(*args)
        meter = PeakMemoryMeter(device)
        meter.start()
        work()
        sender.send((True, meter.peak()))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()


def _status_bytes(field: str) -> int | None:
    try:
        with open(_STATUS) as status:
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _return_free_memory() -> None:
    """Give the system what Python and the C library hold in reserve, which would hide what is allocated from now on."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _reset_peak_rss() -> None:
    try:
        with open(_CLEAR_REFS, "w") as clear:
            clear.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak then is that of the whole life of the process


def _peak_rss() -> int:
    peak = _status_bytes("VmHWM:")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _current_rss() -> int:
    current = _status_bytes("VmRSS:")
    return _peak_rss() if current is None else current


def format_bytes(count: float) -> str:
    """A byte count for people: ``1.5 GB``, ``63 MB``, ``12 kB`` (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"
