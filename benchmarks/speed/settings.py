"""What the settings files say: workloads, curves, the long sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser

CONTENDERS = {
    "snntorch_bptt": "snnTorch, BPTT",
    "stllr_attached": "S-TLLR attached, a backward at each supervised step",
    "stllr_folded": "the same with fold_steps",
    "stllr_run": "S-TLLR, learner.run",
    "stllr_online": "S-TLLR, learner.online",
    "forward": "forward pass alone, no_grad",
    "stllr_unsupervised": "S-TLLR attached, forward pass of unsupervised steps",
    "spikingjelly_bptt": "SpikingJelly, BPTT multi-step",
    "spikingjelly_sltt": "SpikingJelly, SLTT",
}


class SettingsError(ValueError):
    """A settings file says something that cannot be measured."""


def _positive(**values: int | float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise SettingsError(f"{name}={value!r}: expected a number above 0.")


def _known(names: Any, what: str) -> None:
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        raise SettingsError(f"{what}: no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}.")


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached.

    Attributes:
        contender: Whose time is looked at.
        at_most: The ratio.
        against: Whose time it is divided by.
    """

    contender: str
    at_most: float
    against: str = "snntorch_bptt"

    def __post_init__(self) -> None:
        _known([self.contender, self.against], "targets")
        _positive(at_most=self.at_most)


@dataclass(frozen=True)
class Case:
    """One table of a workload.

    Attributes:
        supervise_last: Supervised steps at the end of each sequence; 0 for all. With the contender "stllr_unsupervised"
            it matters for the others only.
        contenders: Who takes part, in this order.
        targets: What is to be reached.
    """

    contenders: list[str]
    supervise_last: int = 0
    targets: list[Target] = field(default_factory=list)

    def __post_init__(self) -> None:
        _known(self.contenders, "contenders")
        if self.supervise_last < 0:
            raise SettingsError(f"supervise_last={self.supervise_last}: expected a number of steps, or 0 for all.")
        for target in self.targets:
            missing = {target.contender, target.against} - set(self.contenders)
            if missing:
                raise SettingsError(f"a target needs {', '.join(sorted(missing))}, which is not among the contenders.")


@dataclass(frozen=True)
class Memory:
    """Peak memory of one batch.

    Attributes:
        steps: Contender to the numbers of time steps to measure at.
        supervise_last: Supervised steps; 0 for all.
        ratio_steps: Where the contenders are compared with BPTT.
        ratio_targets: Contender to the highest allowed share of BPTT's memory there.
        flat: Contenders whose memory may not grow from their first to their last number of steps.
        flat_within: By how much it may all the same, as a share.
        windows: Time steps of the windows of ``learner.run`` to measure with at ``ratio_steps``, the first of them at
            the other numbers of steps too; the workload's own if empty.
    """

    steps: dict[str, list[int]]
    supervise_last: int = 0
    ratio_steps: int = 20
    ratio_targets: dict[str, float] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    flat_within: float = 0.05
    windows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _known(self.steps, "memory.steps")
        _known([*self.ratio_targets, *self.flat], "memory")
        missing = {*self.ratio_targets, *self.flat} - set(self.steps)
        if missing:
            raise SettingsError(f"memory.steps has nothing for {', '.join(sorted(missing))}.")
        for values in self.steps.values():
            _positive(**{"a number of time steps": min(values, default=0)})
        _positive(windows=min(self.windows, default=1))


