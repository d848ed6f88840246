import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.data import (
    Augmentation,
    Binning,
    EpochSampler,
    FrameDataset,
    bin_events,
    pad_collate,
    stratified_split,
)


@pytest.fixture
def make_dataset(random_recordings):
    packed = random_recordings(40)

    def make(binning=None, **kwargs):
        store = bin_events(packed, binning or Binning(num_steps=5), 300_000)
        return FrameDataset(store, packed.labels, np.arange(5, 35), **kwargs)

    return make


def loader(dataset, seed=0, **kwargs):
    return DataLoader(dataset, batch_size=7, sampler=EpochSampler(len(dataset), seed), collate_fn=pad_collate, **kwargs)


def test_split_parts_are_disjoint_and_complete():
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    parts = stratified_split(labels, (700, 100, 200), seed=1)
    assert [len(part) for part in parts] == [700, 100, 200]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))


def test_split_is_stratified():
    labels = np.random.default_rng(0).choice(10, 1000, p=np.arange(1, 11) / 55)
    for size, part in zip((700, 100, 200), stratified_split(labels, (700, 100, 200), seed=1), strict=True):
        wanted = np.bincount(labels, minlength=10) * size / 1000
        assert np.abs(np.bincount(labels[part], minlength=10) - wanted).max() < 3


def test_split_depends_on_the_seed_alone():
    labels = np.arange(100) % 10
    first, again, other = (stratified_split(labels, (60, 40), seed)[1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sizes", [(60, 41), (-1, 5)])
def test_impossible_split_is_refused(sizes):
    with pytest.raises(ValueError, match="cannot draw"):
        stratified_split(np.zeros(100, int), sizes, 0)


def test_collate_pads_at_the_end():
    samples = [(torch.ones(steps, 2, 3, 4), label) for steps, label in ((2, 7), (5, 1), (3, 0))]
    frames, lengths, labels = pad_collate(samples)
    assert frames.shape == (3, 5, 2, 3, 4) and frames.dtype == torch.float32
    assert lengths.tolist() == [2, 5, 3] and lengths.dtype == torch.int64
    assert labels.tolist() == [7, 1, 0] and labels.dtype == torch.int64
    for row, length in zip(frames, lengths, strict=True):
        assert (row[:length] == 1).all() and (row[length:] == 0).all()


def test_dataset_knows_its_part(make_dataset, random_recordings):
    dataset = make_dataset()
    frames, label = dataset[3]
    assert len(dataset) == 30 and frames.dtype == torch.float32 and frames.shape == (5, 2, 34, 34)
    assert label == 8 and frames.sum() == len(random_recordings(40).recording(8))


def test_clip_limits_counts(make_dataset):
    binning = Binning(num_steps=1, downsample=17)
    assert make_dataset(binning)[3][0].max() > 1
    binary = make_dataset(binning, clip=1)[3][0]
    assert set(binary.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="clip"):
        make_dataset(clip=0)


def test_sampler_shuffles_each_epoch_anew_and_by_seed():
    sampler = EpochSampler(20, seed=5)
    first, second = list(sampler), list(sampler)
    assert sorted(position for position, _ in first) == list(range(20))
    assert {epoch for _, epoch in first} == {0} and {epoch for _, epoch in second} == {1}
    assert [position for position, _ in first] != [position for position, _ in second]
    assert list(EpochSampler(20, seed=5)) == first
    assert list(EpochSampler(20, seed=6)) != first


def test_sampler_resumes_at_an_epoch():
    sampler = EpochSampler(20)
    passes = [list(sampler) for _ in range(3)]
    resumed = EpochSampler(20)
    resumed.set_epoch(2)
    assert list(resumed) == passes[2]


def test_workers_make_no_difference(make_dataset):
    """Neither to the order nor to the augmentation, over two epochs with workers that stay alive."""
    dataset = make_dataset(augmentation=Augmentation(max_shift=2, event_drop=0.3), seed=4)
    alone, helped = loader(dataset), loader(dataset, num_workers=2, persistent_workers=True)
    epochs = []
    for _ in range(2):
        batches = list(zip(alone, helped, strict=True))
        for ours, theirs in batches:
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)
        epochs.append(batches[0][0][0])
    assert not torch.equal(epochs[0], epochs[1])


def test_augmentation_depends_on_seed_epoch_and_sample(make_dataset):
    augmentation = Augmentation(max_shift=3)
    dataset, other_seed = make_dataset(augmentation=augmentation), make_dataset(augmentation=augmentation, seed=1)
    again = [dataset[3, epoch][0] for epoch in range(6)]
    assert all(torch.equal(a, dataset[3, epoch][0]) for epoch, a in enumerate(again))
    assert len({a.numpy().tobytes() for a in again}) > 1
    assert any(not torch.equal(a, other_seed[3, epoch][0]) for epoch, a in enumerate(again))


def test_events_are_dropped_before_clipping(make_dataset):
    """A pixel with many events survives the loss of one, which dropping after clipping would not allow."""
    binning = Binning(num_steps=1, downsample=34)
    dataset = make_dataset(binning, clip=1, augmentation=Augmentation(event_drop=0.5))
    plain = make_dataset(binning)
    rich = [i for i in range(30) if plain[i][0].min() > 12]
    assert rich and all(dataset[i, epoch][0].min() == 1 for i in rich for epoch in range(5))


def test_distributed_training_splits_the_epoch(make_dataset):
    """Lightning wraps the sampler: ranks see disjoint samples of the same epoch."""
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

    ranks = [DistributedSamplerWrapper(EpochSampler(30), num_replicas=2, rank=rank) for rank in (0, 1)]
    orders = []
    for epoch in (0, 3):
        for rank in ranks:
            rank.set_epoch(epoch)
        pairs = [list(rank) for rank in ranks]
        assert sorted(position for position, _ in pairs[0] + pairs[1]) == list(range(30))
        assert {e for _, e in pairs[0] + pairs[1]} == {epoch}
        orders.append(pairs[0])
    assert orders[0] != orders[1]
