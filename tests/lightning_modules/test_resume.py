"""A run that was killed resumes from its checkpoint to the same final weights, in both loops, wherever it ended."""

import random
import signal

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_modules import ResumableLoader
from lightning_modules.callbacks import ResumeRandomness
from lightning_modules.data import EventDigitsDataModule
from lightning_modules.data.loading import EpochSampler
from lightning_modules.tasks.random_state import random_state, set_random_state
from tests.lightning_modules.helpers import assert_same, make_task, make_trainer, weights
from tests.lightning_modules.processes import finish, start
from tests.lightning_modules.resume_script import run

SCRIPT = __file__.replace("test_resume.py", "resume_script.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "algorithm", "workers"),
    [("online", "stllr", 0), ("automatic", "stllr", 0), ("online", "tess", 1), ("automatic", "bptt", 1)],
)
def test_a_killed_process_resumes_to_the_weights_of_an_undisturbed_one(tmp_path, loop, algorithm, workers):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    common = (loop, algorithm, workers)
    undisturbed = start(SCRIPT, straight, *common, "", "")
    victim = start(SCRIPT, killed, *common, 7, "")  # in the eighth batch, the last of the second epoch
    finish(undisturbed)
    said, _ = victim.communicate(timeout=200)
    assert victim.returncode == -signal.SIGKILL, said
    assert not (killed / "final.pt").exists()
    last = killed / "step=6.ckpt"  # after the second batch of that epoch; one batch is lost
    assert last.exists() and not (killed / "step=8.ckpt").exists()
    finish(start(SCRIPT, killed, *common, "", last))
    expected, steps = torch.load(straight / "final.pt", weights_only=True)
    resumed, resumed_steps = torch.load(killed / "final.pt", weights_only=True)
    assert steps == resumed_steps == 12
    assert_same(resumed, expected, 1e-6)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, (3, 4)),  # in mid-epoch; with the last batch of an epoch
        ({"loop": "automatic"}, (3, 4)),
        ({"trainer": {"accumulate_grad_batches": 2}}, (1, 2)),
        ({"update_every": 2}, (2,)),
        pytest.param({"trainer": {"val_check_interval": 2}}, (1, 2, 3, 4), marks=pytest.mark.slow),
        pytest.param({"loop": "automatic", "trainer": {"val_check_interval": 2}}, (1, 2, 3, 4), marks=pytest.mark.slow),
        pytest.param({"trainer": {"max_epochs": -1, "max_steps": 7}}, (1, 3, 4, 5), marks=pytest.mark.slow),
        pytest.param({"learning_signal": "local"}, (1, 3, 4), marks=pytest.mark.slow),
        pytest.param({"algorithm": "bptt"}, (1, 3, 4, 7), marks=pytest.mark.slow),
    ],
)
def test_resumed_from_any_step(tmp_path, options, steps):
    options = {"epochs": 2, **options}
    straight, trainer = run(tmp_path / "straight", **options)
    for step in steps:
        resumed, again = run(tmp_path / f"{step}", checkpoint=tmp_path / "straight" / f"step={step}.ckpt", **options)
        assert_same(weights(resumed), weights(straight), 1e-6)
        assert again.global_step == trainer.global_step and again.current_epoch == trainer.current_epoch
        rates = [one.optimizers[0].param_groups[0]["lr"] for one in (trainer, again)]
        assert rates[0] == rates[1]


def test_a_resume_at_an_epochs_end_keeps_the_order_of_a_plain_loader(tmp_path):
    """Dropout and shuffling go on from the generators' states, without a loader of ours."""

    def fit(epochs, seed, checkpoint=None):
        torch.manual_seed(0)
        task = make_task()
        torch.manual_seed(seed)
        data = TensorDataset(
            torch.rand(8, 3, 2, 14, 14, generator=torch.Generator().manual_seed(0)).round(),
            torch.full((8,), 3),
            torch.arange(8) % 4,
        )
        saver = ModelCheckpoint(tmp_path, filename=f"{epochs}")
        make_trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[saver]).fit(
            task, DataLoader(data, 2, shuffle=True), ckpt_path=checkpoint
        )
        return weights(task)

    straight = fit(3, 1)
    fit(2, 1)
    assert_same(fit(3, 99, tmp_path / "2.ckpt"), straight, 1e-7)


class Noisy(Dataset):
    """Draws from all generators, in whatever process it is read."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()), np.random.rand(), random.random()])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_goes_on_where_it_was(workers):
    torch.multiprocessing.set_sharing_strategy("file_system")
    loader = ResumableLoader(Noisy(), 3, shuffle=True, num_workers=workers)
    list(loader)
    batches = iter(loader)
    next(batches), next(batches)
    state, rest = loader.state_dict(), list(batches)
    assert state["served"] == 2
    torch.rand(5), np.random.rand(3), random.random()
    again = ResumableLoader(Noisy(), 3, shuffle=True, num_workers=workers)
    again.load_state_dict(state)
    assert torch.equal(torch.stack(list(again)), torch.stack(rest))
    assert again.state_dict()["served"] == 4
    assert len(list(again)) == 4  # the next epoch is whole


def test_the_data_modules_go_on_where_they_were(small_digits):
    """Order and augmentation of the third epoch, from its third batch on, in a data module made anew."""

    def loader():
        data = EventDigitsDataModule(num_samples=80, num_steps=4, batch_size=8, max_shift=2, event_drop=0.3)
        data.setup()
        made = data.train_dataloader()
        made.sampler.set_epoch(2)
        return made

    first = loader()
    batches = iter(first)
    next(batches), next(batches)
    state, rest = first.state_dict(), list(batches)
    again = loader()
    again.load_state_dict(state)
    resumed = list(again)
    assert len(resumed) == len(rest) > 1
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in zip(resumed, rest, strict=True))


def test_the_epoch_reaches_a_sampler_that_lightning_has_wrapped_for_several_processes():
    wrapper = DistributedSamplerWrapper(EpochSampler(12, seed=3), num_replicas=2, rank=1, shuffle=False)
    loader = ResumableLoader(Pairs(), 3, sampler=wrapper)
    wrapper.set_epoch(5)
    alone = EpochSampler(12, seed=3)
    alone.set_epoch(5)
    assert torch.cat([batch for batch in loader]).tolist() == [list(pair) for pair in alone][1::2]


class Pairs(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, key):
        return torch.tensor(key)


def test_a_finished_epoch_is_not_skipped():
    loader = ResumableLoader(Noisy(), 3)
    list(loader)
    again = ResumableLoader(Noisy(), 3)
    again.load_state_dict(loader.state_dict())
    assert len(list(again)) == 4


def test_an_iterator_that_is_not_read_draws_no_random_numbers():
    before = torch.get_rng_state()
    iter(ResumableLoader(Noisy(), 3, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_states_survive_a_file(tmp_path):
    def draw():
        return torch.rand(3), np.random.randn(3), random.gauss(0, 1)

    np.random.randn()  # half of a pair of Gaussian numbers is kept for the next call
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    result = draw()
    assert torch.equal(result[0], expected[0]) and (result[1] == expected[1]).all() and result[2] == expected[2]


def test_states_of_another_number_of_processes_are_left_alone():
    callback, trainer, task = ResumeRandomness(), make_trainer(), make_task()
    state = random_state()
    callback.load_state_dict({"processes": [state, state]})
    torch.rand(1)
    now = torch.get_rng_state()
    callback.on_fit_start(trainer, task)
    assert torch.equal(torch.get_rng_state(), now)
