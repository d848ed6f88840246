"""The benchmark of speed and memory runs, has everyone in its results, and counts right."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("snntorch")
pytest.importorskip("jsonargparse")

from benchmarks.speed import contenders
from benchmarks.speed.__main__ import SETTINGS, main, read
from benchmarks.speed.curves import slope
from benchmarks.speed.long import judged as judged_long
from benchmarks.speed.measure import alternate, paired_ratio, spread
from benchmarks.speed.memory import judged as judged_memory
from benchmarks.speed.networks import build_network, build_spikingjelly, has_spikingjelly
from benchmarks.speed.settings import CONTENDERS, Curves, Long, Memory, SettingsError, Workload, load
from benchmarks.speed.timing import _judged

needs_spikingjelly = pytest.mark.skipif(not has_spikingjelly(), reason="SpikingJelly is not installed")

SMALL = """
title: small
network: {class: RecurrentSNN, in_features: 6, hidden: 5, num_classes: 3}
input_shape: [6]
classes: 3
steps: 7
batch: 2
densities: [0.3]
window: 3
rounds: 2
cases:
  - supervise_last: 2
    contenders: [CONTENDERS]
    targets:
      - {contender: stllr_unsupervised, at_most: 1.15, against: forward}
      - {contender: stllr_run, at_most: 0.4}
memory:
  ratio_steps: 7
  ratio_targets: {stllr_run: 0.5}
  steps: {snntorch_bptt: [7], stllr_run: [7]}
"""
FLAGS = ("products", "autocast")
CURVES = """
workload:
  title: small
  network: {class: SpikingMLP, in_features: 4, hidden: [3], num_classes: 2}
  input_shape: [4]
  classes: 2
  steps: 7
  batch: 2
  densities: [0.3]
  window: 3
  rounds: 1
  cases: [{contenders: [stllr_run]}]
curves:
  - {name: width, key: network.hidden, values: [[2], [4]], sizes: [2, 4]}
"""
LONG = """
workload:
  title: small
  network: {class: SpikingMLP, in_features: 4, hidden: [3], num_classes: 2}
  input_shape: [4]
  classes: 2
  steps: 12
  batch: 2
  densities: [0.3]
  window: 2
  cases: [{contenders: [stllr_attached, stllr_run]}]
