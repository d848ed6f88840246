"""The tables of a workload: each contender's time for a batch, in alternation."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.speed.contenders import COMPILED, NotHereError, data, make
from benchmarks.speed.measure import alternate, clocked, paired_ratio, spread, utilisation
from benchmarks.speed.networks import build_network, firing_rates
from benchmarks.speed.settings import Case, SettingsError, Workload

COMPILED_WARM_UP = 2  # batches more: states that are there, and graphs that are built or not, are compiled anew
RECOMPILE_LIMIT = 64  # of torch.compile, per function: all contenders run the same functions of snnTorch


@dataclass(frozen=True)
class Options:
    """What the command line says about all measurements.

    Attributes:
        device: Where.
        rounds: Instead of the settings' number of rounds.
        compile_modes: Modes of torch.compile in which contenders also take part.
    """

    device: str = "cpu"
    rounds: int | None = None
    compile_modes: tuple[str, ...] = ()


def time_workload(name: str, workload: Workload, options: Options) -> dict[str, Any]:
    """All tables of a workload, and the targets."""
    cases = [time_case(workload, case, density, options) for density in workload.densities for case in workload.cases]
    return {"name": name, "title": workload.title, "settings": asdict(workload), "cases": cases}


def time_case(workload: Workload, case: Case, density: float, options: Options) -> dict[str, Any]:
    """One table.

    Who cannot take part, or fails, is in ``absent`` with the reason.
    """
    device = options.device
    if options.compile_modes:
        import torch._dynamo.config  # loads the compiler

        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    x, y = data(workload, density, device)
    works: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, contender, mode in _starters(case, options.compile_modes):
        try:
            train = make(contender, workload, case.supervise_last, device, mode)
            for _ in range(workload.warm_up + (0 if mode is None else COMPILED_WARM_UP)):
                train(x, y)
            works[name] = lambda train=train: train(x, y)
        except SettingsError:
            raise
        except NotHereError as error:
            absent[name] = str(error)
        except Exception as error:  # the others go on; a compiler, for one, can fail in many ways
            absent[name] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    rounds = workload.rounds if options.rounds is None else options.rounds
    times = alternate(works, rounds, device)
    shares = {name: utilisation(work, device) for name, work in works.items()}
    works.clear()
    gc.collect()
    network = build_network(workload).to(device)
    return {
        "density": density,
        "supervise_last": case.supervise_last,
        "firing_rates": firing_rates(network, x),
        "contenders": _evaluated(times, shares),
        "absent": absent,
        "targets": [_judged(asdict(target), times) for target in case.targets],
    }


def _starters(case: Case, modes: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """Name in the table, contender, mode of torch.compile."""
    found: list[tuple[str, str, str | None]] = []
    for contender in case.contenders:
        found.append((contender, contender, None))
        if contender in COMPILED:
            found += [(f"{contender} + compile {mode}", contender, mode) for mode in modes]
    return found


def _evaluated(
    times: dict[str, list[tuple[float, float]]], shares: dict[str, float | None]
) -> dict[str, dict[str, Any]]:
    base = times.get("snntorch_bptt")
    found: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        wall, cpu = [w for w, _ in values], [c for _, c in values]
        found[name] = {"wall_s": spread(wall), "cpu_s": spread(cpu), "utilisation": shares[name]}
        if base is not None:
            found[name]["wall_to_bptt"] = paired_ratio(wall, [w for w, _ in base])
            found[name]["cpu_to_bptt"] = paired_ratio(cpu, [c for _, c in base])
    return found


def _judged(target: dict[str, Any], times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """The target with what was measured; ``met`` is None where it could not be."""
    one, other = times.get(target["contender"]), times.get(target["against"])
    if not one or not other:
        return {**target, "measured": None, "measured_cpu": None, "met": None}
    wall, cpu = (
        paired_ratio([value[clock] for value in one], [value[clock] for value in other])["median"] for clock in (0, 1)
    )
    return {**target, "measured": wall, "measured_cpu": cpu, "met": wall <= target["at_most"]}


def seconds_per_step(workload: Workload, options: Options) -> dict[str, dict[str, Any]]:
    """Spread of wall time per step of each contender of the first case."""
    case, device = workload.cases[0], options.device
    x, y = data(workload, workload.densities[0], device)
    works: dict[str, Any] = {}
    for contender in case.contenders:
        train = make(contender, workload, case.supervise_last, device)
        works[contender] = lambda train=train: train(x, y)
        clocked(works[contender], device)  # warm-up
    rounds = workload.rounds if options.rounds is None else options.rounds
    times = alternate(works, rounds, device)
    return {name: spread([wall / workload.steps for wall, _ in values]) for name, values in times.items()}
