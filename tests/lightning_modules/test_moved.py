"""Modules stay importable under the names of 0.1.0, which YAML files, checkpoints and scripts hold."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_modules
from lightning_modules.moved import MOVED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("former", MOVED)
def test_both_names_give_one_module(former):
    assert import_module(f"lightning_modules.{former}") is import_module(f"lightning_modules.{MOVED[former]}")


def test_classes_are_the_same_by_either_name():
    from lightning_modules.base import SpikingTask
    from lightning_modules.classification import SpikingClassifier

    assert SpikingClassifier is lightning_modules.SpikingClassifier
    assert issubclass(SpikingClassifier, SpikingTask) and SpikingTask is lightning_modules.SpikingTask


def test_nothing_else_is_found():
    for name in ("lightning_modules.nowhere", "lightning_modules.tasks.classificatoin"):
        with pytest.raises(ModuleNotFoundError, match=name):
            import_module(name)


def test_a_former_name_in_a_new_process():
    """Also where it is the first that is imported, and as `python -m` names it."""
    code = "import lightning_modules.cli as cli; assert cli.__name__ == 'lightning_modules.command.cli'; cli.main([])"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_yaml_files_with_former_names(tmp_path):
    from lightning_modules.command.trainer_cli import STLLRCLI

    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    assert "class_path: SpikingClassifier" in text
    file = tmp_path / "old.yaml"
    file.write_text(
        text.replace("class_path: SpikingClassifier", "class_path: lightning_modules.classification.SpikingClassifier")
    )
    cli = STLLRCLI(["--config", str(file), "--trainer.logger=false"], run=False)
    assert type(cli.model) is lightning_modules.SpikingClassifier


def test_a_task_is_known_by_its_former_name_once_it_is_imported():
    """Lightning takes the class that a checkpoint names from the modules that have been imported."""
    code = "import sys, lightning_modules.tasks.classification; sys.modules['lightning_modules.classification']"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
