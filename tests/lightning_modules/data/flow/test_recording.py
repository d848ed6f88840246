"""Recordings are cut into consecutive windows that hold every event once; bad recordings are named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_modules.data import EventDataError
from lightning_modules.data.flow import EventColumns, WindowedEvents, windows_between, windows_by_count, windows_by_time
from lightning_modules.data.flow import windows as windows_module
from lightning_modules.data.flow.recording import count_window

T = np.array([0, 1, 1, 5, 9, 10, 12, 20], np.uint32)
X = np.arange(8, dtype=np.uint8)
Y = X % 4
P = X % 2


def recording(windows, t=T, x=X, y=Y, p=P, size=(4, 8), **kwargs):
    return WindowedEvents("rec", size, EventColumns(x, y, t, p), windows, **kwargs)


class ReadBySlice:
    """A column like one of HDF5: rows come by slice, and how many are read is counted."""

    def __init__(self, values):
        self._values = values
        self.rows_read = 0

    def __len__(self):
        return len(self._values)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        found = self._values[rows]
        self.rows_read += len(found)
        return found


def test_windows_by_time():
    windows = windows_by_time(T, 5, start=0)
    assert windows.edges.tolist() == [0, 5, 10, 15, 20] and windows.rows.tolist() == [0, 3, 5, 7, 7]
    rec = recording(windows)
    second = rec.read(1)
    assert second.x.tolist() == [3, 4] and second.p.tolist() == [True, False]
    np.testing.assert_allclose(second.t, [0, 0.8])
    assert len(rec.read(3).x) == 0  # an empty window is nothing special


def test_by_count_equal_stamps_stay_together():
    windows = windows_by_count(T, 2)
    assert windows.edges.tolist() == [0, 1, 9, 12]
    assert windows.rows.tolist() == [0, 1, 4, 6]
    assert [len(recording(windows).read(i).x) for i in range(3)] == [1, 3, 2]
    limited = windows_by_count(T, 1, start=5, end=12)
    assert limited.edges.tolist() == [5, 9, 10]


@given(
    t=hnp.arrays(np.int64, st.integers(2, 60), elements=st.integers(0, 1000)).map(np.sort),
    edges=st.lists(st.integers(-10, 1010), min_size=2, max_size=8, unique=True).map(sorted),
    block=st.integers(1, 20),
)
def test_every_event_is_in_the_window_of_its_time(t, edges, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "_BLOCK", block)
        windows = windows_between(t, edges)
    for i, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        expected = [stamp for stamp in t.tolist() if start <= stamp < end]
        assert t[windows.rows[i] : windows.rows[i + 1]].tolist() == expected


def test_rows_are_read_when_a_window_asks_for_them():
    columns = [ReadBySlice(values) for values in (X, Y, T, P)]
    rec = WindowedEvents("rec", (4, 8), EventColumns(*columns), windows_by_time(columns[2], 5, start=0))
    assert columns[0].rows_read == 0
    rec.read(1)
    assert columns[0].rows_read == columns[3].rows_read == 2


@pytest.mark.parametrize("polarities", [P, P.astype(bool), 2 * P.astype(np.int8) - 1, P.astype(float)])
def test_counts_by_step_and_polarity(polarities):
    data = recording(windows_between(T, [0, 20]), p=polarities).read(0)
    counts = count_window(data, 4, (4, 8))
    assert counts.shape == (4, 2, 4, 8) and counts.sum() == 7
    expected = np.zeros((4, 2, 4, 8))
    for x, y, t, p in zip(X[:7], Y[:7], T[:7], P[:7], strict=True):
        expected[t // 5, p, y, x] += 1
    np.testing.assert_array_equal(counts, expected)


def test_an_event_at_the_end_of_float_time_counts_in_the_last_step():
    # In float32 the last event of a long recording may land on 1.
    start, end = 1.6e9, 1.6e9 + 0.05
    stamp = np.nextafter(end, 0)
    data = recording(
        windows_between([start, stamp], [start, end]), t=np.array([start, stamp]), x=X[:2], y=Y[:2], p=P[:2]
    )
    assert count_window(data.read(0), 3, (4, 8)).sum() == 2


def test_one_polarity_and_no_events_at_all_in_a_window():
    data = recording(windows_between(T, [0, 20, 30]), p=np.ones(8)).read(0)
    assert count_window(data, 2, (4, 8))[:, 0].sum() == 0
    nothing = recording(windows_between(T, [30, 40])).read(0)
    assert count_window(nothing, 2, (4, 8)).sum() == 0


def test_pictures_and_flow_of_a_window():
    frames = np.arange(3, dtype=np.uint8)[:, None, None] * np.full((4, 8), 51, np.uint8)

    def flow(start, end):
        return (np.full((2, 4, 8), end - start, np.float32), np.ones((4, 8), bool)) if start else None

    rec = recording(windows_between(T, [0, 5, 12]), frames=frames, flow=flow)
    first, second = rec.read(0), rec.read(1)
    np.testing.assert_allclose(first.before, 0)
    np.testing.assert_allclose(first.after, 0.2)
    np.testing.assert_allclose(second.before, 0.2)
    assert not first.valid.any() and (first.flow == 0).all()  # nothing is known about it
    assert second.valid.all() and (second.flow == 7).all()
    by_row = recording(windows_between(T, [0, 5]), frames=frames, frame_rows=[0, 2]).read(0)
    np.testing.assert_allclose(by_row.after, 0.4)


def test_bad_recordings_are_named():
    with pytest.raises(EventDataError, match=r"rec: time stamps run backwards: event 1 at 12 follows event 0 at 20"):
        windows_between(T[::-1], [0, 5], "rec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "_BLOCK", 4)
        with pytest.raises(EventDataError, match=r"event 4 at 3 follows event 3 at 5"):
            windows_between(np.array([0, 1, 1, 5, 3]), [0, 5])
    with pytest.raises(EventDataError, match="no events"):
        windows_by_time(T[:0], 5)
    with pytest.raises(EventDataError, match="less than one window of 50"):
        windows_by_time(T, 50)
    with pytest.raises(EventDataError, match="less than a window of 9"):
        windows_by_count(T, 9)
    with pytest.raises(EventDataError, match="finite"):
        windows_between(np.array([0.0, np.nan]), [0, 1])
    with pytest.raises(EventDataError, match="ascending"):
        windows_between(T, [5, 5])
    with pytest.raises(ValueError, match="positive"):
        windows_by_time(T, 0)


def test_bad_windows_are_named():
    with pytest.raises(EventDataError, match=r"rec: event 2 has y = 2, outside of 2 rows and 8 columns \(2 such"):
        recording(windows_between(T, [0, 9]), size=(2, 8)).read(0)
    with pytest.raises(EventDataError, match="differ in length"):
        recording(windows_between(T, [0, 5]), x=X[:3])
    with pytest.raises(EventDataError, match=r"2 windows need a grey picture at each of their 3 edges, found 3 \(of 2"):
        recording(windows_between(T, [0, 5, 9]), frames=np.zeros((2, 4, 8)))
    with pytest.raises(EventDataError, match=r"grey picture has shape \(3, 8\), the events \(4, 8\)"):
        recording(windows_between(T, [0, 5]), frames=np.zeros((2, 3, 8))).read(0)
    with pytest.raises(IndexError, match="window 1 of 1"):
        recording(windows_between(T, [0, 5])).read(1)
    changed = T.copy()
    rec = recording(windows_between(changed, [0, 20]), t=changed)
    changed[3] = 0  # a file that is damaged after it was cut
    with pytest.raises(EventDataError, match="event 3 at 0 follows event 2 at 1"):
        rec.read(0)
