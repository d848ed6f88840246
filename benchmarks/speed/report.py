"""results.md: the tables, ratios and targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.speed.long import typical
from benchmarks.speed.settings import CONTENDERS
from lightning_modules.memory import format_bytes


def report(results: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    lines = ["# Speed and memory", ""]
    lines += [
        f"{machine['device_name']}, {machine['cores']} cores, torch with {machine['torch_threads']} thread(s), "
        f"device {machine['device']}. {versions}. Python {machine['python']}. {machine['time']}.",
        "",
    ]
    lines += [f"{note}\n" for note in results["notes"]]
    load = machine["load_average"]
    if load is not None and machine["device"] == "cpu" and load[0] > machine["cores"] / 2:
        lines += [
            f"**The machine was busy when this began (load {load[0]:.1f}): compare ratios, not seconds, and run it "
            "again when it is quiet.**",
            "",
        ]
    lines += ["## Targets", "", *_targets(results), ""]
    for workload in results["workloads"]:
        for case in workload["cases"]:
            lines += [*_case(workload, case), ""]
    for memory in results["memory"]:
        lines += [*_memory(memory), ""]
    if results["curves"]:
        lines += [*_curves(results["curves"]), ""]
    if results["long"]:
        lines += [*_long(results["long"]), ""]
    return "\n".join(lines)


def targets(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each target belongs, and the target."""
    for workload in results["workloads"]:
        for case in workload["cases"]:
            for target in case["targets"]:
                yield (
                    f"{workload['name']}, {supervised(case)}, density {case['density']:g}",
                    {"what": f"time to that of {CONTENDERS[target['against']]}", **target},
                )
    for memory in results["memory"]:
        for target in memory["targets"]:
            yield f"{memory['name']}, {supervised(memory)}", target
    if results["curves"]:
        for curve in results["curves"]["curves"]:
            for target in curve["targets"]:
                yield "curves", target
    if results["long"]:
        for target in results["long"]["targets"]:
            yield "long sequence", target


def supervised(case: dict[str, Any]) -> str:
    """Which steps are supervised, in words."""
    return f"last {case['supervise_last']} steps" if case["supervise_last"] else "all steps"


def label(name: str) -> str:
    """A contender for people."""
    contender, plus, mode = name.partition(" + ")
    return CONTENDERS[contender] + plus + mode


def _targets(results: dict[str, Any]) -> list[str]:
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = []
    for where, target in targets(results):
        measured = "" if target["measured"] is None else f"{target['measured']:.2f}"
        if target.get("measured_cpu") is not None:
            measured += f" ({target['measured_cpu']:.2f})"
        rows.append(
            f"| {where} | {label(target['contender'])} | {target['what']} | {target['at_most']:.2f} | {measured} "
            f"| {words[target['met']]} |"
        )
    if not rows:
        return ["None in this run."]
    return ["| where | who | what | at most | measured (in CPU time) | met |", "|---|---|---|---|---|---|", *rows]


def _case(workload: dict[str, Any], case: dict[str, Any]) -> list[str]:
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in case["firing_rates"].items())
    share = any(values["utilisation"] is not None for values in case["contenders"].values())
    head = ["contender", "wall s per batch (quartiles)", "CPU s", "wall to BPTT", "CPU to BPTT"]
    head += ["device busy"] if share else []
    lines = [
        f"## {workload['title']}: {supervised(case)}, density {case['density']:g}",
        "",
        f"Window of run(): {workload['settings']['window']} steps. Spikes per neuron and step: {rates}.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, values in case["contenders"].items():
        wall = values["wall_s"]
        cells = [
            label(name),
            f"{_seconds(wall['median'])} ({_seconds(wall['q1'])} to {_seconds(wall['q3'])})",
            _seconds(values["cpu_s"]["median"]),
            *(f"{values[key]['median']:.2f}" if key in values else "" for key in ("wall_to_bptt", "cpu_to_bptt")),
        ]
        cells += [f"{values['utilisation']:.0%}"] if share and values["utilisation"] is not None else []
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *_absent(case["absent"])]


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _absent(absent: dict[str, str]) -> list[str]:
    return ["", *(f"- Not there: {name}. {reason}." for name, reason in absent.items())] if absent else []


def _memory(memory: dict[str, Any]) -> list[str]:
    steps = sorted({step for values in memory["peak_bytes"].values() for step in values})
    base = memory["peak_bytes"].get("snntorch_bptt", {})
    head = [f"T={step}" for step in steps]
    lines = [
        f"## Peak memory of one batch: {memory['name']}, {supervised(memory)}",
        "",
        "Above the process that holds the network, the optimizer's state and the data. In brackets: to BPTT. "
        f"Window of run(): {memory['window']} steps.",
        "",
        f"| contender | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for who, values in memory["peak_bytes"].items():
        cells = []
        for step in steps:
            ratio = f" ({values[step] / base[step]:.2f})" if step in values and base.get(step) else ""
            cells.append(f"{format_bytes(values[step])}{ratio}" if step in values else "")
        lines.append(f"| {label(who)} | {' | '.join(cells)} |")
    by_window = sorted(memory["run_bytes_by_window"].items(), key=lambda item: int(item[0]))
    if by_window:
        whole = base.get(memory["ratio_steps"])
        lines += ["", f"| window of run(), T={memory['ratio_steps']} | peak memory |", "|---|---|"]
        for window, size in by_window:
            ratio = f" ({size / whole:.2f})" if whole else ""
            lines.append(f"| {window} | {format_bytes(size)}{ratio} |")
    return [*lines, *_absent(memory["absent"])]


def _curves(curves: dict[str, Any]) -> list[str]:
    lines = ["## Milliseconds per step", "", f"{curves['title']}, one property changed at a time.", ""]
    for curve in curves["curves"]:
        head = [f"{size:g}" for size in curve["axis"]]
        lines += [f"| {curve['name']} | {' | '.join(head)} | exponent |", "|---" * (len(head) + 2) + "|"]
        for who, values in curve["seconds_per_step"].items():
            cells = " | ".join(f"{value * 1000:.3g}" for value in values)
            lines.append(f"| {label(who)} | {cells} | {curve['slopes'][who]:.2f} |")
        lines.append("")
    return lines[:-1]


def _long(long: dict[str, Any]) -> list[str]:
    lines = [
        f"## {long['steps']:,} steps in one sequence",
        "",
        f"{long['title']}; parts of {long['block']:,} steps.",
        "",
        "| contender | ms per step | first part, s | last part, s | peak after the first part | at the end |",
        "|---|---|---|---|---|---|",
    ]
    for who, blocks in long["contenders"].items():
        lines.append(
            f"| {label(who)} | {typical(blocks, long['block']) * 1000:.3g} | {_seconds(blocks['wall_s'][0])} "
            f"| {_seconds(blocks['wall_s'][-1])} | {format_bytes(blocks['peak_bytes'][0])} "
            f"| {format_bytes(blocks['peak_bytes'][-1])} |"
        )
    return lines
