"""Firing rates with advice, peak memory, throughput, history."""

import copy
import re

import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_modules import FiringRates, History, PeakMemory, Throughput
from lightning_modules.tasks.states import reset_states
from tests.lightning_modules.helpers import SIZE, make_loader, make_network, make_task, make_trainer


def fit(task, *callbacks, **options):
    trainer = make_trainer(callbacks=list(callbacks), **options)
    trainer.fit(task, make_loader(lengths=[6, 3] * 4), make_loader())
    return trainer.callback_metrics


def test_rates_are_logged_for_each_layer_and_phase():
    metrics = fit(make_task())
    for phase in ("train", "val"):
        for layer in ("features.lif1", "features.lif2"):
            assert 0 < float(metrics[f"{phase}_rate/{layer}"]) < 1
    assert float(metrics["samples_per_second"]) > 0
    assert float(metrics["peak_memory_mb"]) >= 0


def test_rates_leave_padding_out():
    callback = FiringRates()
    callback.record("train", "lif", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([True, True]))
    callback.record("train", "lif", torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([True, False]))
    assert callback.rates("train") == {"lif": pytest.approx((0.5 + 1.0 + 0.0) / 3)}
    assert callback.rates("val") == {}


@pytest.mark.parametrize(
    ("options", "words"), [({"threshold": 1e4}, "nearly silent.*gain"), ({"threshold": -1e4}, "saturated.*threshold")]
)
def test_useless_layers_get_one_warning_with_advice(options, words, recwarn):
    task = make_task(make_network(**options), algorithm="bptt")
    fit(task, max_epochs=2)
    warnings = [str(w.message) for w in recwarn if "features.lif1" in str(w.message)]
    assert len(warnings) == 1
    assert re.search(words, warnings[0])


def test_own_settings_replace_the_default_ones():
    own = FiringRates(dead=0.9999, skip=("*lif2",))
    task = make_task()
    trainer = make_trainer(callbacks=[own])
    with pytest.warns(UserWarning, match="nearly silent"):
        trainer.fit(task, make_loader())
    assert [type(c) for c in trainer.callbacks].count(FiringRates) == 1
    assert "train_rate/features.lif1" in trainer.callback_metrics
    assert "train_rate/features.lif2" not in trainer.callback_metrics


def test_hooks_are_removed_and_copies_are_silent():
    task = make_task()
    callback = FiringRates()
    trainer = make_trainer()
    task.trainer = trainer
    callback.setup(trainer, task, "fit")
    clone = copy.deepcopy(task.network)
    hook = next(iter(clone.features.lif1._forward_hooks.values()))
    assert hook.callback is None
    clone(torch.ones(1, 2, SIZE, SIZE))
    assert callback.rates("train") == {}
    callback.teardown(trainer, task, "fit")
    assert not task.network.features.lif1._forward_hooks


def test_history_keeps_every_epoch():
    history = History()
    fit(make_task(), history, max_epochs=3)
    assert len(history["train_loss"]) == len(history["val_accuracy"]) == 3
    assert history["nothing"] == []


def test_callbacks_serve_other_modules_too():
    """Not only this package's tasks: any LightningModule that has spiking layers."""

    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_network()

        def training_step(self, batch, batch_idx):
            reset_states(self.net)
            return self.net(batch[0][:, 0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = make_trainer(callbacks=[FiringRates(), PeakMemory(), Throughput()])
    trainer.fit(Plain(), make_loader())
    assert "train_rate/net.features.lif1" in trainer.callback_metrics
