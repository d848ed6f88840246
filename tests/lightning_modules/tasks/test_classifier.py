"""SpikingClassifier: gradients, lengths, states, the learner's life, checkpoints."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.nn import functional as F

from lightning_modules import SpikingClassifier
from lightning_modules.tasks.states import reset_states
from stllr_plugin import STLLRLearner, STLLRRule
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

LOCAL = ("stllr", "ottt", "sltt", "tess")
DIRECT = ("dfa", "sign_dfa", "drtp", "local", "local_random", "tess")


def trained(loader=None, trainer_options=None, network=None, **options):
    task = make_task(network, **options)
    trainer = make_trainer(**(trainer_options or {}))
    trainer.fit(task, make_loader() if loader is None else loader)
    return task, trainer


# Gradients.


@pytest.mark.parametrize("algorithm", LOCAL)
@pytest.mark.parametrize("supervise_last", [None, 2])
def test_online_and_automatic_loop_train_alike(algorithm, supervise_last):
    options = {"algorithm": algorithm, "supervise_last": supervise_last, "gradient_clip": 0.5}
    online, _ = trained(loop="online", **options)
    automatic, _ = trained(loop="automatic", **options)
    assert_same(weights(online), weights(automatic), 1e-6)
    assert any((weights(online)[name] != weight).any() for name, weight in weights(make_task()).items())


def test_online_step_equals_the_learner_by_hand():
    frames, lengths, labels = make_batch()
    network = make_network()
    learner = STLLRLearner(network, SGD(network.parameters()), rule="dvs_gesture", supervise_last=3, num_steps=6)
    for t in range(6):
        logits = network(frames[:, t])
        if t >= 3:
            (F.cross_entropy(logits, labels) / 3).backward()
    learner.step()
    learner.detach()
    task, _ = trained(make_loader(batch_size=8), algorithm="stllr", supervise_last=3)
    assert_same(weights(task.network), weights(network), 1e-6)


def test_bptt_equals_plain_autograd():
    frames, _, labels = make_batch()
    network = make_network()
    optimizer = SGD(network.parameters())
    sum(F.cross_entropy(network(frames[:, t]), labels) for t in range(6)).div(6).backward()
    optimizer.step()
    task, _ = trained(make_loader(batch_size=8), algorithm="bptt")
    assert_same(weights(task.network), weights(network), 1e-6)


def test_the_tet_loss_by_hand():
    frames, lengths, labels = make_batch()
    network = make_network()
    learner = STLLRLearner(network, SGD(network.parameters()), rule="dvs_gesture", supervise_last=3, num_steps=6)
    total = 0.0
    for t in range(6):
        logits = network(frames[:, t])
        if t >= 3:
            loss = (
                0.7 * F.cross_entropy(logits, labels) + 0.3 * F.mse_loss(logits, torch.tensor(0.5).expand(8, 4))
            ) / 3
            loss.backward()
            total += loss.item()
    learner.step()
    learner.detach()
    options = {"loss": "tet", "tet_phi": 0.5, "tet_lamb": 0.3}
    task, trainer = trained(make_loader(batch_size=8), algorithm="stllr", supervise_last=3, **options)
    assert_same(weights(task.network), weights(network), 1e-6)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(total, rel=1e-5)
    assert {name: task.hparams[name] for name in options} == options


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss='mse' is not known"):
        make_task(loss="mse")


def test_algorithms_differ():
    results = [weights(trained(algorithm=algorithm)[0]) for algorithm in (*LOCAL, "bptt")]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert any(not torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("signal", DIRECT)
def test_signals_that_reach_hidden_layers_directly_train_them(signal):
    before = weights(make_task().network)
    task, _ = trained(learning_signal=signal)
    after = weights(task.network)
    assert all((after[name] != before[name]).any() for name in before if name.endswith(("original", "weight")))


@pytest.mark.parametrize("signal", DIRECT)
def test_both_loops_train_alike_with_every_signal(signal):
    online, _ = trained(loop="online", learning_signal=signal, supervise_last=2)
    automatic, _ = trained(loop="automatic", learning_signal=signal, supervise_last=2)
    assert_same(weights(online), weights(automatic), 1e-6)


def test_signals_made_from_the_target_weigh_steps_as_the_loss_does():
    """The signal of hidden layers has the weight that a step has in the loss, as in a loop by hand."""
    task, _ = trained(make_loader(batch_size=8), learning_signal="local_random", supervise_last=3)
    assert task.learner is None  # detached after the fit
    frames, lengths, labels = make_batch()
    network = make_network()
    optimizer = SGD(network.parameters())
    learner = STLLRLearner(
        network, optimizer, rule="dvs_gesture", supervise_last=3, learning_signal="local_random", feedback_seed=0
    )
    learner.reset(num_steps=6)
    learner.set_target(labels, scale=1 / 3)
    for t in range(6):
        logits = network(frames[:, t])
        if t >= 3:
            (F.cross_entropy(logits, labels) / 3).backward()
    learner.step()
    learner.detach()
    assert_same(weights(task.network), weights(network), 1e-6)


@pytest.mark.parametrize("loop", ["online", "automatic"])
@pytest.mark.parametrize("algorithm", ["stllr", "tess", "bptt"])
def test_padding_is_inert(algorithm, loop):
    """Garbage after a sample's end changes nothing, whatever the lengths of the others."""
    lengths = [6, 2, 4, 3, 1, 6, 5, 2]
    frames, lengths, labels = make_batch(lengths=lengths)
    noisy = frames.clone()
    for sample, length in enumerate(lengths):
        noisy[sample, length:] = 1.0
    results = []
    for data in (frames, noisy):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, lengths, labels), 8)
        task, trainer = trained(loader, algorithm=algorithm, loop=loop, supervise_last=2)
        results.append((weights(task), float(trainer.callback_metrics["train_loss"])))
    assert_same(results[0][0], results[1][0], 1e-6)
    assert results[0][1] == pytest.approx(results[1][1])


