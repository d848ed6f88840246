"""Small recordings that the data tests share."""

import numpy as np
import pytest

from lightning_modules.data import PackedEvents, generate_digit_events, make_events
from tests.lightning_modules.data.packing import pack


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("STLLR_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def some_digits():
    """The first 120 digits as recordings."""
    load_digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits
    digits = load_digits()
    return generate_digit_events(digits.images[:120] / 16, digits.target[:120])


@pytest.fixture
def random_recordings():
    """Makes ``count`` recordings of random events on a 34x34 sensor, with every class in turn."""

    def make(count: int, seed: int = 0, duration_us: int = 300_000, events: int = 50) -> PackedEvents:
        random = np.random.default_rng(seed)
        recordings = [
            make_events(
                random.integers(0, 34, n),
                random.integers(0, 34, n),
                np.sort(random.integers(0, duration_us, n)),
                random.integers(0, 2, n),
            )
            for n in random.integers(1, events, count)
        ]
        return pack(recordings, np.arange(count) % 10, (34, 34))

    return make
