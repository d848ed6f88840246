"""Simulated recordings: events of a known motion, the cache, and what the data module gives."""

import numpy as np
import pytest
import torch

from lightning_modules.data import CameraSettings
from lightning_modules.data.flow import SimulatedFlowDataModule, SimulationSettings, simulator
from lightning_modules.data.flow.motion import Course, Motion
from lightning_modules.data.flow.scenes import Layer, LayeredScene
from lightning_modules.data.flow.simulator import draw_scene, simulate, simulated_recordings
from lightning_modules.data.flow.textures import noise_texture

SMALL = SimulationSettings(size=(16, 20), windows=3, steps=10, pictures=False)


def variance_of_warped_events(x, y, t, u, v, size):
    """Variance of the number of events per pixel after all are carried back to the window's start."""
    count = np.zeros(size)
    for column, row, when in zip(x.tolist(), y.tolist(), t.tolist(), strict=True):
        column, row = round(column - u * when), round(row - v * when)
        if 0 <= row < size[0] and 0 <= column < size[1]:
            count[row, column] += 1
    return count.var()


def test_events_of_a_known_translation_warp_to_a_sharp_image():
    size = (48, 48)
    quiet = CameraSettings(threshold=0.2, leak_hz=0.0, noise_hz=0.0, hot_pixels=0)
    settings = SimulationSettings(size=size, windows=1, steps=40, camera=quiet)
    motion = Motion(x=Course(drift=5.0), y=Course(drift=-3.0))
    scene = LayeredScene(size, [Layer(motion, lambda: noise_texture(np.random.default_rng(2), 96))])

    def make_scene(settings, part, number):
        return scene

    [recording] = simulated_recordings(settings, "train", 1, make_scene=make_scene, source={"of": "this test"})
    data = recording.read(0)
    np.testing.assert_allclose(data.flow[0], 5, rtol=1e-5)
    np.testing.assert_allclose(data.flow[1], -3, rtol=1e-5)
    assert len(data.x) > 1000 and 0.2 < data.p.mean() < 0.8
    sharp = variance_of_warped_events(data.x, data.y, data.t, 5, -3, size)
    for u, v in [(0, 0), (-5, 3), (2.5, -1.5), (7.5, -4.5), (-3, 5), (5, 3)]:
        assert variance_of_warped_events(data.x, data.y, data.t, u, v, size) < 0.8 * sharp, (u, v)


def test_events_and_pictures_show_the_same():
    [recording] = simulated_recordings(SMALL, "val", 1)
    scene = draw_scene(SMALL, "val", 0)
    levels = scene.grey(np.arange(4.0))
    balance = np.zeros(SMALL.size)
    for window in range(3):
        data = recording.read(window)
        np.testing.assert_allclose(data.before, levels[window], atol=0.6 / 255)
        np.testing.assert_allclose(data.after, levels[window + 1], atol=0.6 / 255)
        flow, valid = scene.flow(window, window + 1)
        np.testing.assert_allclose(data.flow, flow, atol=1e-6)
        assert valid.all() and data.valid.all()
        np.add.at(balance, (data.y, data.x), np.where(data.p, 1, -1))
    change = np.log(levels[-1] + 0.1) - np.log(levels[0] + 0.1)
    assert np.corrcoef(change.ravel(), balance.ravel())[0, 1] > 0.8


def test_a_recording_follows_from_seed_part_and_number():
    three = [draw_scene(SMALL, "train", number) for number in range(3)]
    together, alone = simulate(SMALL, three, "train"), simulate(SMALL, three[2:], "train", first=2)
    low, high = together["offsets"][2:4]
    np.testing.assert_array_equal(together["x"][low:high], alone["x"])
    np.testing.assert_array_equal(together["dt_us"][low:high], alone["dt_us"])
    np.testing.assert_array_equal(together["frames"][2], alone["frames"][0])
    others = [draw_scene(SMALL, "test", 2), draw_scene(SimulationSettings(seed=1, size=(16, 20)), "train", 2)]
    for other in others:
        assert not np.allclose(other.grey(np.zeros(1)), three[2].grey(np.zeros(1)), atol=0.1)
        assert not np.allclose(other.flow(0, 1)[0], three[2].flow(0, 1)[0], atol=0.05)


def test_data_module(monkeypatch):
    def data_module(**kwargs):
        return SimulatedFlowDataModule(SMALL, num_train=3, num_val=1, num_test=2, batch_size=2, bins=4, **kwargs)

    data = data_module()
    data.prepare_data()
    monkeypatch.setattr(simulator, "simulate", None)  # from now on everything is in the cache
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.counts.shape == (2, 4, 4, 2, 16, 20) and batch.frames.shape == (2, 5, 1, 16, 20)
    assert batch.present.tolist() == [[True, True, True, False]] * 2
    assert batch.valid[:, :3].all() and 0.3 < batch.flow[:, :3].norm(dim=2).mean() < 6
    assert batch.counts[:, :3].sum() > 200 and torch.isfinite(batch.flow).all()
    assert data.report()["train"] == 9 and data.report()["resolution"] == (16, 20)
    assert "size=(16, 20)" in data.dataset_name and data.split_name.startswith("3/1/2 recordings")
    assert SimulatedFlowDataModule().dataset_name == "SimulatedFlow v1 (moving textures)"
    with pytest.raises(TypeError):  # another number of recordings is another cache
        SimulatedFlowDataModule(SMALL, num_train=4, num_val=1, num_test=2).prepare_data()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="speed must be positive"):
        SimulationSettings(speed=0)
    with pytest.raises(ValueError, match=r"window_us \(50000\) must be a multiple of steps \(7\)"):
        SimulationSettings(steps=7)
    with pytest.raises(ValueError, match="kinds must be some of translation, rotation, zoom, affine"):
        SimulationSettings(kinds=("jump",))
    with pytest.raises(ValueError, match="size must be"):
        SimulationSettings(size=(2, 64))
    with pytest.raises(ValueError, match="source"):
        simulated_recordings(SMALL, "train", 1, make_scene=lambda *_: None)
    with pytest.raises(ValueError, match="num_val must be at least 1"):
        SimulatedFlowDataModule(num_val=0)
