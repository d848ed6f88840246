"""Modules whose classes a YAML file may name by the class name alone, and the help pages list."""

from __future__ import annotations

from importlib import import_module

MODULES = (
    "callbacks",
    "data",
    "data.flow",
    "flow.contrast",
    "flow.photometric",
    "flow.supervised",
    "networks",
    "tasks.classification",
    "tasks.optical_flow",
    "tasks.step_classification",
)
"""Names within this package. A new data set, task, network or loss gets its line here."""


def import_named_classes() -> None:
    """Import them: the parser knows the classes that are there."""
    root = __name__.partition(".")[0]
    for name in MODULES:
        import_module(f"{root}.{name}")
