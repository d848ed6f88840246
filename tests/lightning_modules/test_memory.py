"""Peak memory is measured, in a process of its own, and failures there are reported."""

import pytest
import torch

from lightning_modules.memory import PeakMemoryMeter, format_bytes, measure_peak_memory

MEGABYTE = 1_000_000


def prepare_allocation(megabytes):
    torch.zeros(100).sum()

    def work():
        for _ in range(3):  # the same memory again: the peak is one block, not three
            block = torch.ones(megabytes * MEGABYTE // 4)
            del block

    return work


def prepare_failure():
    raise ValueError("no such network")


def test_peak_of_a_known_allocation():
    peak = measure_peak_memory(prepare_allocation, 80)
    assert 75 * MEGABYTE < peak < 100 * MEGABYTE


def test_failure_in_the_other_process_is_reported():
    with pytest.raises(RuntimeError, match="no such network"):
        measure_peak_memory(prepare_failure)


def test_meter_starts_at_zero_and_says_what_it_measures():
    meter = PeakMemoryMeter()
    meter.start()
    held = torch.ones(10 * MEGABYTE)
    grown = meter.peak()
    assert held.numel() and grown > 0
    assert "RSS" in meter.method and "CUDA" in PeakMemoryMeter("cuda").method


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (12_300, "12 kB"), (6_100_000, "6.1 MB"), (94_470_000, "94 MB"), (1.5e9, "1.5 GB")]
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text
