"""``stllr compare`` and ``stllr ablate``: reports, going on where they were, errors that say what to do next."""

from functools import partial
from pathlib import Path

import pytest

from lightning_modules.command.cli import main
from lightning_modules.comparison import ablate, compare, measure
from lightning_modules.comparison.options import Parser
from tests.lightning_modules.comparison.test_document import assert_self_contained

CONFIGS = Path(__file__).parents[3] / "configs"
QUICKSTART = ["--config", str(CONFIGS / "quickstart.yaml")]
TINY = ["--data.num_samples=80", "--data.num_steps=6", "--model.network.init_args.channels=[4, 6]", "--epochs=1"]
TINY += ["--trainer.accelerator=cpu", "--trainer.limit_train_batches=2"]


@pytest.fixture
def quick(monkeypatch):
    """Memory is made up (measuring needs a process each), time measured once; counts what was trained."""
    trained, real = [], {compare: compare.train, ablate: ablate.train}

    def memory(prepare, arguments, num_steps, device):
        if "--model.algorithm=bptt" not in arguments:
            return 1_000_000
        if num_steps == 24:
            raise RuntimeError("The measuring process ended without an answer.")
        return 1_000_000 * num_steps

    def counting(module, experiment, variant, seed, store, *, say, **options):
        lines = []
        result = real[module](experiment, variant, seed, store, say=lines.append, **options)
        if "done before" not in lines[0]:
            trained.append((variant.name, seed))
        return result

    monkeypatch.setattr(measure, "measure_peak_memory", memory)
    monkeypatch.setattr(measure, "seconds_per_step", partial(measure.seconds_per_step, rounds=1, batches=1))
    for module in real:
        monkeypatch.setattr(module, "train", partial(counting, module))
    return trained


def test_compare_writes_a_report_and_runs_only_what_is_new(small_digits, tmp_path, quick, capsys):
    command = [
        "compare",
        *QUICKSTART,
        *TINY,
        f"--output={tmp_path / 'out'}",
        "--algorithms",
        "stllr",
        "bptt",
        "--seeds",
    ]
    assert main([*command, "1"]) == 0
    assert quick == [("S-TLLR", 0), ("BPTT", 0)]
    assert main([*command, "2"]) == 0
    assert quick[2:] == [("S-TLLR", 1), ("BPTT", 1)]
    assert "report.html" in capsys.readouterr().out

    markdown = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "epoch chosen on validation data",
        "last epoch",
        "best test epoch (chosen on test data, as the published code reports)",
        "same training batches in the same order",
        "| BPTT | 3.0 MB | 6.0 MB | 12 MB | - |",
        "| S-TLLR | 1.0 MB | 1.0 MB | 1.0 MB | 1.0 MB |",
        "45 nm",
        "4.6 pJ",
        "Horowitz",
        "EventDigits v1",
        "stllr compare --config",
        "seeds 0, 1",
    ):
        assert words in markdown, words
    assert markdown.count(" ± ") >= 8
    parser = assert_self_contained((tmp_path / "out" / "report.html").read_text())
    assert [tag for tag, _ in parser.seen].count("img") == 5

    with pytest.raises(SystemExit):  # other settings, same folder
        main([*command, "2", "--model.supervise_last=3"])
    error = capsys.readouterr().err
    assert "results of another configuration" in error and "model.supervise_last: 5 there, 3 here" in error
    assert "--output" in error


def test_ablate_writes_a_heat_map_and_a_table(small_digits, tmp_path, quick):
    command = ["ablate", *QUICKSTART, *TINY, f"--output={tmp_path / 'out'}", "--no_best_test_epoch"]
    assert main([*command, "--grid", "model.rule.alpha_post=-1,0", "model.rule.psi=triangle,null"]) == 0
    assert len(quick) == 4
    markdown = (tmp_path / "out" / "report.md").read_text()
    for words in ("heat_map.png", "| alpha_post=-1, psi=triangle |", "| alpha_post | -1 |", "One seed only"):
        assert words in markdown, words
    assert_self_contained((tmp_path / "out" / "report.html").read_text())
    assert main([*command, "--grid", "model.rule.alpha_post=-1,1", "model.rule.psi=triangle"]) == 0
    assert quick[4:] == [("alpha_post=1, psi=triangle", 0)]


