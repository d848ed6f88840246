"""Spoken digits: the artificial cochlea, the file it writes, both splits, the data set's two forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.data import Cochlea, EventDataError, FSDDDataModule, SpikeFile, convert_fsdd, read_fsdd
from tests.lightning_modules.small_data import write_speech

pytest.importorskip("h5py", reason="h5py is not installed")
wavfile = pytest.importorskip("scipy.io", reason="scipy is not installed").wavfile

REAL_FILE = Path(__file__).parents[3].parent / "shared" / "data" / "fsdd.npz"
SMALL = Cochlea(channels=70)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "speech.npz")


def tone(hz, seconds=0.3, rate=8000):
    time = np.arange(int(seconds * rate)) / rate
    return np.sin(2 * np.pi * hz * time)


# The cochlea.


@pytest.mark.parametrize("hz", [200, 700, 1500, 3200])
def test_a_tone_is_heard_at_its_frequency(hz):
    cochlea = Cochlea()
    _, units = cochlea(tone(hz), 8000)
    centre = np.median(units)
    assert abs(cochlea.centres()[int(centre)] / hz - 1) < 0.1


def test_envelope_of_a_tone_is_its_amplitude():
    cochlea = Cochlea(channels=3, lowest_hz=500, highest_hz=2000)
    envelope = cochlea.envelopes(3.0 * tone(500, 0.5), 8000)
    assert envelope[0, 100:450].mean() == pytest.approx(3.0, rel=0.02)
    assert envelope[2].max() < 0.05 * envelope[0].max()


def test_level_does_not_matter_and_nothing_is_left_to_chance():
    sound = tone(440) + 0.3 * tone(1000)
    first, again, louder = SMALL(sound, 8000), SMALL(sound, 8000), SMALL(1000 * sound, 8000)
    for other in (again, louder):
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    times, units = first
    assert (np.diff(times) >= 0).all() and times.min() >= 0 and times.max() < 0.36
    assert units.dtype == np.uint16 and units.max() < 70


def test_onsets_are_answered_most():
    times, _ = SMALL(tone(600, 0.6), 8000)
    early, late = ((times >= low) & (times < low + 0.1) for low in (0.0, 0.4))
    assert early.sum() > 1.3 * late.sum() > 0


def test_silence_gives_no_spikes():
    times, units = SMALL(np.zeros(2000), 8000)
    assert len(times) == len(units) == 0


def test_sounds_that_do_not_fit():
    for arguments, message in (
        ((np.zeros(100), 11025), "multiple of 2000"),
        ((np.zeros(100), 6000), "more than twice"),
        ((np.zeros((100, 2)), 8000), "one channel"),
    ):
        with pytest.raises(ValueError, match=message):
            SMALL(*arguments)
    for settings in ({"channels": 0}, {"lowest_hz": 0.0}, {"adaptation": 2.0}, {"gain": 0.0}):
        with pytest.raises(ValueError, match="cochlea needs channels|must be positive"):
            Cochlea(**settings)


# The file.


def test_the_file_is_in_shds_layout_and_made_once(speech, private_cache):
    path = convert_fsdd(speech, SMALL, progress=False)
    file, digits = SpikeFile(path, 10, 70), read_fsdd(speech)
    np.testing.assert_array_equal(file.labels, digits.labels)
    np.testing.assert_array_equal(file.extra["speaker"], digits.speaker)
    np.testing.assert_array_equal(file.extra["index"], digits.index)
    low, high = digits.offsets[17:19]
    times, units = SMALL(digits.audio[low:high], digits.rate)
    own = file.read(17, 18)
    np.testing.assert_array_equal(own.units, units)
    np.testing.assert_allclose(own.times, times, atol=1e-3)
    stamp = path.stat().st_mtime_ns
    assert convert_fsdd(speech, SMALL, progress=False) == path and path.stat().st_mtime_ns == stamp
    assert convert_fsdd(speech, Cochlea(channels=60), progress=False) != path


def test_a_folder_of_wav_files_gives_the_same(speech, tmp_path):
    digits = read_fsdd(speech)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for i in range(len(digits)):
        name = f"{digits.labels[i]}_{digits.speakers[digits.speaker[i]]}_{digits.index[i]}.wav"
        wavfile.write(recordings / name, digits.rate, digits.audio[digits.offsets[i] : digits.offsets[i + 1]])
    for folder in (tmp_path, recordings):
        own = read_fsdd(folder)
        assert own.speakers == digits.speakers and own.rate == 8000
        for field in ("audio", "offsets", "labels", "speaker", "index"):
            np.testing.assert_array_equal(getattr(own, field), getattr(digits, field))
    broken = recordings / "0_ada_0.wav"
    broken.write_bytes(broken.read_bytes()[:20])
    with pytest.raises(EventDataError, match=r"0_ada_0\.wav"):
        read_fsdd(recordings)


# The data module.


def module(path, **options):
    made = FSDDDataModule(path, cochlea=SMALL, progress=False, num_steps=20, **options)
    made.prepare_data()
    made.setup()
    return made


def extra(made, part, name):
    return made.dataset(part)._spikes.file.extra[name][made.dataset(part).indices]


def test_official_split(speech):
    made = module(speech, batch_size=6)
    frames, lengths, labels = next(iter(made.train_dataloader()))
    assert frames.shape == (6, 20, 70) and frames.sum() > 0 and lengths.tolist() == [20] * 6 and labels.max() < 10
    assert (extra(made, "test", "index") < 5).all() and len(made.dataset("test")) == 150
    for part, size in (("train", 81), ("val", 9)):
        assert (extra(made, part, "index") >= 5).all() and len(made.dataset(part)) == size
    assert not set(made.dataset("train").indices) & set(made.dataset("val").indices)
    assert made.report()["split"].startswith("the official test part (recordings 0 to 4")
    assert made.report()["dataset"].startswith("cochleagram spikes derived from FSDD")


def test_speakers_left_out(speech):
    made = module(speech, split="speakers", test_speakers=["cyd"], val_fraction=0.25)
    assert set(extra(made, "test", "speaker")) == {2} and len(made.dataset("test")) == 80
    for part, size in (("train", 120), ("val", 40)):
        assert set(extra(made, part, "speaker")) == {0, 1} and len(made.dataset(part)) == size
    assert "speakers cyd left out for the test; 40 of the other 160" in made.report()["split"]
    made = module(speech, split="speakers", test_speakers=["cyd"], val_speakers=["ada"])
    assert set(extra(made, "val", "speaker")) == {0} and set(extra(made, "train", "speaker")) == {1}


def test_what_does_not_fit_is_refused(speech, tmp_path):
    with pytest.raises(EventDataError, match=r"no speakers \['eve'\]; it has \['ada', 'bob', 'cyd'\]"):
        module(speech, split="speakers", test_speakers=["eve"])
    with pytest.raises(ValueError, match="split='random' is not known"):
        FSDDDataModule(speech, split="random")
    with pytest.raises(FileNotFoundError, match="expected FSDD"):
        read_fsdd(tmp_path / "none")
    with pytest.raises(EventDataError, match="no recordings named"):
        read_fsdd(tmp_path)
    with np.load(speech) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "a.npz", **{**arrays, "labels": arrays["labels"][:-1]})
    with pytest.raises(EventDataError, match="offsets must run from 0"):
        read_fsdd(tmp_path / "a.npz")
    arrays.pop("speaker")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EventDataError, match=r"arrays \['speaker'\] are missing"):
        read_fsdd(tmp_path / "a.npz")


@pytest.mark.skipif(not REAL_FILE.exists(), reason="no real recordings beside the project (../shared/data)")
def test_real_recordings():
    digits = read_fsdd(REAL_FILE)
    assert len(digits) == 3000 and len(digits.speakers) == 6 and (digits.index < 5).sum() == 300
    for i in (0, 1500, 2999):
        sound = digits.audio[digits.offsets[i] : digits.offsets[i + 1]]
        times, units = Cochlea()(sound, digits.rate)
        assert 3000 < len(times) < 20_000  # SHD has some 8000 spikes a word
        assert len(np.unique(units)) > 350 and times.max() < len(sound) / digits.rate + 0.06
        assert torch.bincount(torch.from_numpy(units.astype(np.int64))).max() < 200 * (len(sound) / digits.rate)
