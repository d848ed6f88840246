"""window=K: several time steps at once, with the weights of one step after the other."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_modules.callbacks import FiringRates, SequencePictures
from tests.lightning_modules.helpers import assert_same, make_loader, make_task, make_trainer, weights
from tests.lightning_modules.tasks.test_step_classifier import trained as trained_on_steps

LENGTHS = [6, 2, 5, 6, 3, 4, 6, 6]


def trained(callbacks=(), trainer=None, lengths=None, **options):
    task = make_task(algorithm="stllr", **options)
    runner = make_trainer(callbacks=list(callbacks), **(trainer or {}))
    runner.fit(task, make_loader(16, batch_size=8, lengths=lengths and 2 * lengths))
    return task, runner


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"supervise_last": 2},
        {"supervise_last": 2, "lengths": LENGTHS, "predict_over": "all"},
        {"update_every": 4, "lengths": LENGTHS},
        {"update_every": 4, "lengths": LENGTHS, "supervise_last": 2},
        {"gradient_clip": 0.1, "trainer": {"accumulate_grad_batches": 2}},
        {"rule": {"preset": "ottt"}, "loop": "online"},
    ],
    ids=["all", "last", "lengths", "updates within", "last and updates within", "accumulated", "ottt"],
)
def test_the_same_weights_and_metrics(options, window):
    one, first = trained(**options)
    other, second = trained(window=window, **options)
    assert_same(weights(one.network), weights(other.network), 1e-5)
    assert first.global_step == second.global_step
    for name, value in first.callback_metrics.items():
        if name in ("peak_memory_mb", "samples_per_second"):
            continue
        torch.testing.assert_close(
            second.callback_metrics[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("options", [{}, {"update_every": 3}], ids=["whole", "updates within"])
def test_labels_at_every_step(options):
    one = trained_on_steps(algorithm="stllr", **options)
    other = trained_on_steps(algorithm="stllr", window=4, **options)
    one, other = (task[0] if isinstance(task, tuple) else task for task in (one, other))
    assert_same(weights(one), weights(other), 1e-5)


def test_bptt_and_other_signals_train_as_without():
    for options in ({"algorithm": "bptt"}, {"learning_signal": "dfa", "output": "readout"}):
        tasks = []
        for window in (None, 4):
            task = make_task(window=window, **options)
            make_trainer().fit(task, make_loader())
            tasks.append(weights(task.network))
        assert_same(*tasks, 0.0)


def test_firing_rates_do_not_count_padding():
    rates = []
    for window in (None, 4):
        callback = FiringRates()
        _, trainer = trained([callback], lengths=LENGTHS, window=window)
        rates.append({name: value for name, value in trainer.callback_metrics.items() if "rate" in name})
    assert rates[0] and rates[0].keys() == rates[1].keys()
    for name, value in rates[0].items():
        torch.testing.assert_close(rates[1][name], value, rtol=1e-5, atol=1e-6)


def test_pictures_show_single_steps(tmp_path):
    class Look(SequencePictures):
        def _draw(self, title):
            seen.append(max(len(kept) for kept in self._spikes.values()))
            return super()._draw(title)

    seen = []
    task, _ = trained([Look()], {"logger": CSVLogger(tmp_path)}, window=4)
    assert seen == [6] and not task.watched


@pytest.mark.parametrize(
    ("options", "says"), [({"window": 0}, "at least one"), ({"window": 3, "loop": "automatic"}, 'loop="online"')]
)
def test_settings_that_do_not_fit(options, says):
    with pytest.raises(ValueError, match=says):
        make_task(**options)
