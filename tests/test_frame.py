"""The frame around the code: packaging, lazy imports, documents that work, nothing of the developer's machine."""

from __future__ import annotations

import importlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest installs it on Python 3.10

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCUMENTS = ["README.md", "docs/usage.md", "docs/stdp.md", "CONTRIBUTING.md"]


def requirement_name(requirement: str) -> str:
    """`jsonargparse[signatures]>=4.39` -> `jsonargparse`."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of the project's files")
    paths = [ROOT / name for name in listing.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


# --- packaging -------------------------------------------------------------------------------------


def test_the_wheel_ships_both_packages_their_type_marks_and_the_configs():
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["stllr_plugin", "lightning_modules", "configs"]
    assert wheel["sources"] == {"configs": "lightning_modules/configs"}
    for package in ("stllr_plugin", "lightning_modules"):
        assert (ROOT / package / "__init__.py").is_file()
        assert (ROOT / package / "py.typed").is_file()
    assert (ROOT / "configs" / "quickstart.yaml").is_file()


def test_torch_is_the_only_core_dependency():
    assert [requirement_name(r) for r in PYPROJECT["project"]["dependencies"]] == ["torch"]


def test_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"snntorch", "norse", "spikingjelly", "lightning", "data", "vision", "all", "dev"}
    for name in ("snntorch", "norse", "spikingjelly", "lightning"):
        assert name in map(requirement_name, extras[name])
    assert extras["all"] == ["stllr-plugin[snntorch,norse,lightning,data,vision]"]
    assert {"stllr-plugin[all]", "stllr-plugin[spikingjelly]"} <= set(extras["dev"])


def test_gpl_code_arrives_only_with_the_data_extra():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert [name for name, needs in extras.items() if "tonic" in map(requirement_name, needs)] == ["data"]


def test_console_script_leads_to_a_function():
    pytest.importorskip("lightning", reason="the stllr command needs the extra 'lightning'")
    module, function = PYPROJECT["project"]["scripts"]["stllr"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_versions_agree():
    import stllr_plugin

    version = PYPROJECT["project"]["version"]
    assert stllr_plugin.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == version


def test_ci_runs_what_a_user_would_run():
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text(encoding="utf-8").splitlines()
    if os.name == "posix":
        assert script.stat().st_mode & stat.S_IXUSR


# --- imports ---------------------------------------------------------------------------------------


def test_importing_the_core_loads_torch_and_nothing_else():
    """Time is not asserted here: benchmarks/import_time.py measures it."""
    probe = (
        "import sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import stllr_plugin\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(after - before - sys.stdlib_module_names))\n"
        "print(*sorted(after & {'snntorch', 'norse', 'spikingjelly', 'lightning', 'lightning_modules', 'tonic'}))\n"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    new, optional = run.stdout.split("\n")[:2]
    assert new.split() == ["stllr_plugin"]
    assert optional.split() == []


# --- documents -------------------------------------------------------------------------------------


def python_blocks(document: str) -> list[tuple[int, str]]:
    """The document's Python blocks, each with the line it starts on."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_in_the_documents_runs(document, tmp_path, monkeypatch):
    """A document's blocks run one after the other, as a reader would paste them into one session."""
    import torch

    for module in ("snntorch", "norse"):
        pytest.importorskip(module, reason=f"the documents' examples need the extra {module!r}")
    from stllr_plugin.signals import SIGNALS

    monkeypatch.chdir(tmp_path)
    known = dict(SIGNALS)
    blocks = python_blocks(document)
    assert blocks
    session = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for line, block in blocks:
            # The padding makes a traceback show the line of the document.
            exec(compile("\n" * line + block, str(ROOT / document), "exec"), session)
    for name in SIGNALS.keys() - known.keys():  # what a document has entered
        del SIGNALS[name]


def test_links_between_the_documents_lead_somewhere():
    documents = [path for path in tracked_files() if path.suffix == ".md"]
    broken = [
        f"{document.relative_to(ROOT)} -> {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", document.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target) and not (document.parent / target).exists()
    ]
    assert broken == []


# --- nothing of one machine ------------------------------------------------------------------------

# Put together from pieces, so that this file does not find itself.
ABSOLUTE_PATH = re.compile(r"(?<![\w.~}])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/")
REGISTRY_HOST = re.compile(r"pypi\." + r"org|pythonhosted\." + r"org|registry\.npmjs|index-" + r"url")


def test_no_file_names_a_folder_or_a_package_index_of_one_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        for number, line in enumerate(text.splitlines(), start=1):
            if ABSOLUTE_PATH.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize("line", ["see /" + "work/x", "open('/" + "root/a')", "cd /" + "home/me", "index-" + "url = x"])
def test_the_search_for_machine_paths_finds_them(line):
    assert ABSOLUTE_PATH.search(line) or REGISTRY_HOST.search(line)


@pytest.mark.parametrize("line", ["https://example.org/work/1", "the worker's home", "docs/home/page.md"])
def test_the_search_for_machine_paths_leaves_other_text_alone(line):
    assert not ABSOLUTE_PATH.search(line)
