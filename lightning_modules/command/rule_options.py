"""Single fields of the rule on the command line, whether the YAML file names a preset or lists fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

_WHOLE = ("--model.rule", "--model.init_args.rule")


def whole_rule(arguments: Sequence[str], rule_of: Callable[[list[str]], Any]) -> list[str]:
    """Arguments in which single fields, ``--model.rule.alpha_post=0``, have become one whole rule.

    By itself the parser would put a field in place of a preset that is given by its name, ``rule: shd``, and would take
    ``null`` as a word.

    Args:
        arguments: Arguments of the command line.
        rule_of: The rule that arguments without such fields come to: a name, a dictionary, or None.
    """
    fields: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _WHOLE:
            fields.clear()  # what comes later counts
        option = next((name[len(whole) + 1 :] for whole in _WHOLE if name.startswith(f"{whole}.")), "")
        if not option:
            rest.append(word)
            continue
        fields[option] = plain_value(value if equals else next(words, ""))
    if not fields:
        return list(arguments) if len(rest) == len(arguments) else rest
    rule = rule_of([word for word in rest if not word.startswith("--print_config")])
    rule = {"preset": rule} if isinstance(rule, str) else dict(rule or {})
    return [*rest, f"{_WHOLE[0]}={json.dumps({**rule, **fields})}"]


def plain_value(text: str) -> Any:
    """A value of the command line: a number, true, false, null (or None), or else the text."""
    if text in ("None", "null"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (list, dict)) else value
