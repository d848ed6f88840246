"""update_every: updates within a sequence, with states and traces kept; truncated BPTT with the same windows."""

import pytest
import torch
from torch.nn import functional as F

from lightning_modules import SpikingMLP
from stllr_plugin import STLLRLearner
from tests.lightning_modules.helpers import (
    CLASSES,
    SGD,
    assert_same,
    make_batch,
    make_loader,
    make_network,
    make_task,
    make_trainer,
    weights,
)


def trained(network=None, samples=8, lengths=None, **options):
    task = make_task(network, **options)
    trainer = make_trainer()
    trainer.fit(task, make_loader(samples, batch_size=8, lengths=lengths))
    return task, trainer


def test_the_rule_by_hand():
    frames, _, labels = make_batch()
    network = make_network()
    learner = STLLRLearner(network, SGD(network.parameters()), rule="dvs_gesture", reset_after_step=False)
    learner.reset()
    for t in range(6):
        (F.cross_entropy(network(frames[:, t]), labels) / 6).backward()
        if t in (3, 5):
            learner.step()
            learner.zero_grad()
    learner.detach()
    task, trainer = trained(algorithm="stllr", update_every=4)
    assert_same(weights(task.network), weights(network), 1e-6)
    assert trainer.global_step == 2


def test_truncated_bptt_by_hand():
    frames, _, labels = make_batch()
    network = make_network()
    optimizer = SGD(network.parameters())
    states = [network.features.lif1, network.features.lif2]
    for window in (range(0, 4), range(4, 6)):
        sum(F.cross_entropy(network(frames[:, t]), labels) / 6 for t in window).backward()
        optimizer.step()
        optimizer.zero_grad()
        for neuron in states:
            neuron.mem = neuron.mem.detach()
    task, trainer = trained(algorithm="bptt", update_every=4)
    assert_same(weights(task.network), weights(network), 1e-6)
    assert trainer.global_step == 2


@pytest.mark.parametrize("algorithm", ["stllr", "ottt", "sltt", "bptt"])
def test_one_window_is_one_update_per_batch(algorithm):
    whole, _ = trained(algorithm=algorithm)
    window, trainer = trained(algorithm=algorithm, update_every=6)
    assert_same(weights(whole), weights(window), 1e-6)
    assert trainer.global_step == 1


@pytest.mark.parametrize("algorithm", ["stllr", "tess", "bptt"])
def test_windows_without_a_loss_update_nothing(algorithm):
    _, trainer = trained(algorithm=algorithm, update_every=2, supervise_last=1)
    assert trainer.global_step == 1
    _, trainer = trained(algorithm=algorithm, update_every=2, supervise_last=1, lengths=[6, 2] * 4)
    assert trainer.global_step == 2  # in the first and the third window of three


def test_norse_states_are_cut_between_windows():
    network = SpikingMLP(2 * 14 * 14, (12,), CLASSES, neuron="norse_lifbox", gain=4.0)
    before = weights(network)
    task, trainer = trained(network, algorithm="bptt", update_every=1)  # torch refuses to go back through a freed graph
    assert trainer.global_step == 6
    assert all((weights(task.network)[name] != before[name]).any() for name in before)


def test_memory_of_bptt_is_that_of_a_window():
    task = make_task(algorithm="bptt", update_every=2)
    kept = []
    forward = task.network.forward

    def count(frame):
        output = forward(frame)
        depth, node, seen = 0, [output.grad_fn], set()
        while node:
            one = node.pop()
            if one is not None and one not in seen:
                seen.add(one)
                depth += 1
                node += [following for following, _ in one.next_functions]
        kept.append(depth)
        return output

    task.network.forward = count
    make_trainer().fit(task, make_loader(batch_size=8))
    assert kept[0] == kept[2] == kept[4] and kept[1] == kept[3] == kept[5] > kept[0]


def test_the_schedule_can_follow_every_update():
    schedule = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), "lr_interval": "step"}
    for algorithm in ("stllr", "bptt"):
        _, trainer = trained(algorithm=algorithm, update_every=2, **schedule)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 / 8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="update_every=0"):
        make_task(update_every=0)
    with pytest.raises(ValueError, match='update_every needs loop="online"'):
        make_task(update_every=2, loop="automatic")
