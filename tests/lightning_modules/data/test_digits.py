import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_modules
from lightning_modules.data import CameraSettings, DigitSettings, EventDigits, PackedEvents, generate_digit_events
from lightning_modules.data.archive import read_archive
from lightning_modules.data.digits import load_digit_images

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

ROOT = Path(lightning_modules.__file__).parents[1]

SAVE_120_DIGITS = """
import sys
from lightning_modules.data import generate_digit_events
from pathlib import Path
from lightning_modules.data.archive import write_archive
from lightning_modules.data.digits import load_digit_images
images, labels = load_digit_images()
write_archive(Path(sys.argv[1]), generate_digit_events(images[:120], labels[:120]).to_arrays())
"""


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.to_arrays().values(), b.to_arrays().values(), strict=True))


def test_same_seed_same_events(some_digits):
    images, labels = load_digit_images()
    assert same(generate_digit_events(images[:120], labels[:120]), some_digits)


def test_another_process_makes_the_same_events(some_digits, tmp_path):
    """With another number of threads and another order of hashes."""
    changed = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    path = tmp_path / "there.npz"
    subprocess.run([sys.executable, "-c", SAVE_120_DIGITS, str(path)], env={**os.environ, **changed}, check=True)
    assert same(PackedEvents.from_arrays(read_archive(path), (34, 34), str(path)), some_digits)


def test_other_seed_other_events(some_digits):
    images, labels = load_digit_images()
    other = generate_digit_events(images[:3], labels[:3], DigitSettings(seed=1))
    assert not np.array_equal(other.recording(0), some_digits.recording(0))


def test_a_recording_does_not_depend_on_its_neighbours_or_the_order(some_digits):
    images, labels = load_digit_images()
    for indices in ([57], [99, 3, 57, 4], list(range(40, 60))[::-1]):
        some = generate_digit_events(images[indices], labels[indices], indices=indices)
        position = indices.index(57)
        np.testing.assert_array_equal(some.recording(position), some_digits.recording(57))


def test_events_are_about_as_many_as_in_nmnist_and_balanced(some_digits):
    counts = np.diff(some_digits.offsets)
    assert 3000 < counts.mean() < 5000
    assert counts.min() > 1000
    assert 0.4 < some_digits.polarities().mean() < 0.6


def test_events_lie_on_the_sensor_and_in_time(some_digits):
    for i in range(0, 120, 17):
        events = some_digits.recording(i)
        assert (np.diff(events["t"]) >= 0).all()
        assert 0 <= events["t"][0] and events["t"][-1] < 300_000
        assert events["x"].max() < 34 and events["y"].max() < 34


def test_saccades_are_fast_in_the_middle_and_rest_between(some_digits):
    rate, _ = np.histogram(some_digits.times(), bins=30, range=(0, 300_000))
    middles, rests = rate[[4, 5, 14, 15, 24, 25]], rate[[9, 10, 19, 20]]
    assert middles.min() > 3 * rests.max()


def test_edges_move_along_the_triangle(some_digits):
    """Down right, up right, back left: the middle of the events follows."""
    t = some_digits.times()

    def middle(low, high):
        chosen = (t >= low * 1000) & (t < high * 1000)
        return some_digits.x[chosen].mean(), some_digits.y[chosen].mean()

    (x0, y0), (x1, y1), (x2, y2), (x3, _) = middle(0, 20), middle(85, 115), middle(185, 215), middle(280, 300)
    assert x1 - x0 > 1 and y1 - y0 > 2
    assert x2 - x1 > 1 and y1 - y2 > 2
    assert x2 - x3 > 2


def test_bright_front_edge_is_on_and_back_edge_off(some_digits):
    """In the third saccade strokes move left: ON events lie left of OFF events."""
    t, p = some_digits.times(), some_digits.polarities()
    last = (t > 220_000) & (t < 280_000)
    assert some_digits.x[last & p].mean() < some_digits.x[last & ~p].mean() - 0.5


