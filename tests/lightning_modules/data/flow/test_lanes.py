"""Lanes play every window once and in order, whatever the epoch, the processes and the workers."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lightning_modules.data import EventDataError
from lightning_modules.data.flow import FlowDataModule, LaneDataset, LaneSampler
from lightning_modules.data.flow.lanes import FlowAugmentation, cut_sections
from lightning_modules.tasks.resumable import ResumableLoader
from tests.lightning_modules.data.flow.marked import MarkedRecording


def dataset(lengths=(5, 7, 3), lanes=2, windows_per_batch=2, bins=2, **kwargs):
    recordings = [MarkedRecording(f"rec {i}", length) for i, length in enumerate(lengths)]
    return LaneDataset(recordings, lanes, windows_per_batch, bins, **kwargs)


def as_it_is(batch):
    return batch


def loader(data, shuffle=True, num_workers=0):
    sampler = LaneSampler(data, shuffle)
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=num_workers, collate_fn=as_it_is)


def assert_same(one, other):
    assert one.names == other.names
    for field in ("counts", "present", "new_recording", "events", "event_mask", "frames", "flow", "valid"):
        a, b = getattr(one, field), getattr(other, field)
        assert (a is None) == (b is None), field
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7),
    lanes=st.integers(1, 4),
    windows_per_batch=st.integers(1, 4),
    section=st.none() | st.integers(1, 5),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_window_once_and_in_order(lengths, lanes, windows_per_batch, section, world_size, epoch, shuffle):
    data = dataset(lengths, lanes, windows_per_batch, section=section)
    plans = [data.plan(epoch, shuffle, world_size, rank) for rank in range(world_size)]
    assert len({(len(plan), len(plan[0].lanes)) for plan in plans}) == 1  # processes wait for each other
    assert len(plans[0]) == len(data.plan(epoch + 1, shuffle, world_size))  # Lightning asks once
    assert len(plans[0][0].lanes) <= lanes
    played = []
    for plan in plans:
        for lane in zip(*(key.lanes for key in plan), strict=True):
            for before, now in zip((None, *lane[:-1]), lane, strict=True):
                if now.section < 0:
                    continue
                follows = before is not None and before.section == now.section
                assert now.first == (before.first + windows_per_batch if follows else 0)
                whole = data.sections[now.section]
                high = min(now.first + windows_per_batch, whole.length)
                played += [(whole.recording, whole.first + i) for i in range(now.first, high)]
    assert sorted(played) == [(i, window) for i, length in enumerate(lengths) for window in range(length)]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), longest=st.integers(1, 8))
def test_sections_are_of_nearly_equal_length(lengths, longest):
    for recording, length in enumerate(lengths):
        own = [section for section in cut_sections(lengths, longest) if section.recording == recording]
        assert sum(section.length for section in own) == length
        sizes = [section.length for section in own]
        assert max(sizes) <= longest and max(sizes) - min(sizes) <= 1
        assert [section.first for section in own] == np.cumsum([0, *sizes[:-1]]).tolist()


def test_what_a_batch_holds():
    data = dataset(events=True)
    shown = {}
    new = []
    for batch in loader(data, shuffle=False):
        assert batch.counts.shape == (2, 2, 2, 2, 6, 8) and batch.frames.shape == (2, 3, 1, 6, 8)
        for lane in range(2):
            if batch.new_recording[lane]:
                new.append(batch.names[lane])
                shown[batch.names[lane]] = []
            for w in range(2):
                window = batch.window(w)
                if not batch.present[lane, w]:
                    for values in (window.counts, window.flow, window.events):
                        assert (values[lane] == 0).all()
                    assert not window.valid[lane].any() and not window.event_mask[lane].any()
                    continue
                shown[batch.names[lane]].append(int(window.before[lane, 0, 0, 0]))
                assert (window.after[lane] - window.before[lane]).allclose(torch.ones(1))
                assert window.counts[lane].sum() == 48 and window.event_mask[lane].sum() == 48
    assert sorted(new) == ["rec 0", "rec 1", "rec 2"]
    assert shown == {f"rec {i}": list(range(length)) for i, length in enumerate((5, 7, 3))}


def test_event_lists_agree_with_the_counts():
    batch = dataset(events=True, augmentation=FlowAugmentation((4, 5), 1.0, 0.0))[0]
    for lane in range(2):
        events = batch.events[lane, 0][batch.event_mask[lane, 0]]
        counts = torch.zeros(2, 4, 5)
        for _, x, y, p in events.tolist():
            counts[int(p > 0), int(y), int(x)] += 1
        torch.testing.assert_close(counts, batch.counts[lane, 0].sum(0))


def test_crops_and_flips_keep_everything_together():
    data = dataset((4,) * 6, lanes=6, augmentation=FlowAugmentation((3, 4), 0.5, 0.5), seed=1)
    places, flips = set(), set()
    for epoch in range(3):
        by_name = {}
        for batch in (data[key] for key in data.plan(epoch, shuffle=True)):
            for lane, name in enumerate(batch.names):
                # Grey tells which pixel of the recording stands where.
                grey = (batch.frames[lane, 0, 0] % 1 * 1000).round().long()
                x, y = grey % 8, grey // 8
                flip_x, flip_y = bool(x[0, 0] > x[0, 1]), bool(y[0, 0] > y[1, 0])
                place = (int(x.min()), int(y.min()), flip_x, flip_y)
                assert by_name.setdefault(name, place) == place  # states go on: a recording keeps its place
                assert batch.flow.shape[-2:] == (3, 4)
                sign = torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0])[:, None, None]
                known = batch.valid[lane, 0]
                assert known.equal(x % 3 > 0)
                expected = torch.stack((x + 1, y + 1)) * sign * known
                torch.testing.assert_close(batch.flow[lane, 0], expected)
                on = batch.counts[lane, 0].sum(0)[1]
                assert on.equal((x % 2 == 0).float())
        places |= {place[:2] for place in by_name.values()}
        flips |= {place[2:] for place in by_name.values()}
    assert len(places) > 6 and len(flips) == 4


def test_orders_follow_from_seed_and_epoch():
    def orders(seed):
        data = dataset((4,) * 8, seed=seed)
        sampler = LaneSampler(data, shuffle=True)
        return [[key.lanes for key in sampler] for _ in range(2)]

    assert orders(0) == orders(0)
    assert orders(0)[0] != orders(0)[1] and orders(0)[0] != orders(1)[0]
    data = dataset((4,) * 8)
    assert data.plan(0, shuffle=False)[0].lanes == data.plan(5, shuffle=False)[0].lanes


def test_an_iterator_that_nobody_reads_counts_as_no_epoch():
    sampler = LaneSampler(dataset(), shuffle=True)
    iter(sampler)
    assert next(iter(sampler)).epoch == 0
    sampler.set_epoch(7)
    assert next(iter(sampler)).epoch == 7


def test_workers_change_nothing():
    augmentation = FlowAugmentation((4, 4), 0.5, 0.5)
    alone, two = (loader(dataset(augmentation=augmentation), num_workers=count) for count in (0, 2))
    for _ in range(2):
        batches = list(alone)
        assert len(batches) == len(alone)
        for one, other in zip(batches, two, strict=True):
            assert_same(one, other)


def test_a_batch_of_a_process_that_has_nothing_left_has_the_same_parts():
    data = dataset((9, 1), lanes=1)
    busy, idle = (data.plan(0, False, 2, rank) for rank in (0, 1))
    assert len(busy) == len(idle) == 5
    full, empty = data[busy[-1]], data[idle[-1]]
    assert not empty.present.any() and empty.names == [""]
    for field in ("counts", "frames", "flow", "valid"):
        assert getattr(empty, field).shape == getattr(full, field).shape


def test_recordings_without_pictures_or_flow():
    recordings = [MarkedRecording("a", 2, frames=False, flow=False), MarkedRecording("b", 2, frames=False)]
    both = LaneDataset(recordings, 2, 1, 2)[0]
    assert both.frames is None and both.valid[1].any() and not both.valid[0].any()
    alone = LaneDataset(recordings[:1], 2, 1, 2)[0]
    assert alone.flow is None and alone.valid is None and alone.counts.shape[0] == 1


def test_what_cannot_be_loaded():
    with pytest.raises(EventDataError, match="no recordings"):
        LaneDataset([], 2, 1, 2)
    sizes = [MarkedRecording(size=(6, 8)), MarkedRecording(size=(5, 8))]
    with pytest.raises(EventDataError, match=r"one resolution, found \[\(5, 8\), \(6, 8\)\]"):
        LaneDataset(sizes, 2, 1, 2)
    assert LaneDataset(sizes, 2, 1, 2, augmentation=FlowAugmentation((5, 5)))[0].counts.shape[-2:] == (5, 5)
    with pytest.raises(EventDataError, match=r"a crop of \(6, 6\) does not fit into 5 rows"):
        LaneDataset(sizes, 2, 1, 2, augmentation=FlowAugmentation((6, 6)))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        dataset(bins=0)
    with pytest.raises(ValueError, match="flip_x is a probability"):
        FlowAugmentation(flip_x=2.0)
    with pytest.raises(ValueError, match="at least 1 window"):
        dataset(section=0)


class MarkedDataModule(FlowDataModule):
    dataset_name = "marked"
    split_name = "by hand"

    def load_recordings(self):
        numbers = {"train": 4, "val": 1, "test": 3}
        return {part: [MarkedRecording(f"{part} {i}", 3) for i in range(n)] for part, n in numbers.items()}


class Witness(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = {"train": [], "val": [], "predict": []}

    def _see(self, part, batch):
        self.seen[part].append((batch.names, batch.new_recording.tolist()))
        return self.weight * batch.counts.mean()

    def training_step(self, batch):
        return self._see("train", batch)

    def validation_step(self, batch):
        self._see("val", batch)

    def predict_step(self, batch):
        return self._see("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_plays_the_lanes(tmp_path):
    data = MarkedDataModule(bins=2, batch_size=2, windows_per_batch=2, section=2, flip_x=0.5, seed=3)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    witness = Witness()
    trainer.fit(witness, data)
    # Each of 4 recordings of 3 windows is cut into sections of 2 and 1: 8 sections in two lanes.
    first, second = witness.seen["train"][:4], witness.seen["train"][4:]
    for epoch in (first, second):
        assert len(epoch) == 4 and all(new == [True, True] for _, new in epoch)
        assert sorted(name for names, _ in epoch for name in names) == sorted(2 * [f"train {i}" for i in range(4)])
    assert first != second
    assert witness.seen["val"] == 2 * [(["val 0"], [True]), (["val 0"], [False])]
    assert isinstance(data.train_dataloader(), ResumableLoader)
    trainer.predict(witness, data, return_predictions=False)
    assert witness.seen["predict"][0] == (["test 0", "test 1"], [True, True])
    assert witness.seen["predict"][2] == (["test 2", ""], [True, False])
    report = data.report()
    assert (report["train"], report["val"], report["test"], report["resolution"]) == (12, 3, 9, (6, 8))
    with pytest.warns(UserWarning, match="another split"):
        data.load_state_dict({"dataset": "marked", "split": "by foot"})


def test_data_module_checks_its_arguments():
    with pytest.raises(ValueError, match="windows_per_batch must be at least 1, got 0"):
        MarkedDataModule(windows_per_batch=0)
    with pytest.raises(ValueError, match="seed must not be negative"):
        MarkedDataModule(seed=-1)
    with pytest.raises(RuntimeError, match="setup"):
        MarkedDataModule().train_dataloader()
