"""Recordings that stay in their files: the right rows are found from anywhere, and odd windows stay numbers."""

import numpy as np
import pytest

from lightning_modules.data import EventDataError
from lightning_modules.data.flow.stored import (
    CutAtTimes,
    CutByCount,
    Events,
    PartOfRecording,
    StoredRecording,
    first_row,
)

SIZE = (4, 6)


class Store:
    """Events in memory; counts what is read."""

    def __init__(self, t):
        self.t = np.asarray(t)
        self.read = 0

    def __len__(self):
        return len(self.t)

    def bracket(self, time):
        return 0, len(self.t)

    def times(self, low, high):
        self.read += high - low
        return self.t[low:high]

    def events(self, low, high):
        row = np.arange(low, high)
        return Events(row % SIZE[1], row % SIZE[0], self.t[low:high], np.where(row % 2, 1, -1))


def recording(t, edges):
    store = Store(np.asarray(t, float))
    return StoredRecording("one", SIZE, store, CutAtTimes(store, np.asarray(edges, float), "one"), path="one.h5")


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_found_from_anywhere(monkeypatch, seed):
    random = np.random.default_rng(seed)
    monkeypatch.setattr("lightning_modules.data.flow.stored._BLOCK", int(random.integers(1, 9)))
    t = np.sort(random.integers(0, 60, random.integers(1, 200)))  # many stamps repeat
    for time in (*random.integers(-2, 63, 12), t[0], t[-1]):
        expected = int(np.searchsorted(t, time))
        assert first_row(Store(t), time) == expected
        for near in random.integers(-1, len(t) + 2, 6):
            assert first_row(Store(t), time, int(near)) == expected


def test_the_next_edge_is_searched_near_the_last(monkeypatch):
    monkeypatch.setattr("lightning_modules.data.flow.stored._BLOCK", 16)
    t = np.arange(1 << 20, dtype=float)
    store = Store(t)
    cut = CutAtTimes(store, np.arange(0, 1 << 20, 100.0), "one")
    cut.bounds(5000)
    store.read = 0
    assert cut.bounds(5001)[2:] == (500_100, 500_200)
    assert store.read < 40


def test_windows_without_events_are_empty():
    one = recording([0.5, 0.6, 5.5], [0, 1, 2, 5, 6])
    assert [len(one.read(i).x) for i in range(4)] == [2, 0, 0, 1]
    assert one.read(1).t.dtype == np.float32 and one.read(1).p.dtype == bool
    outside = recording([10.0], [0, 1, 2])
    assert all(len(outside.read(i).x) == 0 for i in range(2))


def test_events_at_an_edge_belong_to_the_window_that_begins():
    one = recording([0, 1, 1, 2], [0, 1, 2])
    assert [one.read(i).t.tolist() for i in range(2)] == [[0.0], [0.0, 0.0]]


def test_equal_time_stamps_give_no_nan():
    store = Store(np.full(9, 7.0))
    one = StoredRecording("one", SIZE, store, CutByCount(store, 4, None, None, "one"))
    assert one.num_windows == 2 and one.read(1).t.tolist() == [0.0] * 4


def test_counts_need_one_event_more():
    store = Store(np.arange(9.0))
    assert len(CutByCount(store, 4, None, None, "one")) == 2
    assert len(CutByCount(store, 3, None, None, "one")) == 2
    cut = CutByCount(store, 2, 2.5, 8.0, "one")
    assert [cut.bounds(i) for i in range(len(cut))] == [(3, 5, 3, 5), (5, 7, 5, 7)]
    with pytest.raises(EventDataError, match="one: 9 events are no window of 9; take fewer"):
        CutByCount(store, 9, None, None, "one")


def test_unsorted_time_stamps_are_named():
    with pytest.raises(
        EventDataError, match="one.h5: time stamps run backwards: event 1 at 0.2 follows event 0 at 0.7"
    ):
        recording([0.7, 0.2, 0.9], [0, 1]).read(0)
    with pytest.raises(EventDataError, match="one.h5: time stamps run backwards"):
        one = recording([3.0, 3.5, 0.5, 1.5], [0, 1, 4])
        [one.read(i) for i in range(2)]


def test_edges_are_checked():
    store = Store(np.arange(9.0))
    with pytest.raises(EventDataError, match="one: the times at which windows are cut run backwards or repeat: 1.0"):
        CutAtTimes(store, np.array([0.0, 1.0, 1.0]), "one")
    with pytest.raises(EventDataError, match="one: no window: 1 of the times"):
        CutAtTimes(store, np.array([0.0]), "one")
    with pytest.raises(IndexError, match="one: window 2 of 2"):
        recording(np.arange(9.0), [0, 1, 2]).read(2)


def test_parts_of_a_recording():
    whole = recording(np.arange(9.0), [0, 2, 4, 6])
    part = PartOfRecording(whole, 1, 2, "end")
    assert (part.name, part.size, part.num_windows) == ("end", SIZE, 2)
    np.testing.assert_array_equal(part.read(1).x, whole.read(2).x)
    with pytest.raises(ValueError, match="one: no 3 windows from window 1 on, it has 3"):
        PartOfRecording(whole, 1, 3)
