"""What ``stllr ablate`` varies: named studies, and grids that are written on the command line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.command.rule_options import plain_value
from lightning_modules.command.texts import did_you_mean
from lightning_modules.comparison.experiment import RULE, Experiment, Variant
from lightning_modules.tasks.rules import loss_signals, make_rule
from stllr_plugin import STLLRRule

STUDIES: dict[str, str] = {
    "psi_alpha": "psi x alpha_post, as in Table 5 of the paper: which of the two matters?",
    "lambdas": "lambda_pre x lambda_post",
    "psi_alpha_lambda": "psi x alpha_post x lambda_pre and lambda_post together (27 runs for each seed)",
    "ottt_to_stllr": "from OTTT to the rule of the configuration, one change at a time",
    "supervised_steps": "how many last time steps have a loss",
    "learning_signals": "every learning signal, and none (hidden weights as they were drawn)",
}

_PSI = ["triangle", "sigmoid", "inverse_square"]


class StudyError(ValueError):
    """A study or grid that cannot be run; the message says what to do."""


def study(name: str, experiment: Experiment, num_steps: int) -> list[Variant]:
    """The variants of a named study.

    Args:
        name: One of `STUDIES`.
        experiment: The configuration.
        num_steps: Time steps of the data.

    Raises:
        StudyError: If there is no such study.
    """
    check_study(name)
    if name == "psi_alpha":
        return grid({f"{RULE}.psi": _PSI, f"{RULE}.alpha_post": [-1.0, 0.0, 1.0]})
    if name == "lambdas":
        return grid({f"{RULE}.lambda_pre": [0.0, 0.5, 0.8, "leak"], f"{RULE}.lambda_post": [0.2, 0.5, 0.8]})
    if name == "psi_alpha_lambda":
        return _psi_alpha_lambda()
    if name == "ottt_to_stllr":
        return _path(make_rule(experiment.task.get("rule")), experiment.task.get("supervise_last"))
    if name == "supervised_steps":
        counts = sorted({1, max(1, num_steps // 8), max(1, num_steps // 4), max(1, num_steps // 2)} - {num_steps})
        variants = [_one("supervised steps", f"last {n}", {"model.supervise_last": n}) for n in counts]
        return [*variants, _one("supervised steps", f"all {num_steps}", {"model.supervise_last": None})]
    signals = [_one("learning signal", signal, {"model.learning_signal": signal}) for signal in loss_signals()]
    none = {"model.learning_signal": "bp", f"{RULE}.alpha_pre": 0.0, f"{RULE}.alpha_post": 0.0}
    return [*signals, _one("learning signal", "none (no eligibility)", none)]


def check_study(name: str) -> None:
    """Refuse a study that there is not.

    Raises:
        StudyError: If there is no such study.
    """
    if name not in STUDIES:
        known = "\n".join(f"  {study:<18}{says}" for study, says in STUDIES.items())
        raise StudyError(
            f"There is no study {name!r}.{did_you_mean(name, STUDIES)} There are:\n{known}\n"
            "Or write a grid: --grid model.rule.alpha_post=-1,0,1 model.rule.psi=triangle,sigmoid"
        )


def read_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """``["model.rule.alpha_post=-1,0,1", ...]`` to options and their values.

    Raises:
        StudyError: If a word is not like that, or has no values.
    """
    example = "such as --grid model.rule.alpha_post=-1,0,1 model.rule.psi=triangle,sigmoid"
    if not words:
        raise StudyError(f"The grid is empty. Give options with their values, {example}.")
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.removeprefix("--").partition("=")
        if not equals or not name:
            raise StudyError(f"--grid {word}: what is varied is written OPTION=VALUE,VALUE, {example}.")
        if name.partition(".")[0] not in ("model", "data", "trainer"):
            raise StudyError(
                f"--grid {word}: options are written in full, as for stllr fit: model.supervise_last=1,5\n"
                f"Fields of the rule are model.rule.NAME; did you mean model.rule.{name}?"
            )
        if name in axes:
            raise StudyError(f"--grid: {name} is there twice. Put all its values together: {name}=VALUE,VALUE.")
        if name in ("seed_everything", "trainer.default_root_dir"):
            raise StudyError(f"--grid: {name} cannot be varied. Seeds are given with --seeds.")
        axes[name] = list(dict.fromkeys(plain_value(text) for text in _split(values)))
        if not axes[name]:
            raise StudyError(f"--grid {word}: {name} has no values, so the grid is empty. Give some, {example}.")
    return axes


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every combination of the values."""
    short = {name: name.rpartition(".")[2] for name in axes}
    names = {name: short[name] if list(short.values()).count(short[name]) == 1 else name for name in axes}
    variants = []
    for values in itertools.product(*axes.values()):
        place = {names[name]: _label(value) for name, value in zip(axes, values, strict=True)}
        title = ", ".join(f"{axis}={label}" for axis, label in place.items())
        variants.append(Variant(title, dict(zip(axes, values, strict=True)), place))
    return variants


def _one(axis: str, label: str, changes: Mapping[str, Any]) -> Variant:
    return Variant(label, changes, {axis: label})


def _psi_alpha_lambda() -> list[Variant]:
    variants = []
    for variant in grid({f"{RULE}.psi": _PSI, f"{RULE}.alpha_post": [-1.0, 0.0, 1.0]}):
        for pre, post in ((0.5, 0.2), (0.75, 0.2), (1.0, 0.5)):  # those of the paper's tasks
            label = f"{pre:g}, {post:g}"
            changes = {**variant.changes, f"{RULE}.lambda_pre": pre, f"{RULE}.lambda_post": post}
            place = {**variant.place, "lambda_pre, lambda_post": label}
            variants.append(Variant(f"{variant.name}, lambda={pre:g}/{post:g}", changes, place))
    return variants


def _path(rule: STLLRRule, supervise_last: int | None) -> list[Variant]:
    """Each variant has all changes of those before it; changes that change nothing are left out."""
    goal = {"model.supervise_last": supervise_last} | {f"{RULE}.{k}": v for k, v in rule.describe().items()}
    ottt = STLLRRule.preset("ottt").describe()
    now = {"model.supervise_last": None} | {f"{RULE}.{name}": value for name, value in ottt.items()}
    changes: list[tuple[str, tuple[str, ...]]] = [
        (f"last {supervise_last} steps supervised", ("model.supervise_last",)),
        (f"psi {_label(rule.psi)}", (f"{RULE}.psi",)),
        (f"{rule.propagate} carries the signal down", (f"{RULE}.propagate",)),
        (f"lambda_pre {_label(rule.lambda_pre)}", (f"{RULE}.lambda_pre",)),
        (f"alpha_pre {_label(rule.alpha_pre)}", (f"{RULE}.alpha_pre",)),
        (
            f"non-causal term, alpha_post {_label(rule.alpha_post)}",
            (f"{RULE}.alpha_post", f"{RULE}.lambda_post", f"{RULE}.convention"),
        ),
        (f"learning signal {rule.learning_signal}", (f"{RULE}.learning_signal",)),
    ]
    variants = [_one("change", "OTTT", dict(now))]
    for label, names in changes:
        before = dict(now)
        now |= {name: goal[name] for name in names}
        if now != before and not (rule.alpha_post == 0 and f"{RULE}.alpha_post" in names):
            variants.append(_one("change", f"+ {label}", dict(now)))
    return variants


def _split(text: str) -> list[str]:
    """At commas that are not inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _label(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
