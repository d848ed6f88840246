"""True flow of any interval from maps of others: known answers, and agreement with a walk pixel by pixel."""

import numpy as np
import pytest

from lightning_modules.data import EventDataError
from lightning_modules.data.flow.true_flow import FlowMaps, carry_forward
from tests.lightning_modules.data.flow.flow_files import T0, scene, walked

SIZE = (6, 10)


def constant(u, v, maps=4, spacing=0.05, size=SIZE, **options):
    times = T0 + spacing * np.arange(maps + 1)
    flow = np.broadcast_to(np.array([u, v], float)[:, None, None], (2, *size))
    return FlowMaps(times, lambda index: flow, size, "maps", **options)


@pytest.mark.parametrize(("start", "end"), [(0, 0.05), (0, 0.2), (0.01, 0.19), (0.05, 0.1), (0.02, 0.03), (0.04, 0.06)])
def test_constant_flow_counts_the_time(start, end):
    flow, valid = constant(0.4, -0.2)(T0 + start, T0 + end)
    assert flow.dtype == np.float32
    expected = np.array([0.4, -0.2]) * (end - start) / 0.05
    np.testing.assert_allclose(flow[:, valid], np.tile(expected[:, None], valid.sum()), rtol=1e-5)
    assert valid[3, :5].all()


def test_what_leaves_the_picture_is_not_known():
    flow, valid = constant(3, 0)(T0, T0 + 0.15)  # looked up at x, x + 3, x + 6
    np.testing.assert_array_equal(valid, np.tile(np.arange(10) + 6 < 10, (6, 1)))
    np.testing.assert_array_equal(flow[:, ~valid], 0)
    np.testing.assert_allclose(flow[0, valid], 9)


def test_positions_are_carried_from_map_to_map():
    shear = np.zeros((2, 4, 4))
    shear[0] = np.arange(4)[:, None]  # row r moves r to the right
    down = np.ones((2, 4, 4))
    down[0] = 0
    flow, valid = carry_forward([(down, 1.0), (shear, 1.0)])
    assert valid[0, 0] and tuple(flow[:, 0, 0]) == (1, 1)  # lands on row 1, whose shear is 1
    assert valid[1, 1] and tuple(flow[:, 1, 1]) == (2, 1)
    assert not valid[3].any()  # below the picture
    flow, valid = carry_forward([(shear, 1.0), (down, 0.5)])
    assert tuple(flow[:, 2, 0]) == (2, 0.5)
    assert not valid[0].any()  # its first map is zero: nothing is known there


@pytest.mark.parametrize("unknown", [0.0, np.nan, np.inf])
def test_maps_say_where_they_know_nothing(unknown):
    flow = np.ones((2, *SIZE))
    flow[:, 2, 3] = unknown
    maps = FlowMaps([0, 1, 2], lambda index: flow, SIZE, "maps")
    found, valid = maps(0, 1)
    assert not valid[2, 3] and valid.sum() == valid.size - 1
    assert np.isfinite(found).all() and not found[:, 2, 3].any()
    _, valid = maps(0, 2)
    assert not valid[1, 2]  # gets there with the first map


def test_one_component_may_be_zero():
    _, valid = constant(0.5, 0)(T0, T0 + 0.05)
    assert valid.all()


def test_rows_of_the_hood_are_not_valid():
    _, valid = constant(0.1, 0.1, rows=4)(T0, T0 + 0.05)
    assert valid[:4].all() and not valid[4:].any()


@pytest.mark.parametrize(("start", "end"), [(-0.01, 0.04), (0.18, 0.21), (0.3, 0.4)])
def test_nothing_is_known_outside_of_the_maps(start, end):
    maps = constant(1, 1)
    flow, valid = maps(T0 + start, T0 + end)
    assert not maps.covers(T0 + start, T0 + end) and not valid.any() and not flow.any()


def test_a_short_interval_takes_the_map_in_which_it_begins():
    """Published evaluations scale that map, also where the interval ends in the next one."""
    values = iter([1.0, 5.0])
    flows = [np.full((2, *SIZE), next(values)) for _ in range(2)]
    maps = FlowMaps([0, 1, 2], flows.__getitem__, SIZE, "maps")
    flow, _ = maps(0.8, 1.2)
    np.testing.assert_allclose(flow, 0.4, rtol=1e-6)
    flow, _ = maps(0.5, 1.7)  # longer than a map: composed
    np.testing.assert_allclose(flow[:, 0, 0], 0.5 + 0.7 * 5, rtol=1e-6)


def test_edges_that_are_the_maps_own_take_whole_maps():
    maps = constant(0.4, 0.1)
    for tiny in (-2e-7, 0, 2e-7):
        assert maps.pieces(maps.times[1] + tiny, maps.times[3] - tiny) == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_walk_through_the_maps(seed):
    random = np.random.default_rng(seed)
    made = scene(size=(9, 12), seconds=1.2, seed=seed)
    maps = FlowMaps(made.flow_times, made.flow.__getitem__, made.size, "maps")
    for _ in range(6):
        start, end = np.sort(random.uniform(made.flow_times[0], made.flow_times[-1], 2))
        flow, valid = maps(start, end)
        expected, known = walked(made, start, end)
        np.testing.assert_array_equal(valid, known)
        np.testing.assert_allclose(flow, expected, atol=2e-6)


def test_times_that_run_backwards_are_named():
    with pytest.raises(EventDataError, match=r"truth.npz: .*run backwards or repeat: 1.0 \(number 2\) follows 2.0"):
        FlowMaps([0, 2, 1], lambda index: np.zeros((2, *SIZE)), SIZE, "truth.npz")
    with pytest.raises(EventDataError, match="truth.npz: true flow needs at least two times, found 1"):
        FlowMaps([0], lambda index: np.zeros((2, *SIZE)), SIZE, "truth.npz")


def test_maps_of_another_resolution_are_named():
    maps = FlowMaps([0, 1], lambda index: np.zeros((2, 3, 3)), SIZE, "truth.npz")
    with pytest.raises(EventDataError, match=r"truth.npz: map 0 has shape \(2, 3, 3\), expected \(2, 6, 10\)"):
        maps(0, 1)
