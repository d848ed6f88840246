"""Pictures of optical flow: colours that mean one thing, figures of any window, files beside the logs."""

import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_modules.callbacks import FlowPictures
from lightning_modules.flow import pictures
from lightning_modules.flow.pictures import colour_wheel, flow_colours, flow_figure, moved_events, nice_scale
from tests.lightning_modules.flow.scenes import moving_window, random_window
from tests.lightning_modules.flow.tasks import Task, loader, make_batch

pytest.importorskip("torchvision", reason="the colours of flow come from torchvision")


def test_colours_depend_on_direction_and_scale_alone():
    flow = torch.zeros(2, 3, 4)
    flow[:, 0, 0] = torch.tensor([2.0, 0.0])
    flow[:, 0, 1] = torch.tensor([4.0, 0.0])
    flow[:, 0, 2] = torch.tensor([40.0, 0.0])
    flow[:, 0, 3] = torch.tensor([-4.0, 0.0])
    known = torch.ones(3, 4, dtype=torch.bool)
    known[2] = False
    colours = flow_colours(flow, 4.0, known)
    assert colours.dtype == np.uint8
    assert colours.shape == (3, 4, 3)
    np.testing.assert_array_equal(colours[1], 255)  # rest is white
    assert (colours[2] == pictures.UNKNOWN).all()
    np.testing.assert_array_equal(colours[0, 1], colours[0, 2])  # longer than the scale: as the scale
    np.testing.assert_array_equal(colours[0, 0], flow_colours(flow[:, :1, :1], 4.0)[0, 0])  # whatever lies around it
    assert colours[0, 0].sum() > colours[0, 1].sum()
    wheel = colour_wheel(65).astype(int)
    assert abs(wheel[32, 64] - colours[0, 1]).max() <= 3  # right of the centre: flow to the right
    assert abs(wheel[32, 0] - colours[0, 3]).max() <= 3
    assert (wheel[0, 0] == 255).all()


def test_scales_are_round():
    for length, scale in ((0.0, 1.0), (0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (4.2, 5.0), (70.0, 100.0), (0.03, 0.05)):
        assert nice_scale(torch.full((2, 3, 3), length / 2**0.5)) == pytest.approx(scale)
    assert nice_scale(torch.full((2, 3, 3), torch.nan)) == 1


def test_events_move_to_where_the_flow_leads():
    window = moving_window((4.0, 0.0), dots=1, per_dot=9)
    start, end = window.events[0, 0], window.events[0, -1]
    assert end[1] - start[1] == 4
    moved = moved_events(window, 0, window.flow[0])
    assert float(moved[int(end[2]), int(end[1]) - 1 : int(end[1]) + 2].sum()) == pytest.approx(9)
    still = moved_events(window, 0, torch.zeros_like(window.flow[0]))
    assert float(still[int(start[2]), int(start[1])]) >= 1
    window.events = None  # counts of two time steps stand in for single events
    moved = moved_events(window, 0, window.flow[0])
    assert float(moved.sum()) == pytest.approx(9)
    assert float((moved > 0).sum()) < 9


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_figure_of_any_window():
    window = random_window(dtype=torch.float32)
    flow = [torch.randn(2, 2, 4, 6)]
    figure = flow_figure(window, flow[0], 1, "a title")
    titles = words(figure)
    assert len(figure.axes[0].images) == 7
    assert titles[1] == "true flow (grey: not known)"
    assert "AEE" in titles[2]
    assert titles[-1] == "a title"
    window.flow = window.before = None
    figure = flow_figure(window, flow[0], 0, scale=2.0)
    titles = words(figure)
    assert len(figure.axes[0].images) == 5
    assert titles[1] == "predicted flow"
    assert titles[-1].startswith("2 px")
    window.counts.zero_()
    window.event_mask.zero_()
    assert "events as they are: 0" in words(flow_figure(window, flow[0]))


# The callback.


def make_trainer(tmp_path, callback, logger=None, epochs=2):
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger or CSVLogger(tmp_path),
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
    )


