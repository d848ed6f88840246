"""One run gives what ``stllr fit`` gives, tests as it goes, and goes on after a kill as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_modules.command.cli import main
from lightning_modules.comparison.experiment import Experiment, Variant
from lightning_modules.comparison.measure import default_steps, prepare_batch, seconds_per_step, stretch
from lightning_modules.comparison.store import OtherConfigurationError, Store
from lightning_modules.comparison.training import RunError, look, train

CONFIGS = Path(__file__).parents[3] / "configs"
ARGUMENTS = ["--config", str(CONFIGS / "quickstart.yaml"), "--data.num_samples=80", "--trainer.accelerator=cpu"]
ARGUMENTS += ["--trainer.max_epochs=3", "--data.num_steps=6", "--model.network.init_args.channels=[4, 6]"]
STLLR = Variant("S-TLLR", {"model.algorithm": "stllr"})
FACTS = ("epochs", "chosen", "test_chosen", "test_last", "test_best", "order", "counts", "parameters", "edges")


def quietly(line):
    pass


def facts(result):
    """What does not depend on the clock."""
    kept = {name: result[name] for name in FACTS}
    return {**kept, "epochs": [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in result["epochs"]]}


class Batches(Callback):
    """Counts training batches, and calls ``at_last`` when there are so many."""

    def __init__(self, last=None, at_last=None):
        self.count, self.last, self.at_last = 0, last, at_last

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.count += 1
        if self.count == self.last:
            self.at_last()


def stop():
    raise MemoryError("trained although the result is there")


@pytest.fixture
def experiment(small_digits):
    return Experiment(ARGUMENTS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, event_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STLLR_CACHE", str(event_cache))
        experiment = Experiment(ARGUMENTS)
        store = Store(tmp_path_factory.mktemp("undisturbed"), experiment.settings)
        return train(experiment, STLLR, 1, store, say=quietly)


def test_a_run_gives_what_fit_gives(undisturbed, small_digits, tmp_path, capsys):
    options = ["--seed_everything=1", f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    main(["fit", *ARGUMENTS, *options, "--test_after_fit=false"])
    best, last = ((next(tmp_path.rglob(f"{name}.ckpt"))) for name in ("best", "last"))
    assert torch.load(best, weights_only=True)["epoch"] == undisturbed["chosen"]
    for checkpoint, name in ((best, "test_chosen"), (last, "test_last")):
        capsys.readouterr()
        main(["test", *ARGUMENTS, *options, f"--ckpt_path={checkpoint}"])
        said = [line for line in capsys.readouterr().out.splitlines() if "test_accuracy" in line]
        assert float(said[0].strip(" │").split()[-1]) == pytest.approx(undisturbed[name], abs=1e-6)


def test_three_accuracies_are_kept_and_named(undisturbed):
    accuracies = [epoch["test_accuracy"] for epoch in undisturbed["epochs"]]
    losses = [epoch["val_loss"] for epoch in undisturbed["epochs"]]
    assert len(accuracies) == 3
    assert undisturbed["chosen"] == losses.index(min(losses))
    assert undisturbed["test_chosen"] == accuracies[undisturbed["chosen"]]
    assert undisturbed["test_last"] == accuracies[-1] and undisturbed["test_best"] == max(accuracies)
    assert [edge["name"] for edge in undisturbed["edges"]][0] == "features.conv1->features.lif1"


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.lightning_modules.comparison.test_training import ARGUMENTS, STLLR, Batches
from lightning_modules.comparison.experiment import Experiment
from lightning_modules.comparison.store import Store
from lightning_modules.comparison.training import train
experiment = Experiment(ARGUMENTS)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
train(experiment, STLLR, 1, Store(Path({folder!r}), experiment.settings), callbacks=[Batches(6, die)])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, event_cache):
    """What a process leaves that is killed the hard way in the second epoch, of four batches."""
    if sys.platform == "win32":
        pytest.skip("no SIGKILL")
    folder = tmp_path_factory.mktemp("killed")
    script = SCRIPT.format(root=str(CONFIGS.parent), folder=str(folder))
    cache = {**os.environ, "STLLR_CACHE": str(event_cache)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=cache)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


def test_killed_in_the_second_epoch_it_goes_on_with_the_second_epoch(experiment, undisturbed, killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    store, lines = Store(tmp_path, experiment.settings), []
    assert not list(tmp_path.glob("results/*"))
    counted = Batches()
    result = train(experiment, STLLR, 1, store, callbacks=[counted], say=lines.append)
    assert counted.count == 8 and "last checkpoint" in lines[0]
    assert facts(result) == facts(undisturbed)
    assert not list(tmp_path.glob("unfinished/*"))
    again = train(experiment, STLLR, 1, store, callbacks=[Batches(1, stop)], say=lines.append)
    assert again == result and "done before" in lines[-1]


def test_a_damaged_checkpoint_means_a_new_start(experiment, undisturbed, killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    lines = []
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    result = train(experiment, STLLR, 1, Store(tmp_path, experiment.settings), say=lines.append)
    assert facts(result) == facts(undisturbed)
    assert "cannot be read" in lines[1]


def test_another_configuration_does_not_use_the_results(experiment, tmp_path):
    Store(tmp_path, experiment.settings).put("S-TLLR-seed1", "abc", {})
    other = Experiment([*ARGUMENTS, "--model.supervise_last=3"])
    with pytest.raises(OtherConfigurationError, match="model.supervise_last: 5 there, 3 here"):
        Store(tmp_path, other.settings)


def test_algorithms_see_the_same_batches_and_start_from_the_same_weights(experiment, undisturbed, tmp_path):
    short = Experiment([*ARGUMENTS, "--trainer.max_epochs=1"])
    store, started = Store(tmp_path, short.settings), []

    class First(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append(pl_module.network.features.conv1.weight.detach().clone())

    names = ("stllr", "bptt")
    variants = [Variant(name, {"model.algorithm": name}) for name in names]
    results = [train(short, one, 0, store, every_epoch=False, callbacks=[First()], say=quietly) for one in variants]
    assert results[0]["order"] == results[1]["order"] != undisturbed["order"]
    assert torch.equal(*started)
    assert results[1]["edges"] is None and results[0]["test_best"] is None
    assert results[0]["test_chosen"] == results[0]["test_last"]


def test_the_last_epoch_is_tested_even_where_steps_end_the_training(experiment, tmp_path):
    """Six of twelve steps: the second epoch is cut short, and a rising metric has chosen the first one."""
    ended = Experiment([*ARGUMENTS, "--trainer.max_steps=6", "--model.optimizer.init_args.lr=0.0"])
    result = train(ended, STLLR, 0, Store(tmp_path, ended.settings), every_epoch=False, say=quietly)
    assert result["chosen"] == 0 and len(result["epochs"]) == 2
    assert result["test_last"] == result["test_chosen"]  # nothing was learned at this rate


def test_facts_before_training_and_data_that_are_not_there(experiment):
    found = look(experiment)
    assert (found["num_steps"], found["batch_size"], found["frame_shape"]) == (6, 16, [2, 17, 17])
    missing = Experiment(["--config", str(CONFIGS / "nmnist_subset.yaml"), "--data.path=none.npz"])
    with pytest.raises(RunError, match=r"none.npz(.|\n)*--data.path PATH"):
        look(missing)


def test_batches_of_any_length():
    frames, labels = torch.arange(6.0).view(1, 3, 2), torch.tensor([[0, 1, 2]])
    longer, lengths, per_step = stretch((frames, torch.tensor([3]), labels), 5)
    assert longer[0, :, 0].tolist() == [0, 2, 4, 0, 2] and per_step.tolist() == [[0, 1, 2, 0, 1]]
    assert lengths.tolist() == [5]
    assert stretch((frames, torch.tensor([3]), torch.tensor([4])), 2)[2].tolist() == [4]
    assert default_steps(20) == [10, 20, 40, 80] and default_steps(1) == [1, 2, 4]


def test_time_is_measured_in_turns_from_the_same_weights(experiment):
    variants = [Variant(name, {"model.algorithm": name}) for name in ("stllr", "bptt")]
    found = seconds_per_step(experiment, variants, rounds=2, batches=1)
    assert set(found) == {"stllr", "bptt"}
    assert all(one["count"] == 2 and 0 < one["low"] <= one["median"] <= one["high"] for one in found.values())


def test_one_batch_of_any_length_is_trained_for_the_memory(experiment):
    prepare_batch(experiment.arguments(STLLR), 9)()