def test_ablate_runs_a_named_study(small_digits, tmp_path, quick, monkeypatch):
    path = ablate.study
    monkeypatch.setattr(ablate, "study", lambda *args: path(*args)[:2])
    assert main(["ablate", *QUICKSTART, *TINY, f"--output={tmp_path}", "--study", "ottt_to_stllr"]) == 0
    markdown = (tmp_path / "report.md").read_text()
    assert "| OTTT |" in markdown and "| + last 5 steps supervised |" in markdown and "accuracy.png" in markdown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare"], ["Say what to train", "--config configs/quickstart.yaml"]),
        (["compare", "--config", str(CONFIGS / "quikstart.yaml")], ["no file", "Did you mean", "quickstart.yaml?"]),
        (["compare", "--config", "zzzz"], ["There is no file zzzz", "stllr fit --config FILE --print_config"]),
        (["compare", *QUICKSTART, "--algorithms", "stlr"], ["no algorithm 'stlr'", "'stllr'?", "ottt", "bptt"]),
        (["compare", *QUICKSTART, "--algorithms", "bptt", "--model.algorithm=ottt"], ["Use --algorithms"]),
        (["compare", *QUICKSTART, "--algoritms", "stllr"], ["no option '--algoritms'", "'--algorithms'?"]),
        (["compare", *QUICKSTART, "--seed_everything=3"], ["--seeds 3", "--seeds 4 7"]),
        (["compare", *QUICKSTART, "--seeds", "many"], ["--seeds many", "--seeds 4 7"]),
        (["compare", *QUICKSTART, "--seeds", "1234"], ["from 1 to 100", "[1234]"]),
        (["compare", *QUICKSTART, "--epochs", "0"], ["at least one epoch"]),
        (["compare", *QUICKSTART, "--memory_steps", "0"], ["at least one time step"]),
        (["compare", *QUICKSTART, "--data.bath_size=2"], ["no option 'bath_size'", "'batch_size'?"]),
        (["compare", *QUICKSTART, "--model.rule=dvs"], ["no preset 'dvs'", "dvs_gesture"]),
        (["compare", *QUICKSTART, "--output", str(CONFIGS)], ["not empty", "--output"]),
        (["ablate", *QUICKSTART], ["--study NAME", "--grid OPTION=A,B", "psi_alpha"]),
        (["ablate", *QUICKSTART, "--study", "psi"], ["no study 'psi'", "ottt_to_stllr", "--grid"]),
        (["ablate", *QUICKSTART, "--grid"], ["grid is empty", "--grid model.rule.alpha_post=-1,0,1"]),
        (["ablate", *QUICKSTART, "--grid", "model.rule.psi=triangel"], ["psi='triangel'", "triangle"]),
        (["ablate", *QUICKSTART, "--grid", "model.supervise=1"], ["no option 'supervise'", "'supervise_last'?"]),
        (
            ["ablate", *QUICKSTART, "--model.algorithm=ottt", "--grid", "model.rule.psi=triangle,sigmoid"],
            ["has a rule of its own", "--model.algorithm=stllr"],
        ),
    ],
)
def test_errors_say_what_to_do_next(arguments, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for words in (*said, f"More: stllr {arguments[0]} --help"):
        assert words in message, message
    assert "usage:" not in message and len(message) < 1500


@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_help_is_short_and_has_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0 and text.count("\n") < 50
    assert f"stllr {command} --config configs/quickstart.yaml" in text and "examples:" in text


@pytest.mark.parametrize(
    ("words", "seeds"), [(["3"], [0, 1, 2]), (["4", "7"], [4, 7]), (["[7]"], [7]), (["4,5"], [4, 5]), (["1"], [0])]
)
def test_seeds_are_a_number_or_a_list(words, seeds):
    assert Parser("stllr compare", "", "").seeds(words) == seeds


@pytest.mark.slow
def test_measured_memory_grows_with_time_for_bptt_alone(small_digits, tmp_path):
    options = ["--algorithms", "stllr", "bptt", "--seeds=1", "--epochs=1", "--data.num_samples=80"]
    main(["compare", *QUICKSTART, *options, "--memory_steps", "20", "60", f"--output={tmp_path}"])
    table = (tmp_path / "report.md").read_text().partition("| algorithm | T = 20 | T = 60 |")[2]
    sizes = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in table.splitlines()[2:4]}
    size = {name: [float(cell.split()[0]) for cell in cells] for name, cells in sizes.items()}
    assert size["BPTT"][1] > 2 * size["BPTT"][0] and size["BPTT"][1] > 5 * size["S-TLLR"][1]
