"""States are reset around validation, sanity check and prediction, for networks of every library."""

from functools import partial

import pytest
import snntorch as snn
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_modules import SpikingMLP
from tests.lightning_modules.helpers import (
    CLASSES,
    SIZE,
    assert_same,
    make_batch,
    make_loader,
    make_task,
    make_trainer,
    weights,
)

PIXELS = 2 * SIZE * SIZE
QUIET = {"num_sanity_val_steps": 0, "limit_val_batches": 0}


def snntorch_network():
    return SpikingMLP(PIXELS, (12,), CLASSES, gain=4.0, readout="leaky")


def norse_network():
    return SpikingMLP(PIXELS, (12,), CLASSES, neuron="norse_lifbox", gain=4.0)


class NorseCarrier(nn.Module):
    """Norse cells in their own container; the module carries the state list and resets it."""

    def __init__(self):
        super().__init__()
        norse = pytest.importorskip("norse.torch")
        self.layers = norse.SequentialState(
            nn.Flatten(), nn.Linear(PIXELS, 12), norse.LIFCell(), nn.Linear(12, CLASSES), norse.LICell()
        )
        nn.init.normal_(self.layers[1].weight, std=2.0)
        self.state = None

    def reset_states(self):
        self.state = None

    def forward(self, frame):
        output, self.state = self.layers(frame, self.state)
        return output


def spikingjelly_network():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 12), neuron.LIFNode(detach_reset=True), nn.Linear(12, CLASSES)
    )
    nn.init.normal_(network[1].weight, std=0.3)
    return network


NETWORKS = [snntorch_network, norse_network, NorseCarrier, spikingjelly_network]


def fit(make, loop, **trainer_options):
    torch.manual_seed(0)
    task = make_task(make(), loop=loop, algorithm="stllr", rule={"preset": "dvs_gesture", "psi": "triangle"})
    trainer = make_trainer(**{"max_epochs": 2, **trainer_options})
    trainer.fit(task, make_loader(), make_loader(samples=3, seed=3, lengths=[6, 4, 2]))  # another batch size
    return task, trainer


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_validation_and_sanity_check_leave_training_as_it_is(make, loop):
    """The same weights whether nobody looks, or a sanity check and a validation after every batch come between."""
    alone, _ = fit(make, loop, **QUIET)
    watched, _ = fit(make, loop, num_sanity_val_steps=2, val_check_interval=1)
    assert_same(weights(alone), weights(watched), 1e-7)
    assert any((weights(alone)[name] != w).any() for name, w in weights(make_started(make)).items())


def make_started(make):
    torch.manual_seed(0)
    return make_task(make())


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_validation_begins_at_rest(make):
    """The validation loss is the same before training, between its batches, in validate() and in test()."""
    torch.manual_seed(0)
    task = make_task(make(), optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer = make_trainer(val_check_interval=1)
    loader = make_loader(seed=3)
    (before,) = trainer.validate(task, loader, verbose=False)
    trainer.fit(task, make_loader(), loader)
    during = float(trainer.callback_metrics["val_loss"])
    (after,) = trainer.test(task, loader, verbose=False)
    losses = [before["val_loss"], during, after["test_loss"]]
    assert losses == pytest.approx([losses[0]] * 3)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_predictions_do_not_depend_on_batches_or_on_what_ran_before(make):
    task = make_started(make)
    data = torch.utils.data.TensorDataset(*make_batch())
    one, four = (torch.utils.data.DataLoader(data, size) for size in (1, 4))
    by_four = torch.cat(make_trainer().predict(task, four))
    make_trainer().validate(task, make_loader(seed=3), verbose=False)
    by_one = torch.cat(make_trainer().predict(task, one))
    torch.testing.assert_close(by_four, by_one)
    assert by_four.std(0).max() > 0  # not all the same


@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_states_are_reset_once_per_batch(loop):
    """At its start; and once more when the trainer is done."""

    class Counted(NorseCarrier):
        resets = 0

        def reset_states(self):
            self.resets += 1
            super().reset_states()

    task, _ = fit(Counted, loop, max_epochs=3, num_sanity_val_steps=0)
    assert task.network.resets == 3 * (2 + 1) + 1  # two training batches and one for validation
    assert task.network.state is None


@pytest.mark.parametrize("algorithm", ["stllr", "bptt"])
def test_no_graph_stays_behind_a_batch(algorithm):
    task = make_task(algorithm=algorithm)

    class Look(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            states = [buffer for buffer in task.network.buffers() if buffer.is_floating_point()]
            assert not any(state.requires_grad for state in states)

    make_trainer(callbacks=[Look()]).fit(task, make_loader())


@pytest.mark.parametrize(
    "options", [{}, {"algorithm": "bptt"}, {"exclude": ["features.lif2"], "supervise_last": 1}], ids=str
)
def test_a_training_batch_resets_each_neuron_once(options, monkeypatch):
    """Where a learner begins a sequence it resets its own neurons, and the task the others."""
    network = SpikingMLP(PIXELS, (12, 8), CLASSES, gain=4.0, readout="leaky")
    task, resets = make_task(network, **options), []

    class Watch(Callback):
        def on_train_batch_start(self, *_):
            resets.append([])

    reset_mem = snn.Leaky.reset_mem

    def counted(neuron):
        if resets:
            resets[-1].append(id(neuron))
        return reset_mem(neuron)

    monkeypatch.setattr(snn.Leaky, "reset_mem", counted)
    trainer = make_trainer(callbacks=[Watch()], max_steps=2, **QUIET)
    trainer.fit(task, make_loader())
    neurons = sorted(id(module) for module in network.modules() if isinstance(module, snn.Leaky))
    assert len(neurons) == 3 and sorted(resets[0]) == neurons