def test_summed_events_tell_the_digits_apart(some_digits):
    """A linear classifier, trained on 80 recordings and tested on 40, is far above chance (0.1)."""
    from sklearn.linear_model import LogisticRegression

    images = np.zeros((120, 17, 17))
    owner = np.repeat(np.arange(120), np.diff(some_digits.offsets))
    np.add.at(images, (owner, some_digits.y // 2, some_digits.x // 2), 1)
    flat, labels = images.reshape(120, -1) / images.max(), some_digits.labels
    model = LogisticRegression(C=10, max_iter=500).fit(flat[:80], labels[:80])
    assert model.score(flat[80:], labels[80:]) > 0.4


def test_without_contrast_threshold_crossings_only_noise_is_left():
    still = DigitSettings(amplitude=0.0, camera=CameraSettings(leak_hz=0, hot_pixels=0, noise_hz=5.0))
    images, labels = load_digit_images()
    counts = np.diff(generate_digit_events(images[:50], labels[:50], still).offsets)
    expected = 5.0 * 0.3 * 34 * 34
    assert abs(counts.mean() / expected - 1) < 0.15  # pixels differ in rate


def test_a_still_scene_without_noise_is_silent():
    silent = DigitSettings(amplitude=0.0, camera=CameraSettings(leak_hz=0, hot_pixels=0, noise_hz=0))
    images, labels = load_digit_images()
    assert len(generate_digit_events(images[:5], labels[:5], silent).x) == 0


def test_leak_alone_makes_on_events():
    leaky = DigitSettings(amplitude=0.0, camera=CameraSettings(leak_hz=5.0, hot_pixels=0, noise_hz=0))
    images, labels = load_digit_images()
    packed = generate_digit_events(images[:5], labels[:5], leaky)
    assert len(packed.x) > 1000 and packed.polarities().all()


def test_hot_pixels_fire_at_their_rate():
    hot = DigitSettings(amplitude=0.0, camera=CameraSettings(leak_hz=0, noise_hz=0, hot_pixels=3, hot_hz=100.0))
    images, labels = load_digit_images()
    packed = generate_digit_events(images[:40], labels[:40], hot)
    pixels, counts = np.unique(packed.y.astype(int) * 34 + packed.x, return_counts=True)
    assert len(pixels) == 3
    np.testing.assert_allclose(counts / (40 * 0.3), 100.0, rtol=0.15)


def test_a_pixel_rests_for_the_refractory_period():
    settings = DigitSettings(camera=CameraSettings(refractory_us=5000, leak_hz=0, noise_hz=0, hot_pixels=0))
    images, labels = load_digit_images()
    events = generate_digit_events(images[:1], labels[:1], settings).recording(0)
    pixel = events["y"].astype(int) * 34 + events["x"]
    gaps = [np.diff(events["t"][pixel == p]).min(initial=10**6) for p in np.unique(pixel)]
    assert min(gaps) >= 4999  # both ends are rounded down to a microsecond


def test_higher_threshold_fewer_events():
    images, labels = load_digit_images()
    counts = [
        len(generate_digit_events(images[:5], labels[:5], DigitSettings(camera=CameraSettings(threshold=th))).x)
        for th in (0.15, 0.3, 0.6)
    ]
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensor_size": 0}, "sensor_size"),
        ({"seed": -1}, "seed"),
        ({"saccade_us": 1500}, "multiple"),
        ({"variation": 5.0}, "variation"),
        ({"contrast": float("nan")}, "contrast"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DigitSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 0.0}, "threshold"), ({"mismatch": 0.5}, "mismatch"), ({"noise_hz": -1.0}, "noise_hz")],
)
def test_camera_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CameraSettings(**settings)


def test_too_many_hot_pixels_are_refused():
    images, labels = load_digit_images()
    with pytest.raises(ValueError, match="the sensor has 100 pixels"):
        generate_digit_events(
            images[:1], labels[:1], DigitSettings(sensor_size=10, camera=CameraSettings(hot_pixels=101))
        )


def test_dataset_gives_structured_events(some_digits, private_cache):
    dataset = EventDigits(num_samples=12)
    events, label = dataset[5]
    np.testing.assert_array_equal(events, some_digits.recording(5))
    assert label == 5 and len(dataset) == 12 and dataset.sensor_size == (34, 34, 2) and len(dataset.classes) == 10
    assert len(list(private_cache.glob("event-digits-*.npz"))) == 1


def test_dataset_takes_a_transform_of_tonic():
    transforms = pytest.importorskip("tonic.transforms", reason="tonic is not installed")
    plain = EventDigits(num_samples=2)
    to_frame = transforms.ToFrame(sensor_size=plain.sensor_size, n_time_bins=5)
    frames, _ = EventDigits(num_samples=2, transform=to_frame)[1]
    assert frames.shape == (5, 2, 34, 34)
    assert frames.sum() > 0.99 * len(plain[1][0])


def test_dataset_reads_the_cache_the_second_time(monkeypatch):
    first = EventDigits(num_samples=10)

    def fail(*args, **kwargs):
        raise AssertionError("generated although the cache holds it")

    monkeypatch.setattr("lightning_modules.data.event_digits.generate_digit_events", fail)
    assert same(EventDigits(num_samples=10).packed, first.packed)
    with pytest.raises(AssertionError, match="although"):
        EventDigits(dataclasses.replace(first.settings, seed=1), num_samples=10)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'stllr-plugin\[data\]'"):
        EventDigits(num_samples=10)
