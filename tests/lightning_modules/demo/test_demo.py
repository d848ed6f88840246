"""The demo draws its picture, prints three lines, and what it shows of a synapse is right."""

import multiprocessing
import struct

import pytest
import torch

from lightning_modules.demo import demo, inspection
from lightning_modules.demo.demo import choose_samples, main
from lightning_modules.memory import PeakMemoryMeter
from stllr_plugin import STLLRRule
from tests.lightning_modules.helpers import make_batch, make_network


def png_size(path):
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])


def test_demo_draws_and_summarises(small_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        demo, "measure_peak_memory", lambda prepare, algorithm, *args: {"stllr": 7e6, "bptt": 84e6}[algorithm]
    )
    assert main([f"--output={tmp_path / 'out'}", "--epochs=1", "--samples=80", "--accelerator=cpu"]) == 0
    assert png_size(tmp_path / "out" / "demo.png") == (2100, 1620)
    assert (tmp_path / "out" / "best.ckpt").is_file()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("test accuracy", "peak memory"))]
    assert len(lines) == 3
    assert "7.0 MB" in lines[1] and "84 MB" in lines[2] and "12.0 x" in lines[2]


@pytest.mark.slow
def test_demo_reaches_95_percent_and_saves_memory(small_digits, tmp_path):
    result = demo.run(tmp_path)
    assert result.accuracy >= 0.95
    assert result.memory["bptt"] > 5 * result.memory["stllr"]


def peak_of(algorithm, steps):
    work, meter = demo.prepare_batch(algorithm, steps, 16), PeakMemoryMeter()
    meter.start()
    work()
    return meter.peak()


def test_memory_of_stllr_does_not_grow_with_time_and_bptts_does():
    """From small to large in one process of its own, whose start takes longest."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        stllr, half, whole = process.starmap(peak_of, [("stllr", 40), ("bptt", 20), ("bptt", 40)], chunksize=3)
    assert whole > 1.6 * half
    assert whole > 5 * stllr


def test_recording_equals_the_rule_written_out():
    """Traces and both terms of the eligibility of one synapse, from the spikes and membranes of the layers."""
    network, rule = make_network(), STLLRRule.preset("dvs_gesture")
    frames = make_batch(samples=1, steps=8)[0][0]
    recording = inspection.record_sequence(network, frames, rule, "features.lif2")
    assert recording.edge == "features.conv2->features.lif2"
    assert recording.spikes.shape[0] == 8

    inputs, trace, expected_trace = recording.inputs, 0.0, []
    assert set(inputs.round(decimals=4).tolist()) <= {0.0, 1.0}  # spikes of the layer below
    for x in inputs:
        trace = rule.lambda_pre * trace + x
        expected_trace.append(trace)
    torch.testing.assert_close(recording.pre, torch.stack(expected_trace))
    assert (recording.psi > -1e-6).all() and (recording.psi <= 0.3 + 1e-6).all()  # the triangle's height
    torch.testing.assert_close(recording.causal, recording.psi * recording.pre)
    before = torch.cat((torch.zeros(1), recording.post[:-1]))
    torch.testing.assert_close(recording.noncausal, -inputs * before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert network.training


def test_samples_for_the_picture():
    labels = torch.tensor([3, 3, 8, 5, 0, 2, 7, 4, 9, 6, 1])
    predictions = labels.clone()
    assert [int(labels[i]) for i in choose_samples(labels, predictions)] == [3, 8, 5, 0, 2, 7, 4, 9]
    predictions[1] = 5
    chosen = choose_samples(labels, predictions)
    assert len(chosen) == 8 and chosen[-1] == 1
    assert choose_samples(torch.tensor([1]), torch.tensor([2])) == [0]
