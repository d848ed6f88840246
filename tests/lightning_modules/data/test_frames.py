import numpy as np
import pytest

from lightning_modules.data import Binning, bin_events, make_events
from tests.lightning_modules.data.packing import pack


def one(x, y, t, p):
    return pack([make_events(x, y, t, p)], [0], (34, 34))


def test_counts_by_step_polarity_row_and_column():
    packed = one(x=[3, 3, 33, 0], y=[5, 5, 0, 33], t=[0, 99, 100, 299], p=[1, 1, 0, 1])
    (frames,) = bin_events(packed, Binning(num_steps=3), 300)
    assert frames.shape == (3, 2, 34, 34) and frames.dtype == np.uint8
    assert frames[0, 1, 5, 3] == 2 and frames[1, 0, 0, 33] == 1 and frames[2, 1, 33, 0] == 1
    assert frames.sum() == 4


def test_agrees_with_tonic(some_digits):
    transforms = pytest.importorskip("tonic.transforms", reason="tonic is not installed")
    store = bin_events(some_digits, Binning(bin_us=30_000), 300_000)
    to_frame = transforms.ToFrame(
        sensor_size=(34, 34, 2), time_window=30_000, include_incomplete=True, start_time=0, end_time=300_000
    )
    for i in range(5):
        np.testing.assert_array_equal(store[i], to_frame(some_digits.recording(i)))


def test_recordings_in_many_blocks_stay_apart(random_recordings):
    packed = random_recordings(150)
    store = bin_events(packed, Binning(num_steps=7), 300_000)
    np.testing.assert_array_equal([store[i].sum() for i in range(150)], [len(packed.recording(i)) for i in range(150)])
    alone = pack([packed.recording(149)], [0], (34, 34))
    np.testing.assert_array_equal(store[149], bin_events(alone, Binning(num_steps=7), 300_000)[0])


@pytest.mark.parametrize(("factor", "side"), [(2, 17), (3, 12), (34, 1), (50, 1)])
def test_downsampling_sums_squares_of_pixels(random_recordings, factor, side):
    packed = random_recordings(3)
    fine = bin_events(packed, Binning(num_steps=2), 300_000)
    coarse = bin_events(packed, Binning(num_steps=2, downsample=factor), 300_000)
    assert coarse[0].shape == (2, 2, side, side)
    padded = np.pad(fine.frames, ((0, 0), (0, 0), (0, side * factor - 34), (0, side * factor - 34)))
    sums = padded.reshape(-1, 2, side, factor, side, factor).sum((3, 5))
    np.testing.assert_array_equal(coarse.frames, sums)


def test_events_after_the_last_step_are_left_out():
    packed = one(x=[1, 1], y=[1, 1], t=[50, 300], p=[1, 1])
    assert bin_events(packed, Binning(num_steps=3), 300)[0].sum() == 1


def test_steps_of_a_fixed_duration_give_lengths_of_their_own():
    recordings = [make_events([1], [1], [t], [1]) for t in (0, 999, 1000, 5500)]
    packed = pack(recordings, [0] * 4, (34, 34))
    store = bin_events(packed, Binning(bin_us=1000), 300)
    assert [len(store[i]) for i in range(4)] == [1, 1, 2, 6]
    assert all(store[i][-1].sum() == 1 for i in range(4))
    cut = bin_events(packed, Binning(num_steps=3, bin_us=1000), 300)
    assert [len(cut[i]) for i in range(4)] == [1, 1, 2, 3]
    assert cut[3].sum() == 0


def test_empty_recording_becomes_zeros():
    empty, full = make_events([], [], [], []), make_events([2], [2], [10], [0])
    packed = pack([empty, full, empty], [0, 1, 2], (34, 34))
    fixed = bin_events(packed, Binning(num_steps=4), 100)
    assert fixed[0].shape == (4, 2, 34, 34) and fixed[0].sum() == 0 and fixed[1].sum() == 1 and fixed[2].sum() == 0
    variable = bin_events(packed, Binning(bin_us=4), 100)
    assert [len(variable[i]) for i in range(3)] == [1, 3, 1]


def test_counts_saturate_at_255():
    packed = one(x=[1] * 300, y=[1] * 300, t=[5] * 300, p=[1] * 300)
    assert bin_events(packed, Binning(num_steps=1), 10)[0].max() == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "num_steps"), ({"num_steps": 0}, "num_steps"), ({"bin_us": 0}, "bin_us"),
     ({"num_steps": 1, "downsample": 0}, "downsample")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Binning(**arguments)
