"""Settings of the whole suite."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    # the networks of the tests are far too small to be spread over cores
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def leave_modules_to_rest() -> None:
    """A full collection looks at all of torch and Lightning: half a second for each training that is measured."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forget_snntorch_instances() -> Iterator[None]:
    """snnTorch keeps every neuron that was ever made in a list; a test leaves none behind for the next."""
    yield
    if "snntorch" in sys.modules:
        sys.modules["snntorch"].SpikingNeuron.instances.clear()
