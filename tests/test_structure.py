"""The structure of the code: imports run one way, and the map in CONTRIBUTING.md shows every file."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stllr_plugin", "lightning_modules")


def module_files() -> dict[str, Path]:
    """Every module of the packages, by its full name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, known: set[str], package: str = "") -> set[str]:
    """The project's modules that a file imports, wherever in the file: within functions and for type checking too.

    Args:
        tree: The file.
        known: All modules.
        package: The package that the file is in, to which relative imports refer.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:  # `from package import module` needs the module, other names the package
                module = f"{base}.{alias.name}"
                found.add(module if module in known else base)
    return found & known


def graph() -> dict[str, set[str]]:
    files = module_files()
    found = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = imported(ast.parse(path.read_text()), set(files), package) - {name}
    return found


def test_no_circle_of_imports():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as circle:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(circle.args[1])))


def test_a_circle_would_be_found():
    circular = {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    with pytest.raises(CycleError):
        TopologicalSorter(circular).prepare()
    known = {"p", "p.a", "p.b"}
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import X\ndef f():\n    import p.b\n"
    assert imported(ast.parse(hidden), known) == {"p.a", "p.b"}
    assert imported(ast.parse("from p import a"), known) == {"p.a"}
    assert imported(ast.parse("from p import a, name"), known) == {"p", "p.a"}
    assert imported(ast.parse("from . import a\nfrom .b import name"), known, "p") == {"p.a", "p.b"}


# --- the map -----------------------------------------------------------------------------------------------


def mapped() -> list[str]:
    """The files in the map of CONTRIBUTING.md, from top to bottom."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"## Where things are\n\n```text\n(.*?)```", text, re.DOTALL)
    assert block is not None
    folders: dict[int, str] = {}
    found: list[str] = []
    for line in block.group(1).splitlines():
        depth = len(line) - len(line.lstrip())
        first = re.match(r"\s*(\S+/)", line)
        folders = {level: name for level, name in folders.items() if level < depth}
        above = "".join(folders[level] for level in sorted(folders))
        if first is not None:
            folders[depth] = first.group(1)
            above += first.group(1)
        found += [above + name for name in re.findall(r"\b\w+\.py\b", line)]
        if first is not None and above.split("/")[0] in PACKAGES:  # formats by their names: readers/ has one file each
            names = re.findall(r"(?<=[ :,])\w+(?=[,;])", line)
            found += [path for name in names if (ROOT / (path := f"{above}{name}.py")).is_file()]
    return found


def test_the_map_shows_every_file_and_no_other():
    shown = {path for path in mapped() if path.startswith(PACKAGES)}
    there = {str(path.relative_to(ROOT)) for path in module_files().values() if path.name != "__init__.py"}
    there.discard("lightning_modules/data/readers/registry.py")
    assert there - shown == set(), "not in the map of CONTRIBUTING.md"
    assert {path for path in shown if not (ROOT / path).is_file()} == set(), "in the map, but not there"


def test_imports_of_the_core_go_down_the_map():
    order = [path for path in mapped() if path.startswith("stllr_plugin/") and "/verify/" not in path]
    place = {path.removesuffix(".py").replace("/", "."): number for number, path in enumerate(order)}
    upwards = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if name in place and other in place and place[other] < place[name]
    ]
    assert upwards == []
