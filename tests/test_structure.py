"""Arrows one way: no circle of imports, layers import downwards only, and CONTRIBUTING's map shows every file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stllr_plugin", "lightning_modules")
# A line of the map: its indentation, and the files (or the folder, or the layer) that it is about.
ENTRY = re.compile(r"^(\s*)([^\s,]+(?:, [^\s,]+)*)(?:\s|$)")


def module_of(path: Path) -> str:
    """`stllr_plugin/sites/neuron.py` -> `stllr_plugin.sites.neuron`; a package goes by its folder's name."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, source: str) -> Iterator[tuple[str, int]]:
    """Everything that a file imports, wherever the statement stands, as dotted names, each with its line."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) + 1 - node.level] if node.level else ()
            home += (node.module,) if node.module else ()
            for alias in node.names:
                yield ".".join((*home, alias.name)), node.lineno


def arrows(files: dict[Path, str]) -> dict[str, dict[str, str]]:
    """By module, the modules that it imports, and where (`file:line`)."""
    names = {module_of(path): path for path in files}
    found: dict[str, dict[str, str]] = {}
    for name, path in names.items():
        mine = found[name] = {}
        for target, line in imported(path, files[path]):
            known = target if target in names else target.rpartition(".")[0]
            if known in names and known != name:
                mine.setdefault(known, f"{path.as_posix()}:{line}")
    return found


def circle(graph: dict[str, dict[str, str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty if there is none."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := {name for name, targets in left.items() if not targets}:  # who imports nobody is in no circle
        left = {name: targets - free for name, targets in left.items() if name not in free}
    if not left:
        return []
    way = [min(left)]  # whoever is left imports somebody who is left, so a walk comes back to where it has been
    while (following := min(left[way[-1]])) not in way:
        way.append(following)
    return way[way.index(following) :]


@cache
def sources() -> dict[Path, str]:
    return {
        path.relative_to(ROOT): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def graph_of_both() -> dict[str, dict[str, str]]:
    return arrows(sources())


# --- the map ---------------------------------------------------------------------------------------


def map_of(package: str) -> list[str]:
    """The lines of the map in CONTRIBUTING under the heading of a package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^### {package}\n.*?^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING.md has no map under '### {package}'"
    return found.group(1).splitlines()


def layers() -> list[tuple[str, list[str]]]:
    """The layers of stllr_plugin from top to bottom, each with its files, as CONTRIBUTING's map lists them."""
    found: list[tuple[str, list[str]]] = []
    for line in map_of("stllr_plugin"):
        match = ENTRY.match(line)
        assert match, line
        if not match.group(1):
            found.append((match.group(2), []))
        else:
            found[-1][1].extend(f"stllr_plugin/{name}" for name in match.group(2).split(", "))
    return found


def files_in_folders(package: str) -> list[str]:
    """The files in a map that goes by folders; a folder stands for its `__init__.py`."""
    found: list[str] = []
    folders: list[tuple[int, str]] = [(-1, f"{package}/")]
    for line in map_of(package):
        match = ENTRY.match(line)
        assert match, line
        depth = len(match.group(1))
        while folders[-1][0] >= depth:
            folders.pop()
        for name in match.group(2).split(", "):
            path = folders[-1][1] + name
            if name.endswith("/"):
                folders.append((depth, path))
                path += "__init__.py"
            found.append(path)
    return found


def mapped(package: str) -> list[str]:
    if package == "stllr_plugin":
        return [name for _, files in layers() for name in files]
    return files_in_folders(package)


def is_empty(path: Path) -> bool:
    """Whether a file holds nothing but a text: a folder's `__init__.py` that only says what the folder is for."""
    return path.name == "__init__.py" and len(ast.parse(sources()[path]).body) <= 1


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_shows_every_file(package):
    listed = mapped(package)
    there = {path.as_posix() for path in sources() if path.parts[0] == package and not is_empty(path)}
    missing = sorted(there - set(listed))
    assert not missing, "CONTRIBUTING.md, 'Where things are': add a line for " + ", ".join(missing)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_the_map_shows_is_there(package):
    listed = mapped(package)
    gone = [name for name in listed if not (ROOT / name).is_file()]
    assert not gone, "CONTRIBUTING.md, 'Where things are': no such file: " + ", ".join(gone)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    assert not twice, "CONTRIBUTING.md, 'Where things are': listed twice: " + ", ".join(twice)


# --- imports ---------------------------------------------------------------------------------------


def test_no_imports_form_a_circle():
    """Imports for type checking and within functions count: whoever reads one file must read the other."""
    graph = graph_of_both()
    way = circle(graph)
    steps = [
        f"  {one} imports {other} ({graph[one][other]})" for one, other in zip(way, way[1:] + way[:1], strict=True)
    ]
    assert not way, "a circle of imports:\n" + "\n".join(steps)


def test_layers_import_downwards_only():
    """The layers are those of CONTRIBUTING's map, from top to bottom."""
    order = layers()
    ranks = {module_of(Path(name)): rank for rank, (_, files) in enumerate(order) for name in files}
    upwards = [
        f"  {where}: {name} (in '{order[ranks[name]][0]}') imports {target} (above it, in '{order[ranks[target]][0]}')"
        for name, targets in graph_of_both().items()
        for target, where in targets.items()
        if name in ranks and target in ranks and ranks[target] < ranks[name]
    ]
    assert not upwards, "imports that go up; see the map in CONTRIBUTING.md:\n" + "\n".join(upwards)


def test_layers_are_those_of_the_design():
    """From the optimizer that users see down to what all parts share, as the map is read."""
    names = [name for name, _ in layers()]
    wanted = ["learner", "ways", "network", "sites", "record", "parts", "session"]
    assert [name for name in names if name in wanted] == wanted


def test_the_core_does_not_know_of_lightning_modules():
    found = [
        where
        for name, targets in graph_of_both().items()
        if name.startswith("stllr_plugin")
        for target, where in targets.items()
        if target.startswith("lightning_modules")
    ]
    assert found == []


# --- the checks themselves -------------------------------------------------------------------------

HIDDEN = {
    "for type checking": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B\n",
    "within a function": "def f():\n    import p.b\n",
    "relative": "from . import b\n",
    "relative, of a name": "from .b import B\n",
    "of the module": "from p import b\n",
}


@pytest.mark.parametrize("source", HIDDEN.values(), ids=HIDDEN)
def test_a_circle_is_found_however_it_is_written(source):
    files = {Path("p/__init__.py"): "", Path("p/a.py"): source, Path("p/b.py"): "from p.c import x\n"}
    graph = arrows({**files, Path("p/c.py"): "x = 1\n"})
    assert circle(graph) == [] and set(graph["p.a"]) == {"p.b"}
    assert sorted(circle(arrows({**files, Path("p/c.py"): "from p.a import f\n"}))) == ["p.a", "p.b", "p.c"]


def test_who_imports_a_circle_is_not_part_of_it():
    graph = arrows(
        {Path("a.py"): "import b", Path("b.py"): "import c", Path("c.py"): "import b", Path("d.py"): "import c"}
    )
    assert sorted(circle(graph)) == ["b", "c"]