def test_training_draws_validation_samples_beside_the_logs(tmp_path, monkeypatch):
    drawn = []

    def watched(window, flow, sample, title, *scale):
        drawn.append((title, flow, window.counts))
        return flow_figure(window, flow, sample, title, *scale)

    monkeypatch.setattr("lightning_modules.callbacks.flow_pictures.flow_figure", watched)
    trainer = make_trainer(tmp_path, FlowPictures(every_n_epochs=2, dpi=30), epochs=3)
    task, batch = Task(), make_batch()
    trainer.fit(task, loader(batch), loader(batch, make_batch(seed=9)))
    files = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert files == ["epoch_0_one.png", "epoch_0_two_3.png", "epoch_2_one.png", "epoch_2_two_3.png"]
    assert [title for title, _, _ in drawn[:2]] == ["one, window 1, epoch 0", "two/3, window 0, epoch 0"]
    for (_, flow, counts), w in zip(drawn[:2], (1, 0), strict=True):
        torch.testing.assert_close(flow, task.flows(batch)[:, w])
        torch.testing.assert_close(counts, batch.counts[:, w])
    assert not task.network._forward_hooks


def test_training_draws_into_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, FlowPictures(samples=1, dpi=30), TensorBoardLogger(tmp_path), epochs=1)
    trainer.fit(Task(), loader(make_batch()), loader(make_batch()))
    board = EventAccumulator(trainer.log_dir)
    board.Reload()
    assert board.Tags()["images"] == ["flow/one"]
    assert not list(tmp_path.rglob("*.png"))


def test_prediction_writes_pictures_and_gifs_of_each_recording(tmp_path):
    trainer = make_trainer(tmp_path, FlowPictures(flows=True, dpi=30))
    task = Task()
    batches = (
        make_batch(),
        make_batch(names=("one", "one"), new=(False, True), seed=5),  # the second lane takes another recording
    )
    trainer.predict(task, loader(*batches), return_predictions=False)
    files = {str(path.relative_to(tmp_path)).split("flow/")[1] for path in tmp_path.rglob("flow/*/*")}
    assert files == {
        *(f"one/{n:06d}.{kind}" for n in range(4) for kind in ("png", "npy")),
        *(f"two_3/{n:06d}.{kind}" for n in range(1) for kind in ("png", "npy")),
        *(f"one_2/{n:06d}.{kind}" for n in range(1) for kind in ("png", "npy")),
        "one/one.gif",
    }
    (gif,) = tmp_path.rglob("*.gif")
    with Image.open(gif) as moving:
        assert moving.n_frames == 4
        assert moving.info["duration"] == 120  # GIF counts in hundredths of a second
    (kept,) = tmp_path.rglob("one/000003.npy")
    np.testing.assert_array_equal(np.load(kept), task.flows(batches[1])[0, 1].numpy())


def test_prediction_draws_as_many_as_it_is_told(tmp_path):
    trainer = make_trainer(tmp_path, FlowPictures(every_n_windows=2, windows=1, gif=False, dpi=30))
    trainer.predict(Task(), loader(make_batch(), make_batch(new=(False, False))), return_predictions=False)
    files = sorted(str(path.relative_to(trainer.log_dir)) for path in tmp_path.rglob("flow/*/*"))
    assert files == ["flow/one/000000.png", "flow/two_3/000000.png"]


def test_bad_settings_and_tasks_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least 1"):
        FlowPictures(windows=0)

    class Classifier(Task):
        def predict_step(self, batch, batch_idx):
            return [0.5]

    with pytest.raises(TypeError, match="predicted flows as a tensor"):
        make_trainer(tmp_path, FlowPictures()).predict(Classifier(), loader(make_batch()))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"stllr-plugin\[vision\]"):
        FlowPictures()
