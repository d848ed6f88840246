import numpy as np
import pytest

from lightning_modules.data import Augmentation
from lightning_modules.data.augment import shift


@pytest.fixture
def frames():
    return np.random.default_rng(0).poisson(2, (4, 2, 9, 11)).astype(np.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -3), (-1, 4), (-8, 0), (20, 0), (0, -11)])
def test_shift_moves_and_fills_with_zeros(frames, down, right):
    moved = shift(frames, down, right)
    for row in range(9):
        for column in range(11):
            source = (row - down, column - right)
            inside = 0 <= source[0] < 9 and 0 <= source[1] < 11
            expected = frames[:, :, source[0], source[1]] if inside else 0
            assert (moved[:, :, row, column] == expected).all()


def test_all_shifts_within_the_range_occur(frames):
    lone = np.zeros((1, 1, 9, 11), np.uint8)
    lone[0, 0, 4, 5] = 1
    random = np.random.default_rng(0)
    places = {tuple(np.argwhere(Augmentation(max_shift=1)(lone, random))[0][2:].tolist()) for _ in range(200)}
    assert places == {(row, column) for row in (3, 4, 5) for column in (4, 5, 6)}


def test_every_event_is_dropped_with_the_given_probability():
    frames = np.full((10, 2, 34, 34), 5, np.uint8)
    left = Augmentation(event_drop=0.3)(frames, np.random.default_rng(0))
    assert abs(left.sum() / frames.sum() - 0.7) < 0.01
    assert left.max() == 5 and left.min() == 0
    assert abs(left.var() - 5 * 0.7 * 0.3) < 0.05  # binomial: each event for itself


def test_input_is_left_alone(frames):
    before = frames.copy()
    Augmentation(max_shift=2, event_drop=0.5)(frames, np.random.default_rng(0))
    np.testing.assert_array_equal(frames, before)


def test_off_by_default(frames):
    augmentation = Augmentation()
    assert not augmentation and augmentation(frames, np.random.default_rng(0)) is frames


@pytest.mark.parametrize("arguments", [{"max_shift": -1}, {"event_drop": 1.0}, {"event_drop": -0.1}])
def test_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Augmentation(**arguments)


def test_flip_exchanges_left_and_right():
    frames = np.random.default_rng(0).integers(0, 9, (3, 2, 4, 5)).astype(np.uint8)
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(Augmentation(flip=1.0)(frames, random), frames[..., ::-1])
    results = [np.array_equal(Augmentation(flip=0.5)(frames, random), frames) for _ in range(40)]
    assert 5 < sum(results) < 35
    with pytest.raises(ValueError, match="flip"):
        Augmentation(flip=1.5)
