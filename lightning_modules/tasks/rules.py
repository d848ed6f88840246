"""From what a YAML file can say about learning rules to the rules of the learner."""

from __future__ import annotations

from typing import Any

from stllr_plugin import STLLRRule
from stllr_plugin.signals import SIGNALS

RuleLike = str | dict[str, Any] | STLLRRule
DEFAULT_PRESET = "dvs_gesture"


def make_rule(rule: RuleLike | None, preset: str = DEFAULT_PRESET) -> STLLRRule:
    """A rule from the name of a preset, from its fields, or from itself.

    Args:
        rule: Preset name; dictionary of fields, in which ``preset`` names the preset to start from; a rule; or None.
        preset: The preset to start from when ``rule`` names none.

    Raises:
        stllr_plugin.errors.RuleError: If a name or a value is not valid.
    """
    if isinstance(rule, STLLRRule):
        return rule
    if isinstance(rule, str):
        return STLLRRule.preset(rule)
    fields = dict(rule or {})
    return STLLRRule.preset(fields.pop("preset", preset), **fields)


def learning_rules(
    algorithm: str, rule: RuleLike | None, layer_rules: dict[str, RuleLike] | None
) -> tuple[STLLRRule | None, dict[str, STLLRRule]]:
    """The rule of the network and those of single layers for an algorithm.

    Args:
        algorithm: "stllr", "ottt", "sltt", "tess" or "bptt". Only "stllr" reads the two settings; the others have their
            own.
        rule: Settings, see :func:`make_rule`.
        layer_rules: Name pattern to settings.

    Returns:
        The rule (None for "bptt") and the rules of single layers.

    Raises:
        ValueError: If the algorithm is not known.
    """
    if algorithm == "bptt":
        return None, {}
    if algorithm == "stllr":
        return make_rule(rule), {pattern: make_rule(settings) for pattern, settings in (layer_rules or {}).items()}
    if algorithm not in ("ottt", "sltt", "tess"):
        raise ValueError(f"Unknown algorithm {algorithm!r}; known: stllr, ottt, sltt, tess, bptt.")
    return STLLRRule.preset(algorithm), {}


def loss_signals() -> list[str]:
    """The learning signals that come from a loss or a target, those that users registered among them.

    Others wait for a reward (docs/stdp.md), which a task has not to give.
    """
    return [name for name, kind in SIGNALS.items() if kind.reaches_layers]


def check_signal(name: str) -> None:
    """Raise ValueError if a task cannot train with a learning signal of this name."""
    if name not in loss_signals():
        raise ValueError(f"learning_signal={name!r} is not known; use one of {', '.join(loss_signals())}.")
