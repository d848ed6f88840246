"""Metrics of optical flow: equal to plain arithmetic, explicit about what counts, sums over processes."""

import math
import pickle

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from lightning_modules.flow.metrics import RSAT, AverageEndpointError, FlowOutliers, FlowWarpLoss, flow_metrics
from tests.lightning_modules.flow import reference
from tests.lightning_modules.flow.scenes import moving_window, random_window

MASKS = ("valid", "events", "both")


def random_flow(seed=5):
    return 4 * torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2


def errors(flow, window, b, mask):
    """Error and true length of each pixel that counts."""
    found = []
    for i in range(8):
        for j in range(12):
            has_event = bool(window.counts[b, :, :, i, j].sum() > 0)
            known = bool(window.valid[b, i, j])
            if {"valid": known, "events": has_event, "both": known and has_event}[mask]:
                u, v = (flow[b, :, i, j] - window.flow[b, :, i, j]).tolist()
                found.append((math.hypot(u, v), math.hypot(*window.flow[b, :, i, j].tolist())))
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("average", ["windows", "pixels"])
def test_errors_and_outliers_by_hand(mask, average):
    window, flow = random_window(), random_flow()
    windows = [errors(flow, window, b, mask) for b in range(2)]
    assert len({len(one) for one in windows}) == 2  # else both averages would agree

    def mean(of):
        if average == "pixels":
            return np.mean([of(*pixel) for one in windows for pixel in one])
        return np.mean([np.mean([of(*pixel) for pixel in one]) for one in windows])

    cases = {
        AverageEndpointError(mask, average): lambda error, length: error,
        AverageEndpointError(mask, average, zero_flow=True): lambda error, length: length,
        FlowOutliers(1, None, mask, average): lambda error, length: 100 * (error > 1),
        FlowOutliers(0.5, 1.5, mask, average): lambda error, length: 100 * (error > 0.5 and error > 1.5 * length),
    }
    for metric, of in cases.items():
        metric.update(flow, window)
        assert float(metric.compute()) == pytest.approx(mean(of))


def test_kitti_outliers_need_both():
    window = random_window()
    window.flow = torch.full_like(window.flow, 100.0)
    metric = FlowOutliers(3, 0.05)
    metric.update(window.flow + 4.0, window)  # 5.7 px are 4 % of 141 px
    assert metric.compute() == 0
    metric.update(window.flow + 6.0, window)  # 8.5 px are 6 %
    assert metric.compute() == 50


def splat_by_hand(events, flow, size):
    image = np.zeros(size)
    for t, x, y, _ in events:
        u, v = flow[:, round(y), round(x)]
        j, i = np.round(x + (1 - t) * u), np.round(y + (1 - t) * v)
        if 0 <= i < size[0] and 0 <= j < size[1]:
            image[int(i), int(j)] += 1
    return image


def test_flow_warp_loss_by_hand():
    window, flow = random_window(), random_flow()
    ratios = []
    for b in range(2):
        events = window.events[b][window.event_mask[b]].tolist()
        moved = splat_by_hand(events, flow[b].numpy(), (8, 12))
        still = splat_by_hand(events, 0 * flow[b].numpy(), (8, 12))
        ratios.append(moved.var() / still.var())
    metric = FlowWarpLoss()
    metric.update(flow, window)
    assert float(metric.compute()) == pytest.approx(np.mean(ratios))


@pytest.mark.parametrize("nearest", [True, False])
def test_rsat_by_hand(nearest):
    window, flow = random_window(), random_flow()
    if nearest:  # a flow that brings every event onto a pixel, so that the reference needs no rounding
        window.events[..., 0] = (window.events[..., 0] * 4).round() / 4
        flow = 4 * flow.round()
    ratios = []
    for b in range(2):
        events = window.events[b][window.event_mask[b]].tolist()
        moved, still = (reference.mean_times(one[b].numpy(), events, 1) for one in (flow, 0 * flow))
        ratios.append(moved / still)
    metric = RSAT(nearest)
    metric.update(flow, window)
    assert float(metric.compute()) == pytest.approx(np.mean(ratios), rel=1e-6)


