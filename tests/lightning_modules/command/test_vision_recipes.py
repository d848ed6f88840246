"""The YAML files of the public event-camera sets: each builds the paper's network, and trains by every algorithm."""

import logging
from itertools import product
from pathlib import Path

import pytest
import torch

from lightning_modules.command.cli import main
from lightning_modules.command.trainer_cli import STLLRCLI
from lightning_modules.data.recordings import RecordingsDataModule
from lightning_modules.tasks.states import spiking_modules
from tests.lightning_modules import event_files as files
from tests.lightning_modules.command.test_cli import IN_OTHER_TESTS

MODULES = [kind.__name__ for kind in RecordingsDataModule.__subclasses__()]
CONFIGS = Path(__file__).parents[3] / "configs"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
ALGORITHMS = ("stllr", "ottt", "sltt", "tess", "bptt")
RECIPES = {
    "dvs_gesture": (files.write_dvs_gesture, (20, 2, 32, 32), 11),
    "cifar10_dvs": (files.write_cifar10_dvs, (10, 2, 48, 48), 10),
    "ncaltech101": (files.write_ncaltech101, (10, 2, 45, 60), 101),
    "ncars": (files.write_ncars, (10, 2, 50, 60), 2),
    "nmnist": (files.write_nmnist, (15, 2, 34, 34), 10),
}


def test_all_recipes_of_recordings_are_here():
    named = {path.stem for path in CONFIGS.glob("*.yaml") if any(f": {kind}\n" in path.read_text() for kind in MODULES)}
    assert named == set(RECIPES) == IN_OTHER_TESTS


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root, done = tmp_path_factory.mktemp("recipes"), {}

    def folder(name):
        if name not in done:
            done[name] = RECIPES[name][0](root / name)
        return done[name]

    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(written, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("STLLR_CACHE", str(cache))
    monkeypatch.setenv("STLLR_DATA", str(cache / "none"))
    monkeypatch.setattr(RecordingsDataModule, "progress", False, raising=False)
    monkeypatch.chdir(tmp_path)

    def make(name, *more):
        small = [f"--data.path={written(name)}", "--data.batch_size=1", "--data.num_workers=0"]
        return ["--config", str(CONFIGS / f"{name}.yaml"), *small, *QUIET, *more]

    return make


@pytest.mark.parametrize("name", RECIPES)
def test_network_is_the_paper_s_and_fits_the_data(name, arguments):
    cli = STLLRCLI(arguments(name, "--data.batch_size=2"), run=False)
    _, shape, classes = RECIPES[name]
    cli.datamodule.prepare_data()
    cli.datamodule.setup()
    frames, lengths, _ = next(iter(cli.datamodule.train_dataloader()))
    assert frames.shape == (2, *shape) and lengths.tolist() == [shape[0]] * 2
    network, task = cli.model.network, cli.model
    channels = [layer.out_channels for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert channels == [64, 128, 256, 256, 512, 512, 512, 512]
    assert all(neuron.beta == 0.5 and neuron.threshold == 0.8 for neuron in spiking_modules(network).values())
    network.eval()
    with torch.no_grad():
        logits = network(frames[:1, 0])
    assert logits.shape == (1, classes) and task.num_classes == classes == cli.datamodule.num_classes
    assert task.supervise_last == 5 and (task.rule.lambda_post, task.rule.alpha_post) == (0.2, -1.0)


def everything_but(default, combinations):
    """Trains the default ones always, and the other ones in the slow tests."""
    return [
        pytest.param(*combination, marks=() if combination in default else pytest.mark.slow)
        for combination in combinations
    ]


@pytest.mark.parametrize(
    ("name", "algorithm"),
    everything_but(list(zip(RECIPES, ALGORITHMS, strict=True)), list(product(RECIPES, ALGORITHMS))),
)
def test_trains_for_two_batches_on_data_of_its_shape(name, algorithm, arguments):
    options = ["--model.network.width=0.0625", f"--model.algorithm={algorithm}", "--trainer.fast_dev_run=2"]
    assert main(["fit", *arguments(name, *options)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_trains_at_full_width(name, arguments):
    assert main(["fit", *arguments(name, "--trainer.fast_dev_run=2")]) == 0


@pytest.mark.parametrize(
    ("name", "algorithm"), everything_but([("cifar10_dvs", "stllr")], list(product(RECIPES, ALGORITHMS)))
)
def test_resnet18_instead(name, algorithm, arguments):
    options = ["--model.network=SpikingResNet", f"--model.network.num_classes={RECIPES[name][2]}"]
    options += ["--model.network.width=0.0625", f"--model.algorithm={algorithm}", "--trainer.fast_dev_run=1"]
    assert main(["fit", *arguments(name, *options)]) == 0


def test_settings_of_the_published_code(arguments, monkeypatch, capsys, caplog):
    # Lightning keeps its messages to itself or not, depending on what had been imported before it.
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    options = ["--data.val_users=0", "--data.uncut_test=true", "--model.network.width=0.0625"]
    limits = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    with caplog.at_level("INFO", "lightning.pytorch"):
        assert main(["fit", *arguments("dvs_gesture", *options, *limits, "--trainer.max_epochs=1")]) == 0
    assert "test uncut" in caplog.text and "validated on the test samples" in caplog.text
    assert "test_accuracy" in capsys.readouterr().out


def test_set_that_is_not_there_says_what_to_do(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", *arguments("ncars", f"--data.path={tmp_path}", "--trainer.fast_dev_run=1")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    for part in ("stllr fit: error", f"{tmp_path}: N-CARS is not here", "By hand:", "--data.path FOLDER"):
        assert part in error
    assert "Traceback" not in error


def test_damaged_recording_is_an_error_and_no_crash(arguments, tmp_path, capsys):
    folder = files.write_nmnist(tmp_path / "set")
    victim = folder / "Train" / "4" / "00014.bin"
    victim.write_bytes(victim.read_bytes()[:-2])
    with pytest.raises(SystemExit):
        main(["fit", *arguments("nmnist", f"--data.path={folder}", "--trainer.fast_dev_run=1")])
    error = capsys.readouterr().err
    assert f"{victim}: cut off or damaged" in error and "Traceback" not in error
