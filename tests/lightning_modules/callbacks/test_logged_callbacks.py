"""Norms, pictures and the attachment report, with every logger; and Lightning's own callbacks in both loops."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_modules import SpikingMLP
from lightning_modules.callbacks import AttachmentReport, EdgeNorms, SequencePictures
from lightning_modules.callbacks.norms import gradient_norms, trace_norms
from stllr_plugin import STLLRLearner
from tests.lightning_modules.helpers import (
    CLASSES,
    SIZE,
    make_batch,
    make_loader,
    make_network,
    make_task,
    make_trainer,
)

LOOPS = ("online", "automatic")
EDGES = ("features.conv1->features.lif1", "features.conv2->features.lif2")


def fit(task, *callbacks, loader=None, **options):
    trainer = make_trainer(callbacks=list(callbacks), **options)
    trainer.fit(task, make_loader() if loader is None else loader, make_loader())
    return trainer


def rows(logger):
    logger.save()
    with open(logger.experiment.metrics_file_path) as file:
        return list(csv.DictReader(file))


# Norms.


def test_norms_by_hand():
    frames, _, labels = make_batch()
    network = make_network()
    learner = STLLRLearner(network, torch.optim.SGD(network.parameters(), lr=0.1), rule="dvs_gesture")
    for t in range(3):
        torch.nn.functional.cross_entropy(network(frames[:, t]), labels).backward()
    norms = gradient_norms(network, learner)
    conv = [p.grad for p in network.features.conv1.parameters()]
    expected = torch.cat([g.flatten() for g in conv]).norm()
    torch.testing.assert_close(norms[f"grad_norm/{EDGES[0]}"], expected)
    readout = torch.cat([p.grad.flatten() for p in network.readout.parameters()]).norm()
    torch.testing.assert_close(norms["grad_norm/readout"], readout)
    assert set(norms) == {f"grad_norm/{name}" for name in (*EDGES, "readout")}
    traces = trace_norms(learner)
    post = learner.traces()[EDGES[1]]["post"]
    torch.testing.assert_close(traces[f"trace_norm/{EDGES[1]}/post"], sum(one.norm() for one in post) / len(post))
    learner.detach()


@pytest.mark.parametrize("loop", LOOPS)
def test_norms_are_written_at_the_chosen_steps(loop, tmp_path):
    logger, norms = CSVLogger(tmp_path), EdgeNorms(every_n_steps=2)
    fit(make_task(loop=loop), norms, loader=make_loader(samples=20), logger=logger)  # five steps
    written = [row for row in rows(logger) if row[f"grad_norm/{EDGES[0]}"]]
    assert [int(row["step"]) for row in written] == [0, 2, 4]
    for edge in EDGES:
        assert norms.latest[f"grad_norm/{edge}"] > 0
        assert float(written[-1][f"trace_norm/{edge}/pre"]) == pytest.approx(norms.latest[f"trace_norm/{edge}/pre"])


def test_norms_without_a_learner_go_by_module():
    norms = EdgeNorms(1)
    fit(make_task(algorithm="bptt"), norms)
    assert set(norms.latest) == {"grad_norm/readout", "grad_norm/features.conv1", "grad_norm/features.conv2"}


def test_norms_are_those_before_clipping():
    norms = EdgeNorms(1)
    fit(make_task(), norms, gradient_clip_val=1e-4)
    assert max(norms.latest.values()) > 1e-3


# Pictures.


@pytest.mark.parametrize("algorithm", ["stllr", pytest.param("bptt", marks=pytest.mark.slow)])
def test_pictures_as_files_with_the_csv_logger(algorithm, tmp_path):
    logger = CSVLogger(tmp_path)
    fit(make_task(algorithm=algorithm), SequencePictures(every_n_epochs=2), logger=logger, max_epochs=3)
    found = sorted(path.name for path in (tmp_path / "lightning_logs" / "version_0" / "pictures").iterdir())
    assert found == ["epoch_0.png", "epoch_2.png"]


def test_pictures_and_report_in_tensorboard(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    fit(make_task(), SequencePictures(), EdgeNorms(1), logger=logger, max_epochs=2)
    events = accumulators.EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert len(events.Images("sequence")) == 2
    assert f"grad_norm/{EDGES[0]}" in tags["scalars"] and "train_loss" in tags["scalars"]
    (text,) = events.Tensors("attachment/text_summary")
    assert EDGES[0].encode() in text.tensor_proto.string_val[0]


def test_what_a_picture_shows(tmp_path):
    """The first sample alone, up to its end."""

    class Look(SequencePictures):
        def _draw(self, title):
            seen["spikes"] = {name: torch.stack(kept) for name, kept in self._spikes.items()}
            seen["traces"] = {edge: set(kinds) for edge, kinds in self._traces.items()}
            return super()._draw(title)

    class Hear(Callback):
        def setup(self, trainer, task, stage):
            task.network.features.lif1.register_forward_hook(lambda m, a, out: heard.append(out.detach()))

    seen, heard = {}, []
    loader = make_loader(lengths=[4] + [6] * 7)
    watch = Look(neurons=10_000)
    fit(make_task(), watch, Hear(), loader=loader, num_sanity_val_steps=0, default_root_dir=tmp_path)
    assert (tmp_path / "pictures" / "epoch_0.png").is_file()  # without a logger: in the trainer's own folder
    assert torch.equal(seen["spikes"]["features.lif1"], torch.stack([one[0].flatten() for one in heard[:4]]))
    assert seen["traces"] == {edge: {"pre", "post"} for edge in EDGES}


def test_pictures_leave_no_hooks_even_after_an_exception(tmp_path):
    class Stop(Callback):
        def on_after_backward(self, *args):
            raise RuntimeError("stop here")

    task = make_task()
    with pytest.raises(RuntimeError, match="stop here"):
        fit(task, SequencePictures(), Stop(), default_root_dir=tmp_path)
    hooks = [hook for module in task.network.modules() for hook in module._forward_hooks.values()]
    assert not any(type(hook).__name__ == "_Watch" for hook in hooks)


@pytest.mark.parametrize("bad", [{"every_n_epochs": 0}, {"neurons": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        SequencePictures(**bad)
    with pytest.raises(ValueError, match="every_n_steps=0"):
        EdgeNorms(0)


# The report.


def test_the_report_lies_beside_the_csv_log(tmp_path, caplog):
    logger = CSVLogger(tmp_path)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer = fit(make_task(), logger=logger)
    report = (tmp_path / "lightning_logs" / "version_0" / "attachment.txt").read_text()
    assert all(edge in report for edge in EDGES) and "alpha_pre" in report
    said = [record.message for record in caplog.records]
    start = next(
        i for i, message in enumerate(said) if message.startswith("STLLRLearner(SpikingConvNet, SGD, 3 synapses")
    )
    assert any(EDGES[0] in message for message in said[start:])
    assert [type(callback) for callback in trainer.callbacks].count(AttachmentReport) == 1


# Lightning's own.


@pytest.mark.parametrize(
    ("options", "trainer", "steps"),
    [
        ({"loop": "online"}, {}, {2, 4, 6}),  # three batches an epoch, two epochs
        ({"loop": "automatic"}, {}, {2, 4, 6}),
        ({"algorithm": "bptt"}, {}, {2, 4, 6}),
        ({"loop": "online"}, {"accumulate_grad_batches": 2}, {2, 4}),
        pytest.param({"loop": "automatic"}, {"accumulate_grad_batches": 2}, {2, 4}, marks=pytest.mark.slow),
        ({"update_every": 3}, {}, {2, 4, 6, 8, 10, 12}),  # two updates a batch
    ],
)
def test_checkpoints_fire_at_their_steps(options, trainer, steps, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(make_task(**options), saver, loader=make_loader(samples=12), max_epochs=2, enable_checkpointing=True, **trainer)
    assert {int(path.stem.partition("=")[2]) for path in tmp_path.glob("*.ckpt")} == steps
    last = torch.load(tmp_path / f"step={max(steps)}.ckpt", weights_only=True)
    assert last["global_step"] == max(steps)


@pytest.mark.parametrize("loop", LOOPS)
def test_early_stopping_and_the_learning_rate_monitor(loop, tmp_path):
    logger = CSVLogger(tmp_path)
    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)  # noqa: E731
    trainer = fit(
        make_task(loop=loop, lr_scheduler=schedule),
        stop,
        LearningRateMonitor("epoch"),
        max_epochs=9,
        logger=logger,
    )
    assert trainer.current_epoch == 2 and trainer.should_stop
    written = rows(logger)
    rates = [float(row["lr-SGD"]) for row in written if row["lr-SGD"]]
    assert rates == [0.3, 0.15]
    losses = [row["train_loss"] for row in written if row["train_loss"]]
    assert len(losses) == 2


def test_dead_neurons_in_a_network_of_another_library():
    """Rates and pictures do not depend on snnTorch."""
    network = SpikingMLP(2 * SIZE * SIZE, (12,), CLASSES, neuron="norse_lifbox", gain=0.0)
    with pytest.warns(UserWarning, match="'features.lif1' is nearly silent"):
        trainer = fit(make_task(network))
    assert float(trainer.callback_metrics["train_rate/features.lif1"]) == 0
