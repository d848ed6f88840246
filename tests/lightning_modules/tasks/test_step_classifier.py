"""SpikingStepClassifier: labelled steps alone count, all algorithms and learning signals, updates within a sequence."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import SpikingMLP, SpikingStepClassifier, TimescaleSNN
from lightning_modules.tasks.states import reset_states
from stllr_plugin import STLLRLearner
from tests.lightning_modules.helpers import SGD, assert_same, make_trainer, weights

STEPS, CHANNELS, CLASSES = 8, 5, 3


def make_batch(samples=6, lengths=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.rand(samples, STEPS, CHANNELS, generator=generator) < 0.4).float()
    labels = torch.randint(-1, CLASSES, (samples, STEPS), generator=generator)
    labels[:, 2] = -1  # a step that nobody labelled
    return frames, torch.full((samples,), STEPS) if lengths is None else torch.as_tensor(lengths), labels


def make_network(seed=0, recurrent=True):
    torch.manual_seed(seed)
    return TimescaleSNN(CHANNELS, 12, (0.5, 0.9), CLASSES, recurrent=recurrent)


def trained(batch=None, network=None, **options):
    task = SpikingStepClassifier(network or make_network(), CLASSES, **{"optimizer": SGD, **options})
    loader = DataLoader(TensorDataset(*(batch or make_batch())), 6)
    trainer = make_trainer()
    trainer.fit(task, loader)
    return task, trainer


def by_hand(signal=None, **options):
    frames, _, labels = make_batch()
    network = make_network()
    learner = STLLRLearner(
        network, SGD(network.parameters()), rule="dvs_gesture", learning_signal=signal, feedback_seed=0, **options
    )
    count = (labels >= 0).sum()
    for t in range(STEPS):
        known = labels[:, t] >= 0
        if signal is not None and known.any():
            learner.set_target(labels[:, t].clamp(min=0), known * 6 / count)
        logits = network(frames[:, t])
        if known.any():
            (F.cross_entropy(logits[known], labels[known, t], reduction="sum") / count).backward()
    learner.step()
    learner.detach()
    return weights(network)


def test_the_rule_by_hand():
    task, _ = trained(rule="dvs_gesture")
    assert_same(weights(task.network), by_hand(), 1e-6)


@pytest.mark.parametrize("signal", ["drtp", "local", "local_random", "tess"])
def test_signals_from_the_target_get_the_one_of_each_step(signal):
    task, _ = trained(rule="dvs_gesture", learning_signal=signal)
    assert_same(weights(task.network), by_hand(signal), 1e-6)


def test_bptt_by_hand():
    frames, _, labels = make_batch()
    network = make_network()
    logits = torch.stack([network(frames[:, t]) for t in range(STEPS)], 1)
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1).backward()
    SGD(network.parameters()).step()
    task, trainer = trained(algorithm="bptt")
    assert_same(weights(task.network), weights(network), 1e-6)


@pytest.mark.parametrize("algorithm", ["stllr", "ottt", "sltt", "tess"])
def test_both_loops_train_alike(algorithm):
    online, _ = trained(algorithm=algorithm)
    automatic, _ = trained(algorithm=algorithm, loop="automatic")
    assert_same(weights(online), weights(automatic), 1e-6)


@pytest.mark.parametrize("algorithm", ["stllr", "ottt", "sltt", "tess", "bptt"])
def test_updates_within_the_sequence(algorithm):
    before = weights(make_network())
    task, trainer = trained(algorithm=algorithm, update_every=3)
    assert trainer.global_step == 3
    assert all((weights(task.network)[name] != before[name]).any() for name in before)
    whole, _ = trained(algorithm=algorithm)
    assert any(not torch.equal(weights(whole)[name], weights(task)[name]) for name in weights(task))


@pytest.mark.parametrize("signal", ["bp", "dfa", "sign_dfa", "drtp", "local", "local_random", "tess"])
def test_every_learning_signal_trains_within_the_sequence(signal):
    before = weights(make_network())
    task, _ = trained(learning_signal=signal, update_every=2)
    after = weights(task.network)
    assert all((after[name] != before[name]).any() for name in before if name.endswith("weight"))


@pytest.mark.parametrize("algorithm", ["stllr", "tess", "bptt"])
def test_unlabelled_steps_and_padding_are_inert(algorithm):
    frames, lengths, labels = make_batch(lengths=[8, 3, 5, 8, 1, 6])
    noisy_frames, noisy_labels = frames.clone(), labels.clone()
    for sample, length in enumerate(lengths):
        noisy_frames[sample, length:] = 1.0
        noisy_labels[sample, length:] = 1
    results = [
        trained((x, lengths, y), algorithm=algorithm, update_every=4)
        for x, y in ((frames, labels), (noisy_frames, noisy_labels))
    ]
    assert_same(weights(results[0][0]), weights(results[1][0]), 1e-6)
    for name in ("train_loss", "train_accuracy"):
        first, second = (float(trainer.callback_metrics[name]) for _, trainer in results)
        assert first == pytest.approx(second)


@pytest.mark.parametrize("options", [{"skip_first": 4}, {"supervise_last": 4}])
def test_steps_that_do_not_count(options):
    frames, lengths, labels = make_batch()
    fewer = labels.clone()
    fewer[:, :4] = -1
    expected, expected_trainer = trained((frames, lengths, fewer))
    task, trainer = trained((frames, lengths, labels), **options)
    assert_same(weights(task.network), weights(expected.network), 1e-6)
    for name in ("train_loss", "train_accuracy"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(expected_trainer.callback_metrics[name]))


def test_accuracy_is_over_all_labelled_steps():
    """Batches with few labels weigh less."""
    frames, lengths, labels = make_batch(samples=8)
    labels[:4, 1:] = -1
    task = SpikingStepClassifier(make_network(), CLASSES)
    trainer = make_trainer()
    loader = DataLoader(TensorDataset(frames, lengths, labels), 4)
    trainer.test(task, loader, verbose=False)
    with torch.no_grad():
        logits = task.eval()(frames)
    known = labels >= 0
    assert logits.shape == (8, STEPS, CLASSES)
    expected = (logits.argmax(2) == labels)[known].float().mean()
    assert float(trainer.callback_metrics["test_accuracy"]) == pytest.approx(float(expected))
    loss = F.cross_entropy(logits[known], labels[known])
    assert float(trainer.callback_metrics["test_loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_predictions_are_those_of_single_steps():
    frames, lengths, _ = make_batch()
    network = make_network().eval()
    task = SpikingStepClassifier(network, CLASSES)
    (predicted,) = make_trainer().predict(task, DataLoader(TensorDataset(frames, lengths), 6))
    reset_states(network)
    with torch.no_grad():
        expected = torch.stack([network(frames[:, t]).softmax(1) for t in range(STEPS)], 1)
    torch.testing.assert_close(predicted, expected)


def test_a_batch_without_labels_says_so():
    frames, lengths, labels = make_batch()
    with pytest.raises(ValueError, match="no label at any step that counts"):
        trained((frames, lengths, torch.full_like(labels, -1)))


def test_arguments_are_checked_and_saved():
    with pytest.raises(ValueError, match="skip_first"):
        SpikingStepClassifier(make_network(), CLASSES, skip_first=-1)
    task = SpikingStepClassifier(make_network(), CLASSES, skip_first=2, update_every=3)
    assert task.hparams["skip_first"] == 2 and task.hparams["update_every"] == 3


def test_networks_without_recurrence_train_too():
    for network in (make_network(recurrent=False), SpikingMLP(CHANNELS, (12,), CLASSES, readout="leaky")):
        before = weights(network)
        task, _ = trained(network=network, update_every=4)
        assert any((weights(task.network)[name] != before[name]).any() for name in before)
    with pytest.raises(ValueError, match="2 neurons cannot make 3 populations"):
        TimescaleSNN(hidden=2)
