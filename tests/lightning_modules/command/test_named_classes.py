"""Data sets and tasks are known by their names, once a line registers their module."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule

import lightning_modules
from lightning_modules import SpikingTask
from lightning_modules.command import named_classes
from lightning_modules.command.named_classes import MODULES, import_named_classes

HOME = Path(lightning_modules.__file__).parent


def public_classes(folder, kind):
    for path in sorted(HOME.glob(f"{folder}/**/*.py")):
        module = import_module(".".join(("lightning_modules", *path.relative_to(HOME).with_suffix("").parts)))
        for name, found in vars(module).items():
            own = inspect.isclass(found) and found.__module__ == module.__name__
            if own and issubclass(found, kind) and not inspect.isabstract(found) and not name.startswith("_"):
                yield found


@pytest.mark.parametrize(("folder", "kind"), [("data", LightningDataModule), ("tasks", SpikingTask)])
def test_each_data_set_and_task_is_registered(folder, kind):
    modules = [f"lightning_modules.{name}" for name in MODULES]
    found = list(public_classes(folder, kind))
    assert len(found) > 2
    bases = {"SpikingTask", "ClassificationTask"}
    for one in found:
        within = any(one.__module__ == name or hasattr(import_module(name), one.__name__) for name in modules)
        assert within or one.__name__ in bases, f"{one.__name__} needs its line in command/named_classes.py"


def test_one_line_registers_a_module(monkeypatch):
    monkeypatch.setattr(named_classes, "MODULES", ("processes", "nowhere"))
    with pytest.raises(ModuleNotFoundError, match=r"lightning_modules\.nowhere"):
        import_named_classes()
