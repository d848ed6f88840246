"""The flow of a simulated scene is what its grey values do."""

import numpy as np
import pytest

from lightning_modules.data.flow.motion import KINDS, Course, Motion, draw_motion
from lightning_modules.data.flow.scenes import Layer, LayeredScene, Outline
from lightning_modules.data.flow.textures import PICTURES, noise_texture, picture_texture

SIZE = (40, 48)
MIDDLE = np.array([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2])


def smooth_texture(side=160):
    """Waves much longer than a pixel, so that sampling twice between pixels costs next to nothing."""
    y, x = np.mgrid[:side, :side] * 2 * np.pi
    waves = np.sin(x / 19) + np.sin(y / 23) + np.sin((x + y) / 31 + 1) + np.sin((x - y) / 17 + 2)
    return (0.5 + waves / 10).astype(np.float32)


def bilinear(picture, x, y):
    left, top = np.clip(np.floor(x).astype(int), 0, SIZE[1] - 2), np.clip(np.floor(y).astype(int), 0, SIZE[0] - 2)
    right, below = x - left, y - top
    upper = picture[top, left] * (1 - right) + picture[top, left + 1] * right
    lower = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
    return upper * (1 - below) + lower * below


def fetched_back(picture, flow):
    """The later picture, seen where the flow goes; and which pixels it goes to within the picture."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    x, y = x + flow[0], y + flow[1]
    inside = (x >= 0) & (x <= SIZE[1] - 1) & (y >= 0) & (y <= SIZE[0] - 1)
    return bilinear(picture, x, y), inside


def displacement(motion, start, end, pixels):
    """How far what appears at pixels [..., 2] at the start has moved at the end."""
    matrix, vector = motion.change(start, end)
    return pixels @ matrix.T + vector


def test_displacement_of_known_motions():
    pixels = np.array([[3.0, -2.0], [0.5, 7.0]])
    shift = Motion(x=Course(drift=2.0), y=Course(drift=-0.5))
    np.testing.assert_allclose(displacement(shift, 1, 3, pixels), [[4, -1], [4, -1]])
    turn = Motion(x=Course(start=1.0), angle=Course(drift=np.pi / 2))  # x goes to y, about (1, 0)
    np.testing.assert_allclose(displacement(turn, 0, 1, pixels), np.array([[3, 2], [-6, -0.5]]) - pixels, atol=1e-12)
    zoom = Motion(y=Course(start=2.0), zoom=Course(drift=np.log(2)))
    np.testing.assert_allclose(displacement(zoom, 2, 3, pixels), pixels - [0, 2], atol=1e-12)
    shear = Motion(shear=Course(drift=0.5))
    np.testing.assert_allclose(displacement(shear, 0, 2, pixels), [[-2, 0], [7, 0]], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_displacements_add_up_and_are_smooth_and_bounded(kind):
    random = np.random.default_rng(KINDS.index(kind))
    for _ in range(5):
        motion = draw_motion(random, kind, 4.0, 20.0, (2.0, -3.0), stays=False)
        pixels = random.uniform(-20, 20, (30, 2))
        halfway = pixels + displacement(motion, 3, 3.4, pixels)
        both = halfway - pixels + displacement(motion, 3.4, 4, halfway)
        np.testing.assert_allclose(displacement(motion, 3, 4, pixels), both, atol=1e-9)
        moves = np.stack([displacement(motion, t, t + 1, pixels) for t in range(20)])
        assert 0.05 < np.hypot(*moves.reshape(-1, 2).T).mean() < 8
        assert np.hypot(*np.diff(moves, axis=0).reshape(-1, 2).T).max() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_picture_fetched_back_is_the_first(kind):
    motion = draw_motion(np.random.default_rng(4), kind, 4.0, 20.0, (5.0, 5.0), stays=False)
    scene = LayeredScene(SIZE, [Layer(motion, smooth_texture)])
    pictures = scene.grey(np.array([5.0, 6.0]))
    flow, valid = scene.flow(5.0, 6.0)
    back, inside = fetched_back(pictures[1], flow)
    assert valid.all() and inside.mean() > 0.7
    error = np.abs(back - pictures[0])[inside].mean()
    assert error < 0.003
    for wrong in (0 * flow, -flow, flow[::-1]):
        back, inside = fetched_back(pictures[1], wrong)
        assert np.abs(back - pictures[0])[inside].mean() > 5 * error


def test_layers_cover_each_other_and_move_on_their_own():
    circle = Outline(8.0, np.zeros((1, 2)))
    background = Layer(Motion(x=Course(drift=2.0)), smooth_texture)
    behind = Layer(Motion(y=Course(drift=1.0)), lambda: np.full((31, 31), 0.2, np.float32), circle)
    before = Layer(Motion(x=Course(start=6.0, drift=-3.0)), lambda: np.full((31, 31), 0.9, np.float32), circle)
    scene = LayeredScene(SIZE, [background, behind, before])
    flow, _ = scene.flow(0.0, 1.0)
    picture = scene.grey(np.array([0.0]))[0]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] - MIDDLE[::-1, None, None]
    in_front = np.hypot(x - 6, y) < 8
    second = (np.hypot(x, y) < 8) & ~in_front
    np.testing.assert_allclose(flow[:, in_front], np.tile([[-3], [0]], in_front.sum()), atol=1e-5)
    np.testing.assert_allclose(flow[:, second], np.tile([[0], [1]], second.sum()), atol=1e-5)
    rest = ~in_front & ~second
    np.testing.assert_allclose(flow[:, rest], np.tile([[2], [0]], rest.sum()), atol=1e-5)
    np.testing.assert_allclose(picture[np.hypot(x - 6, y) < 6], 0.9, atol=1e-6)
    np.testing.assert_allclose(picture[(np.hypot(x, y) < 6) & (np.hypot(x - 6, y) > 10)], 0.2, atol=1e-6)


def test_outlines_that_vary_with_the_direction():
    outline = Outline(10.0, np.array([[0.2, 0.0], [0.1, np.pi]]))
    points = np.array([[10.99, 0.0], [11.01, 0.0], [0.0, 10.99], [0.0, 11.01], [-6.99, 0.0], [-7.01, 0.0]])
    assert (outline.inside(points) > 0).tolist() == [True, False] * 3
    assert outline.reach == pytest.approx(13.0)


def test_layers_that_do_not_fit():
    circle = Outline(8.0, np.zeros((1, 2)))
    small = Layer(Motion(), lambda: np.zeros((15, 15), np.float32), circle)
    with pytest.raises(ValueError, match=r"reaches 8.0 px needs a larger texture than 15"):
        small.seen(np.zeros(1), SIZE)
    with pytest.raises(ValueError, match="first layer is the background"):
        LayeredScene(SIZE, [small])


def test_textures_have_something_to_see():
    for seed in range(6):
        texture = noise_texture(np.random.default_rng(seed), 64)
        assert texture.shape == (64, 64) and texture.dtype == np.float32
        assert texture.min() >= 0 and texture.max() <= 1 and texture.std() > 0.1
    one, same = (noise_texture(np.random.default_rng(1), 64) for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_pictures_of_the_parts_are_disjoint_and_ship_with_scikit_image():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    names = [name for part in PICTURES.values() for name in part]
    assert len(set(names)) == len(names)
    for part in ("val", "test"):
        texture = picture_texture(np.random.default_rng(0), 48, part)
        assert texture.shape == (48, 48) and texture.min() >= 0 and texture.max() <= 1 and texture.std() > 0.05


def test_without_scikit_image(monkeypatch):
    from lightning_modules.data.flow import textures

    textures._picture.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'stllr-plugin\[data\]', or take noise alone"):
        picture_texture(np.random.default_rng(0), 48, "train")
