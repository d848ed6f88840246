"""The command ``python -m benchmarks.speed``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import machine, plots
from benchmarks.speed.curves import measure_curves
from benchmarks.speed.long import measure_long
from benchmarks.speed.memory import measure_memory
from benchmarks.speed.report import report
from benchmarks.speed.settings import Curves, Long, SettingsError, Workload, load
from benchmarks.speed.timing import Options, time_workload

SETTINGS = Path(__file__).parent / "settings"
OTHER_PARTS = ("memory", "curves", "long")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and writes results.json, results.md and the pictures after each part."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    try:
        return _Run(arguments).all()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Time and memory of S-TLLR beside backpropagation through time, on made-up spikes. "
        "How to read it: docs/performance.md.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/speed"), help="folder; default %(default)s")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names of workloads, memory, curves, long")
    parser.add_argument("--quick", action="store_true", help="small versions, to see that everything runs")
    parser.add_argument("--settings", type=Path, help="folder of settings files; default: those of the benchmark")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps; default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; default %(default)s")
    parser.add_argument("--rounds", type=int, help="instead of the settings' number of rounds")
    parser.add_argument(
        "--compile",
        nargs="*",
        metavar="MODE",
        help="with torch.compile as well, in these modes (default, reduce-overhead: CUDA graphs); both on CUDA",
    )
    parser.add_argument(
        "--bfloat16",
        nargs="+",
        choices=["products", "autocast"],
        default=[],
        help="the learner's product_dtype; autocast for all",
    )
    found = parser.parse_args(argv)
    for name in ("threads", "rounds"):
        if getattr(found, name) is not None and getattr(found, name) < 1:
            parser.error(f"--{name}: expected 1 or more")
    return found


class _Run:
    """One run of the benchmark."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device: str = arguments.device
        self.output: Path = arguments.output
        notes = []
        missing = machine.why_not(self.device)
        if missing is not None and not self.device.startswith(("cuda", "mps")):
            raise SettingsError(f"--device: {missing}.")
        if missing is not None:
            notes.append(f"**Run on the CPU: {missing}.**")
            print(f"{missing}: running on the CPU", file=sys.stderr)
            self.device = "cpu"
        modes: list[str] | None = arguments.compile
        if modes is None:
            modes = ["default", "reduce-overhead"] if self.device.startswith("cuda") else []
        elif not modes:
            modes = ["default"]
        self.options = Options(self.device, arguments.rounds, tuple(modes))
        folder: Path = arguments.settings or (SETTINGS / "quick" if arguments.quick else SETTINGS)
        self.workloads, self.curves, self.long = read(folder)
        changes: dict[str, Any] = {"products": "bfloat16"} if "products" in arguments.bfloat16 else {}
        changes |= {"autocast": True} if "autocast" in arguments.bfloat16 else {}
        words = "".join(f"; bfloat16 {word}" for word in arguments.bfloat16)
        self.workloads = {
            name: workload.changed({**changes, "title": workload.title + words})
            for name, workload in self.workloads.items()
        }
        self.parts = _chosen(arguments.only, [*self.workloads, *OTHER_PARTS])
        self.results: dict[str, Any] = {
            "machine": machine.describe(self.device),
            "notes": notes,
            "parts": self.parts,
            "settings_from": str(folder.name),
            "workloads": [],
            "memory": [],
            "curves": None,
            "long": None,
        }

    def all(self) -> int:
        """Every part."""
        begin = time.perf_counter()
        self.output.mkdir(parents=True, exist_ok=True)
        for name, workload in self._variants():
            if name.partition(" ")[0] in self.parts:
                self._say(f"time: {name}")
                self.results["workloads"].append(time_workload(name, workload, self.options))
                self._write()
        if "memory" in self.parts:
            for name, workload in self._variants():
                if workload.memory is not None:
                    self.results["memory"].append(measure_memory(name, workload, self.device, self._say))
                    self._write()
        if "curves" in self.parts and self.curves is not None:
            self.results["curves"] = measure_curves(self.curves, self.options, self._say)
            self._write()
        if "long" in self.parts and self.long is not None:
            self.results["long"] = measure_long(self.long, self.device, self._say)
        self.results["minutes"] = (time.perf_counter() - begin) / 60
        self._write()
        pictures = plots.draw(self.results, self.output)
        self._say(f"{len(pictures)} pictures, results.md and results.json are in {self.output}")
        return 0

    def _variants(self) -> list[tuple[str, Workload]]:
        """The workloads, and on an accelerator their larger versions."""
        found = []
        for name, workload in self.workloads.items():
            found.append((name, workload))
            if not self.device.startswith("cpu"):
                for changes in workload.on_accelerator:
                    words = ", ".join(f"{key} {value}" for key, value in changes.items())
                    larger = workload.changed({**changes, "title": f"{workload.title}; here {words}"})
                    found.append((f"{name} ({words})", larger))
        return found

    def _write(self) -> None:
        text = json.dumps(self.results, indent=1)
        (self.output / "results.json").write_text(text + "\n", encoding="utf-8")
        (self.output / "results.md").write_text(report(self.results), encoding="utf-8")

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def read(folder: Path) -> tuple[dict[str, Workload], Curves | None, Long | None]:
    """The settings files of a folder: curves.yaml, long.yaml, and a workload in each of the others."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise SettingsError(f"{folder}: there are no settings files (*.yaml) in it.")
    curves = load(files.pop("curves"), Curves) if "curves" in files else None
    long = load(files.pop("long"), Long) if "long" in files else None
    return {name: load(path, Workload) for name, path in files.items()}, curves, long


def _chosen(only: list[str] | None, there: list[str]) -> list[str]:
    unknown = sorted(set(only or []) - set(there))
    if unknown:
        raise SettingsError(f"--only: no part {', '.join(unknown)}; there are {', '.join(there)}.")
    return only or there


if __name__ == "__main__":
    raise SystemExit(main())
