"""Pictures with dense flow: what a file means, and scenes that move along the flow."""

from pathlib import Path

import numpy as np
import pytest

from lightning_modules.data import EventDataError
from lightning_modules.data.flow import SimulatedFlowDataModule, SimulationSettings
from lightning_modules.data.flow.picture_pairs import PictureScene, draw_picture_scene, read_picture_pairs, split_pairs

REAL_FILE = Path(__file__).parents[4].parent / "shared" / "data" / "flow_images_gray.npz"

SIZE = (40, 50)


def wave(x, y):
    return 0.5 + (np.sin(x / 3) + np.sin(y / 4) + np.sin((x + y) / 5)) / 8


def moving(count=4, u=1.5, v=-0.75, flow_at=1):
    """Frames of a smooth pattern; elsewhere than between two of them it rests."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    moved = np.arange(count) > flow_at
    frames = np.stack([wave(x - u * m, y - v * m) for m in moved])
    flow = np.broadcast_to(np.array([u, v], np.float32), (*SIZE, 2)).copy()
    return np.round(frames * 255).astype(np.uint8), flow


@pytest.fixture
def file(tmp_path):
    frames, flow = moving()
    flow[10:14, 20:25] = 1e9
    upwards = moving(5, flow_at=3)
    upwards[1][..., 1] *= -1
    path = tmp_path / "pairs.npz"
    arrays = {"a_frames": frames, "a_flow2": flow, "b_frames": upwards[0], "b_flow": upwards[1]}
    third = moving(2, -1.0, 0.5, flow_at=0)
    np.savez(path, c_frames=third[0] / np.float32(255), c_flow10=third[1], other=np.zeros(3), **arrays)
    return path


def test_what_a_file_means(file):
    first, second, third = read_picture_pairs(file)
    assert [pair.name for pair in (first, second, third)] == ["a", "b", "c"]
    np.testing.assert_allclose(first.picture, moving()[0][1] / 255, atol=1e-6)
    assert (~first.known).sum() == 20 and not first.known[10:14, 20:25].any()
    assert (first.flow[:, ~first.known] == 0).all()
    # The frame before the movement, and y downwards whatever the file has.
    np.testing.assert_allclose(second.picture, moving(5, flow_at=3)[0][3] / 255, atol=1e-6)
    np.testing.assert_allclose(second.flow[:, 5, 5], [1.5, -0.75])
    np.testing.assert_allclose(third.flow[:, 5, 5], [-1.0, 0.5])
    assert {part: [pair.name for pair in pairs] for part, pairs in split_pairs([first, second, third]).items()} == {
        "test": ["c"],
        "val": ["a"],
        "train": ["b"],
    }


def test_a_scene_moves_along_the_flow(file):
    pair = read_picture_pairs(file)[0]
    scene = PictureScene(pair, (20, 24), (6, 8), reach=2.0, frequency=np.pi / 4, phase=0.0)  # there in 4 windows
    y, x = np.mgrid[6:26, 8:32].astype(float)
    pictures = scene.grey(np.array([0.0, 2.0, 4.0]))
    for picture, far in zip(pictures, (0, 1, 2), strict=True):
        # The hole in the flow stands still; what lies beyond it is untouched.
        expected = wave(x - 1.5 * far, y + 0.75 * far)
        untouched = np.hypot(x - 22, y - 12) > 10
        np.testing.assert_allclose(picture[untouched], expected[untouched], atol=0.02)
    flow, valid = scene.flow(0.0, 4.0)
    hole = (x >= 19) & (x <= 25) & (y >= 9) & (y <= 14)
    assert valid[~hole].all() and not valid[(x >= 20) & (x < 25) & (y >= 10) & (y < 14)].any()
    np.testing.assert_allclose(flow[:, ~hole], np.tile([[3.0], [-1.5]], (~hole).sum()), rtol=1e-4)
    back, _ = scene.flow(4.0, 8.0)
    np.testing.assert_allclose(back[:, 0, 0], [-3.0, 1.5], rtol=1e-4)


def test_flow_that_varies_is_followed_exactly(file):
    pair = read_picture_pairs(file)[0]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    pair.flow[:] = (x - 25) / 10, (y - 20) / -8  # apart in x, together in y
    pair.known[:] = True
    scene = PictureScene(pair, (20, 24), (10, 13), reach=1.0, frequency=np.pi, phase=0.0)
    flow, valid = scene.flow(0.5, 1.0)  # half of the way lies behind
    row, column = np.mgrid[10:30, 13:37]
    # q + (q - 25) / 20 = p: then the second half takes q to q + (q - 25) / 10.
    expected = (column - 25) / 1.05 / 20, (row - 20) / (1 - 1 / 16) / -16
    assert valid.all()
    np.testing.assert_allclose(flow, expected, atol=5e-3)


def test_data_module(file):
    settings = SimulationSettings(size=(16, 16), windows=2, steps=5)
    data = SimulatedFlowDataModule(settings, file, num_train=2, num_val=1, num_test=1, batch_size=2)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.counts.sum() > 50 and batch.valid[:, :2].float().mean() > 0.5
    assert "pictures of pairs.npz along their flow" in data.dataset_name and "sequences disjoint" in data.split_name


def test_bad_files(tmp_path, file):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        read_picture_pairs(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(EventDataError, match="not an .npz archive; expected pictures with flow"):
        read_picture_pairs(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a_frames=np.zeros((2, 4, 4)))
    with pytest.raises(EventDataError, match=r"no arrays NAME_frames with NAME_flow; found \['a_frames'\]"):
        read_picture_pairs(tmp_path / "other.npz")
    np.savez(tmp_path / "shapes.npz", a_frames=np.zeros((2, 4, 4)), a_flow=np.zeros((4, 5, 2)))
    with pytest.raises(EventDataError, match=r"found \(2, 4, 4\) and \(4, 5, 2\)"):
        read_picture_pairs(tmp_path / "shapes.npz")
    with pytest.raises(EventDataError, match="a sequence each, found 2"):
        split_pairs(read_picture_pairs(file)[:2])
    pairs = split_pairs(read_picture_pairs(file))
    with pytest.raises(EventDataError, match=r"picture of \(40, 50\) is smaller than \(64, 64\)"):
        draw_picture_scene(pairs, SimulationSettings(), "train", 0)


@pytest.mark.skipif(not REAL_FILE.exists(), reason=f"{REAL_FILE} is not here")
def test_the_real_file():
    pairs = {pair.name: pair for pair in read_picture_pairs(REAL_FILE)}
    assert len(pairs) == 7
    with np.load(REAL_FILE) as arrays:
        np.testing.assert_array_equal(pairs["mb_Grove3"].flow[1], arrays["mb_Grove3_flow10"][..., 1])
        np.testing.assert_array_equal(pairs["yos"].flow[1], -arrays["yos_flow9"][..., 1])  # its y points up
        for name, frame in (("mb_Urban2", 3), ("sintel_hard", 1)):
            np.testing.assert_allclose(pairs[name].picture * 255, arrays[f"{name}_frames"][frame], atol=1e-3)
    assert 0.01 < (~pairs["mb_RubberWhale"].known).mean() < 0.02
