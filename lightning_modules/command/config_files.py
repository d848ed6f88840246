"""YAML files that a command line names: found, readable, and with something in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_modules.command.texts import did_you_mean


def named_files(arguments: Sequence[str]) -> Iterator[str]:
    """The values of ``--config`` (or ``-c``)."""
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else next(words, "")
            if value:
                yield value


def problem_of(file: str) -> str:
    """What is wrong with a configuration file; nothing if it can be parsed."""
    path = Path(file)
    if not path.is_file():
        return _not_there(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        settings = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return _not_yaml(file, text, error)
    except yaml.YAMLError as error:
        return f"{file} is no YAML file: {error}"
    if not isinstance(settings, yaml.MappingNode):
        return f"{file} has no settings in it: model, data and trainer are expected. {_COMPLETE}"
    return ""


_COMPLETE = "stllr fit --config configs/quickstart.yaml --print_config shows a complete file."


def _not_there(path: Path) -> str:
    home = Path(__file__).parents[1]  # of the package
    folders = [path.parent, Path("configs"), home.parent / "configs", home / "configs"]
    here = list(dict.fromkeys(str(file) for folder in folders for file in sorted(folder.glob("*.yaml"))))
    stems = {Path(file).stem: file for file in reversed(here)}
    close = did_you_mean(path.stem, stems)
    lines = [f"There is no file {path}."]
    if close:
        lines[0] += f" Did you mean {stems[close.split(chr(39))[1]]}?"
    elif here:
        lines.append(f"There are: {', '.join(sorted(stems.values()))}.")
    lines.append(
        "A configuration is a YAML file as for stllr fit; stllr fit --config FILE --print_config shows a complete one."
    )
    return "\n".join(lines)


def _not_yaml(file: str, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    number = 0 if mark is None else mark.line
    lines = text.splitlines()
    line = lines[min(number, len(lines) - 1)] if lines else ""
    advice = (
        "YAML indents with blanks, never with tabs."
        if "\t" in line
        else "Settings of one block begin in the same column, and a blank follows the colon."
    )
    said = (error.problem or "").replace("mapping values are not allowed here", "a value is not expected here")
    return f"{file}, line {number + 1}: {said}\n    {line.strip()}\n{advice}"