def test_the_true_flow_sharpens_the_picture():
    window = moving_window()
    values = {}
    for name, flow in (("true", window.flow), ("none", 0 * window.flow), ("wrong", -window.flow)):
        metrics = flow_metrics()
        metrics.update(flow, window)
        values[name] = {key: float(value) for key, value in metrics.compute().items()}
    assert values["true"]["aee"] == 0
    assert values["true"]["fwl"] > 2
    assert values["true"]["rsat"] < 0.9
    assert values["none"]["aee"] == values["true"]["aee_zero"] == pytest.approx(math.hypot(4, 2))
    assert values["none"]["fwl"] == values["none"]["rsat"] == 1
    assert values["wrong"]["fwl"] < values["true"]["fwl"]
    assert values["wrong"]["outliers_kitti"] == 100


def test_absent_samples_and_windows_without_anything_do_not_count():
    window, flow = random_window(), random_flow()
    first, metrics = flow_metrics("both"), flow_metrics("both")
    window.present = torch.tensor([True, False])
    first.update(flow, window)
    window.present = torch.tensor([True, True])
    window.event_mask[1], window.valid[1] = False, False
    metrics.update(flow, window)
    window.present = torch.tensor([False, False])
    metrics.update(flow, window)
    for name, value in metrics.compute().items():
        torch.testing.assert_close(value, first.compute()[name])
    metrics.reset()
    metrics.update(flow, window)
    assert all(value.isnan() for value in metrics.compute().values())


def test_states_add_up_over_processes():
    """What torchmetrics does over processes: the states are summed."""
    whole, parts = flow_metrics("both"), [flow_metrics("both") for _ in range(2)]
    for seed, part in enumerate(parts):
        window, flow = random_window(seed=seed), random_flow(seed)
        whole.update(flow, window)
        part.update(flow, window)
    for name, metric in whole.items():
        assert {reduction.__name__ for reduction in metric._reductions.values()} == {"dim_zero_sum"}
        merged = parts[0][name]
        for state in metric._defaults:
            setattr(merged, state, getattr(merged, state) + getattr(parts[1][name], state))
        merged._computed = None
        torch.testing.assert_close(merged.compute(), metric.compute())


def test_a_collection_keeps_metrics_apart_that_agreed_at_first():
    """torchmetrics lets metrics share a state if the first update gave the same values."""
    window = random_window()
    metrics = flow_metrics()
    metrics.update(0 * window.flow, window)  # zero flow: both errors agree
    metrics.update(window.flow, window)
    values = metrics.compute()
    assert values["aee"] == pytest.approx(float(values["aee_zero"]) / 2)
    few = MetricCollection({"a": FlowOutliers(1), "b": FlowOutliers(2)})
    few.update(window.flow, window)  # no outliers
    few.update(window.flow + 1, window)
    assert few.compute()["a"] == 50
    assert few.compute()["b"] == 0


def test_metrics_can_be_copied_and_moved():
    window, flow = random_window(), random_flow()
    metrics = flow_metrics(prefix="val_")
    metrics.update(flow, window)
    again = pickle.loads(pickle.dumps(metrics))
    assert {name: float(value) for name, value in again.compute().items()} == {
        name: float(value) for name, value in metrics.compute().items()
    }
    assert set(flow_metrics(truth=False)) == {"fwl", "rsat"}
    assert all(name.startswith("val_") for name in metrics.compute())


def test_missing_fields_and_unknown_settings_are_named():
    window, flow = random_window(), random_flow()
    window.flow = window.events = None
    with pytest.raises(ValueError, match="AverageEndpointError needs the true flow"):
        AverageEndpointError().update(flow, window)
    with pytest.raises(ValueError, match="RSAT needs the single events.*events=True"):
        RSAT().update(flow, window)
    for make in (
        lambda: AverageEndpointError("all"),
        lambda: FlowOutliers(average="mean"),
        lambda: FlowOutliers(-1),
    ):
        with pytest.raises(ValueError, match="AverageEndpointError|FlowOutliers"):
            make()
