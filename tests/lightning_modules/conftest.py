"""Fixtures for the Lightning tests: a cache of their own, and a stand-in for the N-MNIST file."""

import pytest

from lightning_modules.data import load_digit_events, write_nmnist_subset


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """A folder of its own as the current one: a trainer without ``default_root_dir`` leaves checkpoints there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def event_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("stllr-cache")


@pytest.fixture
def small_digits(monkeypatch, event_cache):
    """Event recordings are cached for the session, not in the user's home."""
    monkeypatch.setenv("STLLR_CACHE", str(event_cache))


@pytest.fixture(scope="session")
def nmnist_file(tmp_path_factory, event_cache):
    """A file in the format of the N-MNIST subset, filled with simulated digits."""
    path = tmp_path_factory.mktemp("nmnist") / "subset.npz"
    write_nmnist_subset(path, load_digit_events(num_samples=80, cache_dir=event_cache), 60)
    return path