def test_a_padded_sample_counts_as_it_would_alone():
    frames, _, labels = make_batch(samples=2)
    task = make_task(supervise_last=2).eval()
    with torch.no_grad():
        together = task(frames, torch.tensor([6, 3]))
        alone = torch.cat((task(frames[:1]), task(frames[1:, :3])))
    torch.testing.assert_close(together, alone)


def test_gradient_accumulation_in_the_automatic_loop():
    whole, _ = trained(make_loader(batch_size=8), algorithm="stllr", loop="automatic")
    parts, trainer = trained(
        make_loader(batch_size=4), {"accumulate_grad_batches": 2}, algorithm="stllr", loop="automatic"
    )
    assert trainer.global_step == 1
    assert_same(weights(whole), weights(parts), 1e-6)


# Prediction.


def test_prediction_reads_the_supervised_steps():
    frames, lengths, _ = make_batch()
    logits = {}
    for over in ("supervised", "all", "last"):
        task = make_task(predict_over=over, supervise_last=2).eval()
        logits[over] = task(frames, lengths).detach()
    network = make_network().eval()
    steps = torch.stack([network(frames[:, t]) for t in range(6)]).detach()
    torch.testing.assert_close(logits["supervised"], steps[-2:].mean(0))
    torch.testing.assert_close(logits["all"], steps.mean(0))
    torch.testing.assert_close(logits["last"], steps[-1])


def test_predict_gives_probabilities_and_takes_batches_without_labels():
    task = make_task()
    frames, lengths, _ = make_batch()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(frames, lengths), 4)
    predictions = torch.cat(make_trainer().predict(task, loader))
    assert predictions.shape == (8, CLASSES)
    torch.testing.assert_close(predictions.sum(1), torch.ones(8))


# States.


def test_batches_do_not_know_of_each_other():
    """The same batch gives the same loss first and last, with the sanity check before and validation between."""
    losses = {}
    for sanity in (0, 2):
        task = make_task(optimizer=partial(torch.optim.SGD, lr=0.0))
        trainer = make_trainer(num_sanity_val_steps=sanity, max_epochs=2)
        trainer.fit(task, make_loader(), make_loader(seed=3))
        losses[sanity] = [float(trainer.callback_metrics[f"{phase}_loss"]) for phase in ("train", "val")]
        trainer.test(task, make_loader(seed=3), verbose=False)
        assert float(trainer.callback_metrics["test_loss"]) == pytest.approx(losses[sanity][1])
    assert losses[0] == pytest.approx(losses[2])


def test_smaller_last_batch():
    _, trainer = trained(make_loader(samples=7, batch_size=4))
    assert trainer.global_step == 2


@pytest.mark.parametrize("algorithm", ["stllr", "bptt"])
def test_nothing_of_the_graph_is_left(algorithm):
    task, _ = trained(algorithm=algorithm)
    assert all(not buffer.requires_grad for buffer in task.network.buffers())
    copy.deepcopy(task.network)  # refused by torch as long as a state holds a graph


# The learner's life.


class Spy(Callback):
    def on_train_batch_end(self, trainer, task, *args):
        self.optimizer, self.learner, self.attached = trainer.optimizers[0], task.learner, task.learner.attached


