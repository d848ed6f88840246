"""Former places of modules, which stay importable: YAML files, checkpoints and scripts name them.

A checkpoint of the command line holds the task's ``class_path``, such as
``lightning_modules.classification.SpikingClassifier``. A module that moves gets a line in :data:`MOVED`; no file stays
at its old place. Both names give the same module, so a class is the same class by either.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

_ROOT = __name__.rpartition(".")[0]

MOVED = {  # since 0.1.0
    "base": "tasks.base",
    "class_numbers": "tasks.class_numbers",
    "classification": "tasks.classification",
    "cli": "command.cli",
    "cli_errors": "command.errors",
    "cli_texts": "command.texts",
    "config_files": "command.config_files",
    "data.flow.windows": "data.flow.recording",
    "inspection": "demo.inspection",
    "optical_flow": "tasks.optical_flow",
    "plots": "demo.plots",
    "random_state": "tasks.random_state",
    "resumable": "tasks.resumable",
    "rule_options": "command.rule_options",
    "rules": "tasks.rules",
    "states": "tasks.states",
    "step_classification": "tasks.step_classification",
    "supervision": "tasks.step_weights",
    "trainer_cli": "command.trainer_cli",
    "windows": "tasks.in_windows",
}
"""Former name to present name, both without the package's."""


class MovedModules(MetaPathFinder, Loader):
    """Finds modules under their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The present module, for a name in :data:`MOVED`."""
        root, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if root == _ROOT and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the present module in the place of the empty one that Python has made."""
        former = module.__name__
        sys.modules[former] = import_module(f"{_ROOT}.{MOVED[former.partition('.')[2]]}")


def keep_former_name(module: str) -> None:
    """Make a module that is being imported known by its former name too, if it has one.

    Lightning looks for the class that a checkpoint names among the modules that have been imported, and imports none.
    """
    for former, now in MOVED.items():
        if module == f"{_ROOT}.{now}":
            sys.modules.setdefault(f"{_ROOT}.{former}", sys.modules[module])


def find_moved() -> None:
    """Look there, too, whenever a module is not found."""
    if not any(type(finder).__qualname__ == MovedModules.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
