"""The example and the benchmark that go with the Lightning modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.lightning_modules.small_data import write_ecg

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_example_own_network_learns():
    accuracies = load(ROOT / "examples" / "own_network.py").main(epochs=2)
    assert set(accuracies) == {"stllr", "bptt"} and min(accuracies.values()) > 0.8


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_example_unsupervised_stdp_finds_more_than_random_weights_do(small_digits):
    accuracies = load(ROOT / "examples" / "unsupervised_stdp.py").main(epochs=10, samples=500)
    assert accuracies["STDP"]["linear"] > accuracies["random weights"]["linear"] + 0.1


def test_benchmark_table():
    benchmark = load(ROOT / "benchmarks" / "nmnist_subset.py")
    results = {
        "bptt": benchmark.Result([0.96, 0.97, 0.98], [60.0, 50.0, 55.0], 44_000_000),
        "stllr": benchmark.Result([0.95], [60.0], 12_000_000),
    }
    lines = benchmark.table(results, epochs=12).splitlines()
    assert "12 epochs" in lines[0]
    assert lines[2] == "| BPTT | **97.0%** ± 1.0 | 96.0% / 97.0% / 98.0% | 55 | 44 MB |"
    assert lines[3].startswith("| S-TLLR | **95.0%**")


def test_benchmark_without_data_says_so(monkeypatch, capsys, tmp_path):
    benchmark = load(ROOT / "benchmarks" / "nmnist_subset.py")
    monkeypatch.setattr(sys, "argv", ["nmnist_subset.py", str(tmp_path / "none.npz")])
    assert benchmark.main() == 0
    assert capsys.readouterr().out.startswith("Skipped: there is no")


@pytest.mark.slow
def test_benchmark_runs(monkeypatch, capsys, nmnist_file, tmp_path):
    benchmark = load(ROOT / "benchmarks" / "nmnist_subset.py")
    sizes = ["--data.train_size=60", "--data.val_size=20", "--data.test_size=20"]
    monkeypatch.setattr(benchmark, "QUIET", [*benchmark.QUIET, *sizes])
    monkeypatch.setattr(benchmark, "measure_peak_memory", lambda *args: 1_000_000)
    table = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["x", str(nmnist_file), "--seeds", "0", "--epochs", "1", "--output", str(table)])
    assert benchmark.main() == 0
    assert table.read_text().count("\n") == 5


def test_recordings_table():
    benchmark = load(ROOT / "benchmarks" / "recordings.py")
    results = {
        "bptt": benchmark.Result([0.95, 0.95], [0.90, 0.92], [60.0, 50.0], 44_000_000),
        "stllr": benchmark.Result([0.95], [], [60.0]),
    }
    lines = benchmark.table(results, epochs=8).splitlines()
    assert "8 epochs" in lines[0]
    assert lines[2] == "| BPTT | **91.0%** ± 1.4 | 90.0% / 92.0% | 95.0% ± 0.0 | 55 | 44 MB |"
    assert lines[3] == "| S-TLLR |  |  | 95.0% ± 0.0 | 60 |  |"


def test_recordings_without_data_says_so(capsys, tmp_path):
    benchmark = load(ROOT / "benchmarks" / "recordings.py")
    assert benchmark.main(["fsdd", str(tmp_path / "none.npz")]) == 0
    assert capsys.readouterr().out.startswith("Skipped: there is no")


@pytest.mark.parametrize("validate", [True, False])
def test_recordings_run(validate, monkeypatch, capsys, tmp_path):
    """One epoch on small recordings; with --validate the test recordings stay untouched."""
    benchmark = load(ROOT / "benchmarks" / "recordings.py")
    monkeypatch.setattr(benchmark, "measure_peak_memory", lambda *args: 1_000_000)
    data = write_ecg(tmp_path / "ecg.npz", recordings=24, steps=60)
    arguments = ["qtdb", str(data), "--seeds", "0", "--epochs", "1", "--algorithms", "stllr", "--output"]
    arguments += [str(tmp_path / "table.md"), *(["--validate"] if validate else [])]
    options = ["--", "--data.max_skip=5", "--model.update_every=20", "--trainer.accelerator=cpu"]
    assert benchmark.main([*arguments, *options]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 3 and lines[2].startswith("| S-TLLR |  |" if validate else "| S-TLLR | **")
    said = capsys.readouterr()
    assert "validation" in said.err and ("test" in said.err) != validate