def test_the_learner_is_the_optimizer_and_is_gone_afterwards():
    network, spy = make_network(), Spy()
    keys = list(network.state_dict())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    task, trainer = trained(trainer_options={"callbacks": [spy]}, network=network)
    assert isinstance(spy.optimizer, STLLRLearner) and spy.optimizer is spy.learner and spy.attached
    assert trainer.global_step == 2
    assert task.learner is None and not spy.learner.attached
    assert list(network.state_dict()) == keys
    left = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    assert left == hooks == 0


def test_fit_again_after_an_exception():
    class Stop(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("stop here")

    task = make_task()
    with pytest.raises(RuntimeError, match="stop here"):
        make_trainer(callbacks=[Stop()]).fit(task, make_loader())
    make_trainer().fit(task, make_loader())
    assert task.learner is None


def test_bptt_has_no_learner():
    task, trainer = trained(algorithm="bptt", loop="online")
    assert task.automatic_optimization and type(trainer.optimizers[0]) is torch.optim.SGD


def test_the_report_is_logged_once(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trained(trainer_options={"max_epochs": 2})
    reports = [record.message for record in caplog.records if "features.conv1->features.lif1" in record.message]
    assert len(reports) == 1


# Optimiser settings.


@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_gradient_clipping(loop):
    class Norm(Callback):
        def on_before_zero_grad(self, trainer, task, optimizer):
            grads = [p.grad for p in task.parameters() if p.grad is not None]
            if grads:
                norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

        def on_train_batch_end(self, trainer, task, *args):
            self.on_before_zero_grad(trainer, task, None)

    norms = []
    trained(trainer_options={"callbacks": [Norm()]}, loop=loop, gradient_clip=0.01)
    assert norms and max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("loop", ["online", "automatic"])
@pytest.mark.parametrize(("interval", "expected"), [("epoch", 0.3 * 0.5**2), ("step", 0.3 * 0.5**4)])
def test_learning_rate_schedule(loop, interval, expected):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    _, trainer = trained(trainer_options={"max_epochs": 2}, loop=loop, lr_scheduler=schedule, lr_interval=interval)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_reduce_on_plateau(loop):
    schedule = partial(
        ReduceLROnPlateau, monitor="train_loss", patience=0, threshold=1e9, threshold_mode="abs", factor=0.1
    )
    _, trainer = trained(trainer_options={"max_epochs": 3}, loop=loop, lr_scheduler=schedule)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.3


@pytest.mark.parametrize("loop", ["online", "automatic"])
def test_bfloat16_autocast(loop):
    task, trainer = trained(trainer_options={"precision": "bf16-mixed"}, loop=loop)
    assert all(weight.isfinite().all() and weight.dtype == torch.float32 for weight in weights(task).values())
    assert torch.tensor(float(trainer.callback_metrics["train_loss"])).isfinite()


# Checkpoints.


@pytest.mark.parametrize("algorithm", ["stllr", "bptt"])
def test_resume_equals_one_go(tmp_path, algorithm):
    adam = partial(torch.optim.Adam, lr=0.01)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    options = {"algorithm": algorithm, "optimizer": adam, "lr_scheduler": schedule}
    straight, _ = trained(trainer_options={"max_epochs": 3}, **options)

    keep = ModelCheckpoint(tmp_path, save_last=True)
    trained(trainer_options={"max_epochs": 2, "enable_checkpointing": True, "callbacks": [keep]}, **options)
    resumed = make_task(make_network(seed=5), **options)
    make_trainer(max_epochs=3).fit(resumed, make_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert_same(weights(resumed), weights(straight), 1e-6)


def test_best_checkpoint_is_found_and_loads(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max", filename="best")
    task = make_task(rule={"preset": "shd", "alpha_post": 0.5}, supervise_last=2)
    trainer = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[best])
    trainer.fit(task, make_loader(), make_loader())
    assert best.best_model_path
    trainer.test(task, make_loader(), ckpt_path="best", weights_only=True, verbose=False)
    loaded = SpikingClassifier.load_from_checkpoint(
        best.best_model_path, network=make_network(seed=9), weights_only=True
    )
    assert loaded.rule == STLLRRule.preset("shd", alpha_post=0.5) and loaded.supervise_last == 2


def test_rule_objects_are_saved_as_plain_data():
    task = make_task(rule=STLLRRule(alpha_post=0.3))
    assert SpikingClassifier(make_network(), **task.hparams).rule == STLLRRule(alpha_post=0.3)
    assert "optimizer" not in task.hparams


def test_call_leaves_no_state():
    task = make_task().eval()
    frames, lengths, _ = make_batch()
    once = task(frames, lengths)
    torch.testing.assert_close(task(frames), once)
    before = [buffer.clone() for buffer in task.network.buffers()]
    reset_states(task.network)
    assert all(torch.equal(a, b) for a, b in zip(before, task.network.buffers(), strict=True))
