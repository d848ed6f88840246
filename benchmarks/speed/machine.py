"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions, and how busy the machine is."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "device_name": device_name(device),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: installed(name) for name in ("torch", "snntorch", "spikingjelly", "stllr-plugin")},
    }


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    """Name of the accelerator or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def why_not(device: str) -> str | None:
    """The reason why a device cannot be used; None if it can."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        return f"{device!r} is no device; expected cpu, cuda, cuda:1 or mps"
    if kind == "cuda" and not torch.cuda.is_available():
        return "no CUDA device was found"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "no MPS device was found"
    return None if kind in ("cpu", "cuda", "mps") else f"devices are cpu, cuda and mps; found {device!r}"
