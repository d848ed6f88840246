"""Parts of the picture and lower resolutions keep events, pictures and flow together."""

import numpy as np
import pytest

from lightning_modules.data.flow.views import Downsampled, Mirrored, PartOfPicture
from tests.lightning_modules.data.flow.marked import MarkedRecording


def test_part_in_the_middle():
    part = PartOfPicture(MarkedRecording(size=(6, 8)), (2, 4))
    data = part.read(1)
    assert part.size == (2, 4) and part.num_windows == 5 and len(data.x) == 8
    np.testing.assert_allclose(data.before[data.y, data.x], 1 + (data.x + 2 + 8 * (data.y + 2)) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(data.flow[0][data.y, data.x], data.x + 3)
    np.testing.assert_array_equal(data.valid[0], [True, False, True, True])  # columns 2 to 5 of the whole
    np.testing.assert_array_equal(data.p, data.x % 2 == 0)


def test_squares_of_pixels():
    low = Downsampled(MarkedRecording(size=(7, 8)), 2)  # the seventh row fills no square
    data = low.read(0)
    assert low.size == (3, 4) and len(data.x) == 48
    assert np.bincount(data.y * 4 + data.x).tolist() == [4] * 12
    np.testing.assert_allclose(data.before[1, 2], np.mean([20, 21, 28, 29]) / 1000, rtol=1e-6)
    # Columns 0, 3 and 6 are not known: of the squares only the one of columns 4 and 5 is known throughout.
    np.testing.assert_array_equal(data.valid, np.tile([False, False, True, False], (3, 1)))
    np.testing.assert_allclose(data.flow[:, 1, 2], [5.5 / 2, 3.5 / 2])  # means of 5, 6 and 3, 4 in pixels twice as wide
    assert (data.flow[:, ~data.valid] == 0).all()


def test_without_pictures_and_flow():
    data = Downsampled(MarkedRecording(frames=False, flow=False), 2).read(0)
    assert data.flow is data.valid is data.before is data.after is None


def test_mirror_image():
    image = Mirrored(MarkedRecording())
    data = image.read(2)
    assert image.size == (6, 8) and image.num_windows == 5 and image.name == "marked mirrored"
    origin = 7 - data.x
    np.testing.assert_allclose(data.after[data.y, data.x], 3 + (origin + 8 * data.y) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(data.flow[:, data.y, data.x], [-(origin + 1), data.y + 1])
    np.testing.assert_array_equal(data.valid[data.y, data.x], origin % 3 > 0)
    np.testing.assert_array_equal(data.p, origin % 2 == 0)
    assert Mirrored(MarkedRecording(frames=False, flow=False)).read(0).flow is None


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"marked: a part of \(7, 8\).*does not fit into \(6, 8\)"):
        PartOfPicture(MarkedRecording(), (7, 8))
    with pytest.raises(ValueError, match="squares of 7 pixels"):
        Downsampled(MarkedRecording(), 7)