block: 4
"""


@pytest.fixture
def small() -> str:
    return SMALL.replace("[CONTENDERS]", f"[{', '.join(CONTENDERS)}]")


@pytest.fixture
def workload(small, tmp_path) -> Workload:
    path = tmp_path / "small.yaml"
    path.write_text(small)
    return load(path, Workload)


def test_everyone_is_in_the_results(small, tmp_path, monkeypatch):
    def measure(prepare, *arguments, device):
        prepare(*arguments)()
        return 100

    monkeypatch.setattr("benchmarks.speed.memory.measure_peak_memory", measure)
    monkeypatch.setattr("benchmarks.speed.long.in_new_process", lambda function, *arguments: function(*arguments))
    threads = torch.get_num_threads()
    folder, output = tmp_path / "settings", tmp_path / "out"
    folder.mkdir()
    for name, text in (("small", small), ("curves", CURVES), ("long", LONG)):
        (folder / f"{name}.yaml").write_text(text)
    assert main(["--settings", str(folder), "--output", str(output), "--threads", str(threads)]) == 0

    results = json.loads((output / "results.json").read_text())
    (case,) = results["workloads"][0]["cases"]
    expected = {name for name in CONTENDERS if has_spikingjelly() or not name.startswith("spikingjelly")}
    assert set(case["contenders"]) == expected
    assert set(case["absent"]) == set(CONTENDERS) - expected
    assert all(len(values["wall_s"]["all"]) == 2 for values in case["contenders"].values())
    assert case["contenders"]["snntorch_bptt"]["wall_to_bptt"]["all"] == [1.0, 1.0]
    assert all(target["measured"] > 0 for target in case["targets"])
    assert results["memory"][0]["peak_bytes"]["stllr_run"] == {"7": 100}
    assert results["memory"][0]["targets"][0]["measured"] == 1.0 and not results["memory"][0]["targets"][0]["met"]
    assert results["curves"]["curves"][0]["axis"] == [2, 4]
    assert [len(blocks["wall_s"]) for blocks in results["long"]["contenders"].values()] == [3, 3]

    text = (output / "results.md").read_text()
    assert all(CONTENDERS[name] in text for name in expected)
    assert "| small, last 2 steps, density 0.3 |" in text
    assert {path.name for path in output.glob("*.png")} == {
        "time_small.png", "memory_small.png", "curves.png", "long.png",
    }  # fmt: skip


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(workload):
    from benchmarks.speed.memory import measure_memory

    found = measure_memory("small", workload, "cpu", lambda text: None)
    assert not found["absent"] and set(found["peak_bytes"]) == {"snntorch_bptt", "stllr_run"}


def test_a_contender_that_cannot_take_part_is_named(workload, monkeypatch):
    from benchmarks.speed.timing import Options, time_case

    monkeypatch.setattr(contenders, "has_spikingjelly", lambda: False)

    def broken(*arguments):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(contenders._Made, "stllr_run", broken)
    case = time_case(workload, workload.cases[0], 0.3, Options(rounds=1))
    assert case["absent"] == {
        "stllr_run": "failed: RuntimeError: no compiler",
        "spikingjelly_bptt": "SpikingJelly is not installed",
        "spikingjelly_sltt": "SpikingJelly is not installed",
    }
    assert case["targets"][1]["met"] is None


def test_without_the_device_it_says_so(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "settings"
    folder.mkdir()
    text = small.replace(f"[{', '.join(CONTENDERS)}]", "[forward, stllr_unsupervised, stllr_run, snntorch_bptt]")
    (folder / "small.yaml").write_text(text)
    arguments = ["--settings", str(folder), "--output", str(tmp_path), "--only", "small", "--device", "cuda"]
    assert main([*arguments, "--rounds", "1", "--threads", str(torch.get_num_threads())]) == 0
    assert "no CUDA device was found" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"]["device"] == "cpu"
    assert "Run on the CPU: no CUDA device was found" in (tmp_path / "results.md").read_text()


def test_bfloat16(workload, tmp_path, monkeypatch):
    """Autocast is on for all, and the learners multiply in bfloat16."""
    seen = set()
    plain = contenders._Made.learner

    def watched(self, network, **options):
        learner = plain(self, network, **options)
        seen.add((learner.product_dtype, self.workload.autocast))
        return learner

    monkeypatch.setattr(contenders._Made, "learner", watched)
    output = tmp_path / "results"
    assert main(["--settings", str(tmp_path), "--only", "small", "--output", str(output), "--bfloat16", *FLAGS]) == 0
    assert seen == {(torch.bfloat16, True)}
    assert "bfloat16 products; bfloat16 autocast" in (output / "results.md").read_text()


def test_contenders_alternate():
    calls: list[str] = []
    found = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_statistics():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "all": [4.0, 1.0, 3.0, 2.0, 5.0]}
    assert spread([2.0])["q3"] == 2.0
    assert paired_ratio([1.0, 20.0, 3.0], [2.0, 40.0, 2.0])["median"] == 0.5
    # Four times the time for four times the size above the middle; what is below does not count.
    assert slope([1, 2, 4, 8, 16], [9.0, 9.0, 1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert slope([10, 20], [3.0, 12.0]) == pytest.approx(2.0)


def test_targets():
    times = {"forward": [(1.0, 1.0), (2.0, 4.0)], "stllr_unsupervised": [(1.1, 2.0), (2.2, 8.0)]}
    target = {"contender": "stllr_unsupervised", "at_most": 1.15, "against": "forward"}
    assert _judged(target, times) == {**target, "measured": pytest.approx(1.1), "measured_cpu": 2.0, "met": True}
    assert _judged({**target, "at_most": 1.05}, times)["met"] is False
    assert _judged({**target, "against": "snntorch_bptt"}, times)["met"] is None

    memory = Memory(
        steps={"snntorch_bptt": [20], "stllr_run": [20, 200]}, ratio_targets={"stllr_run": 0.3}, flat=["stllr_run"]
    )
    ratio, flat = judged_memory(memory, {"snntorch_bptt": {20: 800}, "stllr_run": {20: 200, 200: 220}})
    assert (ratio["measured"], ratio["met"]) == (0.25, True)
    assert (flat["measured"], flat["met"]) == (pytest.approx(1.1), False)
    assert judged_memory(memory, {"stllr_run": {20: 200}})[0]["met"] is None


def test_targets_of_a_long_sequence(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(LONG)
    blocks = {"cpu_s": [1.0, 9.0, 1.04], "wall_s": [1.0, 1.0, 3.0], "peak_bytes": [1_000_000, 1_000_000, 3_000_000]}
    time, memory = judged_long("stllr_run", load(path, Long), blocks, "cpu")
    assert (time["measured"], time["met"]) == (pytest.approx(1.04), True)
    assert (memory["measured"], memory["met"]) == (2.0, False)


@needs_spikingjelly
@pytest.mark.parametrize("online", [False, True])
def test_spikingjelly_has_the_same_layers(workload, online):
    pytest.importorskip("spikingjelly.activation_based.layer")
    for network in (
        workload.network,
        {"class": "SpikingVGG", "size": 8, "layers": [3, "P", 4], "num_classes": 3, "weight_standardization": False},
    ):
        ours = build_network(workload.changed({"network": network}))
        theirs = build_spikingjelly(workload.changed({"network": network}), online=online)
        here, there = ([tuple(p.shape) for p in net.parameters()] for net in (ours, theirs))
        assert sorted(here) == sorted(there)
        # Where nothing has fired yet, the two kinds of reset do not differ: the same output.
        shape = [2, 8, 8] if network["class"] == "SpikingVGG" else [6]
        x = 0.01 * torch.rand(3, 2, *shape)
        with torch.no_grad():
            expected = torch.stack([ours(frame) for frame in x])
            found = torch.stack([theirs(frame).clone() for frame in x]) if online else theirs(x)
        torch.testing.assert_close(found, expected)


def test_the_settings_that_come_with_it():
    for folder in (SETTINGS, SETTINGS / "quick"):
        workloads, curves, long = read(folder)
        assert set(workloads) == {"shd", "vgg9"}
        assert isinstance(curves, Curves) and isinstance(long, Long)
        for workload in workloads.values():
            for changes in workload.on_accelerator:
                workload.changed(changes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nsteps: 7\n", "\nsteps: many\n", "settings.steps"),
        ("\nsteps: 7\n", "\nsteps: -7\n", "steps=-7: expected a number above 0"),
        ("\nsteps: 7\n", "\n", "settings.steps"),
        ("\nsteps: 7\n", "\nsteps: 7\nstps: 8\n", "stps"),
        ("[0.3]", "[2.0]", "2.0 is no share of ones"),
        ("supervise_last: 2", "supervise_last: 8", "supervise_last=8, but there are 7 steps"),
        ("[CONTENDERS]", "[forward, stlr_run]", "no contender stlr_run; there are snntorch_bptt"),
        ("[CONTENDERS]", "[forward]", "a target needs stllr_unsupervised"),
        ("ratio_targets: {stllr_run", "ratio_targets: {stllr_online", "memory.steps has nothing for stllr_online"),
        ("class: RecurrentSNN, ", "", "say which class"),
        (SMALL, "- 1\n", "found list"),
        (SMALL, "a: [\n", "small.yaml"),
    ],
)
def test_bad_settings(old, new, message, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace(old, new).replace("[CONTENDERS]", f"[{', '.join(CONTENDERS)}]"))
    with pytest.raises(SettingsError, match=message) as error:
        load(path, Workload)
    assert "small.yaml" in str(error.value)


def test_bad_networks_and_changes(workload):
    with pytest.raises(SettingsError, match="no class 'Nothing'"):
        build_network(workload.changed({"network.class": "Nothing"}))
    with pytest.raises(SettingsError, match="layers"):
        build_network(workload.changed({"network.layers": 3}))
    with pytest.raises(SettingsError, match="'bach' is nothing that a workload has"):
        workload.changed({"bach": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "shdd"], "no part shdd; there are shd, vgg9, memory, curves, long"),
        (["--device", "tpu"], "--device"),
        (["--settings", "nowhere"], "there are no settings files"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    threads = ["--threads", str(torch.get_num_threads())]
    assert main([*arguments, *threads, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