@dataclass(frozen=True)
class Workload:
    """A network, its input, and how it is trained.

    Attributes:
        title: For headings.
        network: ``class``: a network of lightning_modules.networks; its arguments beside it.
        input_shape: Of one sample at one step.
        classes: Number of labels.
        steps: Time steps T.
        batch: Samples B.
        densities: Shares of ones in the input.
        window: Time steps of a window of ``learner.run``.
        fold_steps: Of the learner, for the contender that folds.
        autocast: Whether all run under bfloat16 autocast.
        products: "bfloat16" for the learner's ``product_dtype``; else "float32".
        rule: Preset of the learning rule.
        layer_rules: Name pattern to preset or fields, for layers with a rule of their own.
        learning_rate: So small that the activity stays the same for all.
        cases: The tables.
        memory: What to measure of memory, if anything.
        rounds: How often each contender is measured.
        warm_up: Rounds before that.
        on_accelerator: Other values of the above for a run on CUDA or MPS; one further workload each.
    """

    title: str
    network: dict[str, Any]
    input_shape: list[int]
    classes: int
    steps: int
    batch: int
    densities: list[float]
    window: int
    cases: list[Case]
    fold_steps: int = 5
    autocast: bool = False
    products: str = "float32"
    rule: str = "dvs_gesture"
    layer_rules: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-6
    memory: Memory | None = None
    rounds: int = 5
    warm_up: int = 1
    on_accelerator: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _positive(
            steps=self.steps,
            batch=self.batch,
            window=self.window,
            fold_steps=self.fold_steps,
            classes=self.classes,
            rounds=self.rounds,
            warm_up=self.warm_up,
            learning_rate=self.learning_rate,
        )
        if self.products not in ("float32", "bfloat16"):
            raise SettingsError(f'products={self.products!r}: expected "float32" or "bfloat16".')
        for density in self.densities:
            if not 0 <= density <= 1:
                raise SettingsError(f"densities: {density} is no share of ones; expected 0 to 1.")
        for case in self.cases:
            if case.supervise_last > self.steps:
                raise SettingsError(f"supervise_last={case.supervise_last}, but there are {self.steps} steps.")
        if "class" not in self.network:
            raise SettingsError("network: say which class of lightning_modules.networks, e.g. class: RecurrentSNN.")

    def changed(self, changes: Mapping[str, Any]) -> Workload:
        """The workload with other values; ``network.hidden`` changes one argument of the network."""
        top: dict[str, Any] = {}
        network = dict(self.network)
        for key, value in changes.items():
            first, _, rest = key.partition(".")
            if first == "network" and rest:
                network[rest] = value
            elif rest or first not in {one.name for one in fields(self)}:
                raise SettingsError(f"{key!r} is nothing that a workload has.")
            else:
                top[first] = value
        return replace(self, **{"network": network, **top})


@dataclass(frozen=True)
class Curve:
    """Seconds per step against one property.

    Attributes:
        name: Of the property.
        key: What is changed: a key of the workload, or ``network.`` and an argument of the network.
        values: What it is set to.
        sizes: The numbers for the axis; by default the values.
        highest_slope: Of the time per step over the property, both logarithmic: 1 is linear, 0 does not grow.
    """

    name: str
    key: str
    values: list[Any]
    sizes: list[float] = field(default_factory=list)
    highest_slope: float = 1.1

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise SettingsError(f"curve {self.name!r}: a curve needs at least two values.")
        numbers = all(isinstance(value, (int, float)) for value in self.values)
        if len(self.sizes) != len(self.values) and (self.sizes or not numbers):
            raise SettingsError(f"curve {self.name!r}: sizes needs a number for each of the {len(self.values)} values.")

    @property
    def axis(self) -> list[float]:
        """The numbers for the axis."""
        return self.sizes or [float(value) for value in self.values]


@dataclass(frozen=True)
class Curves:
    """Curves of one workload.

    Attributes:
        workload: What the curves start from. Its one case says who takes part.
        curves: The curves.
    """

    workload: Workload
    curves: list[Curve]


@dataclass(frozen=True)
class Long:
    """A long sequence.

    Attributes:
        workload: The network and its input; ``steps`` is the length. Its one case says who takes part.
        block: Steps of the first and of the last part that are compared.
        within: By how much the last part may be slower than the first, as a share.
        memory_within: By how much the peak memory may grow after the first part, in MB.
    """

    workload: Workload
    block: int = 1000
    within: float = 0.05
    memory_within: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.block <= self.workload.steps // 2:
            raise SettingsError(f"block={self.block}: expected 1 to half of the {self.workload.steps} steps.")


Kind = TypeVar("Kind", Workload, Curves, Long)


def load(path: Path, kind: type[Kind]) -> Kind:
    """Reads a settings file.

    Args:
        path: YAML.
        kind: What it describes.

    Raises:
        SettingsError: If it cannot be read, or does not say what is needed; names the file.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected keys and values, e.g. steps: 100; found {type(data).__name__}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "settings")
    try:
        instantiate = getattr(
            parser, "instantiate", parser.instantiate_classes
        )  # the newer name since jsonargparse 4.49
        found = instantiate(parser.parse_object({"settings": data})).settings
    except (ArgumentError, TypeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    assert is_dataclass(found)
    return found  # type: ignore[return-value]
