import numpy as np
import pytest

from lightning_modules.data import EVENT_DTYPE, EventDataError, PackedEvents, check_events, make_events
from tests.lightning_modules.data.packing import pack


def events_of(x=(1, 2, 3), y=(4, 5, 6), t=(0, 10, 10), p=(1, 0, 1)):
    return make_events(x, y, t, p)


def test_layout_is_that_of_tonic():
    tonic_io = pytest.importorskip("tonic.io", reason="tonic is not installed")
    assert EVENT_DTYPE == tonic_io.events_struct


def test_equal_time_stamps_are_sorted():
    check_events(events_of(), (34, 34))


def test_empty_recording_is_valid():
    check_events(events_of((), (), (), ()), (34, 34))


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(EventDataError, match=r"equal length.*t \(2,\)"):
        make_events([1, 2, 3], [1, 2, 3], [1, 2], [0, 1, 0])


def test_unsorted_time_stamps_are_named_with_the_remedy():
    with pytest.raises(EventDataError, match=r"clip 7: .*event 2 at 5 us follows event 1 at 10 us.*argsort"):
        check_events(events_of(t=(0, 10, 5)), (34, 34), name="clip 7")


@pytest.mark.parametrize(("field", "values"), [("x", (0, 34, 1)), ("y", (0, 34, 1)), ("x", (0, -1, 1))])
def test_coordinates_outside_the_sensor_are_named(field, values):
    with pytest.raises(EventDataError, match=f"event 1 with {field} = {values[1]}"):
        check_events(events_of(**{field: values}), (34, 34))


def test_height_and_width_are_not_mixed_up():
    check_events(events_of(x=(0, 50, 1), y=(0, 20, 1)), (30, 60))
    with pytest.raises(EventDataError, match="y = 50"):
        check_events(events_of(y=(0, 50, 1), x=(0, 20, 1)), (30, 60))


def test_negative_time_is_refused():
    with pytest.raises(EventDataError, match="negative"):
        check_events(events_of(t=(-5, 0, 1)), (34, 34))


def test_missing_field_is_named():
    with pytest.raises(EventDataError, match=r"\['p'\]"):
        check_events(events_of()[["x", "y", "t"]], (34, 34))


def test_polarities_other_than_0_and_1_are_refused():
    events = np.zeros(2, dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    events["p"] = (1, -1)
    with pytest.raises(EventDataError, match="event 1 has -1"):
        check_events(events, (34, 34))


def test_packing_and_unpacking_keeps_every_event():
    random = np.random.default_rng(0)
    recordings = [
        make_events(
            random.integers(0, 60, n),
            random.integers(0, 30, n),
            np.sort(random.integers(0, 400_000, n)),
            random.integers(0, 2, n),
        )
        for n in (13, 0, 1, 8, 0, 300)
    ]
    packed = pack(recordings, [3, 1, 4, 1, 5, 9], (30, 60))
    again = PackedEvents.from_arrays(packed.to_arrays(), (30, 60), "copy")
    assert len(again) == 6
    for i, events in enumerate(recordings):
        np.testing.assert_array_equal(again.recording(i), events)
    np.testing.assert_array_equal(again.times(2, 6), np.concatenate([events["t"] for events in recordings[2:]]))
    np.testing.assert_array_equal(again.polarities(2, 6), np.concatenate([events["p"] for events in recordings[2:]]))


def test_long_gaps_between_events_are_kept():
    events = events_of(t=(70_000, 70_001, 9_000_000))
    packed = pack([events, events], [0, 1], (34, 34))
    np.testing.assert_array_equal(packed.recording(1)["t"], events["t"])


def test_no_recordings_at_all():
    packed = pack([], [], (34, 34))
    assert len(packed) == 0
    assert packed.times().size == 0
    with pytest.raises(IndexError):
        packed.recording(0)


def test_packing_checks_each_recording():
    with pytest.raises(EventDataError, match="recording 1"):
        pack([events_of(), events_of(t=(9, 8, 7))], [0, 1], (34, 34))
