"""The stllr command: every YAML trains, what was trained can be tested, errors help."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_modules
from lightning_modules import SpikingClassifier
from lightning_modules.command.cli import OVERVIEW, main
from lightning_modules.command.errors import plain_words
from lightning_modules.command.texts import accepted_options, did_you_mean, explain, shorten_help
from stllr_plugin.errors import AttachmentError
from tests.lightning_modules.small_data import options_for

CONFIGS = Path(__file__).parents[3] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
IN_OTHER_TESTS = {"cifar10_dvs", "dvs_gesture", "ncaltech101", "ncars", "nmnist"}  # test_vision_recipes.py
ALL = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem not in IN_OTHER_TESTS)
QUIET = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


def data_options(config, nmnist_file, folder, monkeypatch):
    small = options_for(config, folder, monkeypatch)
    if small is not None:
        return small
    name = yaml.safe_load(Path(config).read_text())["data"]["class_path"]
    if name == "NMNISTSubsetDataModule":
        sizes = {"train_size": 60, "val_size": 20, "test_size": 20}
        return [f"--data.path={nmnist_file}", *(f"--data.{key}={value}" for key, value in sizes.items())]
    assert name == "EventDigitsDataModule", f"{name}: say here how to make small data for {config}"
    return ["--data.num_samples=80"]


@pytest.mark.parametrize("config", ALL, ids=lambda path: path.stem)
def test_every_yaml_trains_for_two_batches(config, small_digits, nmnist_file, tmp_path, monkeypatch):
    options = data_options(config, nmnist_file, tmp_path, monkeypatch)
    assert main(["fit", "--config", str(config), *options, "--trainer.fast_dev_run=2", *QUIET]) == 0


def test_fit_then_test_and_predict_from_the_checkpoint(small_digits, tmp_path, capsys):
    common = ["--config", QUICKSTART, "--data.num_samples=80", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    main(["fit", *common, "--trainer.max_epochs=1"])
    folder = tmp_path / "lightning_logs" / "version_0"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert checkpoint.is_file() and (folder / "config.yaml").is_file()
    assert "test_accuracy" in capsys.readouterr().out  # the quickstart tests after fit
    with pytest.warns(UserWarning, match="algorithm: stllr there, bptt here"):  # the checkpoint's settings count
        main(["validate", *common, "--model.algorithm=bptt", f"--ckpt_path={checkpoint}"])
    for command in ("test", "predict"):
        main([command, *common, f"--ckpt_path={checkpoint}"])
    assert "test_accuracy" in capsys.readouterr().out
    (predictions,) = tmp_path.rglob("predictions.pt")
    assert torch.load(predictions, weights_only=True).shape == (16, 10)  # a fifth of the 80 samples is for the test

    task = SpikingClassifier.load_from_checkpoint(checkpoint, weights_only=True)  # network and all, from the file alone
    settings = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    assert task.network.features.conv1.out_channels == settings["channels"][0]

    with pytest.raises(SystemExit):
        main(["test", *common, f"--ckpt_path={tmp_path / 'none.ckpt'}"])
    assert str(checkpoint) in capsys.readouterr().err  # what there is instead

    main(["fit", *common, "--trainer.max_epochs=2", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"])
    resumed = max(tmp_path.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert resumed.parent.parent != folder
    assert torch.load(resumed, weights_only=True)["epoch"] == 1


def test_same_seed_same_result(small_digits, tmp_path):
    results = []
    for run, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(run)
        main(
            [
                "fit",
                "--config",
                QUICKSTART,
                "--data.num_samples=80",
                f"--seed_everything={seed}",
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
            ]
            + [f"--trainer.default_root_dir={folder}", "--test_after_fit=false", *QUIET]
        )
        (last,) = folder.rglob("last.ckpt")
        results.append(torch.load(last, weights_only=True)["state_dict"]["network.readout.weight"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("algorithm", ["bptt", "ottt", "sltt", "tess"])
def test_algorithm_from_the_command_line(algorithm, small_digits):
    options = ["--data.num_samples=80", "--trainer.fast_dev_run=1", *QUIET]
    assert main(["fit", "--config", QUICKSTART, *options, "--model.algorithm", algorithm]) == 0


def test_the_loss_from_the_command_line(small_digits):
    options = ["--data.num_samples=80", "--trainer.fast_dev_run=1", "--model.loss=tet", "--model.tet_lamb=0.01", *QUIET]
    assert main(["fit", "--config", QUICKSTART, *options]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.algorithmm", "bptt"], ["SpikingClassifier has no option 'algorithmm'", "Did you mean 'algorithm'?"]),
        (
            ["--model.network.init_args.chanels=[3]"],
            ["SpikingConvNet has no option 'chanels'", "Did you mean 'channels'?"],
        ),
        (["--data.bath_size=2"], ["EventDigitsDataModule has no option 'bath_size'", "Did you mean 'batch_size'?"]),
        (
            ["--model", "SpikingClasifier"],
            ["There is no class 'SpikingClasifier'", "Did you mean 'SpikingClassifier'?"],
        ),
        (["--model.rule", "dvs"], ["There is no preset 'dvs'", "dvs_gesture"]),
        (["--model.rule.lamda_pre=0.5"], ["no field", "lamda_pre", "lambda_pre"]),
        (["--model.algorithm", "bppt"], ["found 'bppt'; expected one of stllr, ottt", "Did you mean 'bptt'?"]),
        (["--model.network.init_args.size=3"], ["Frames of 3 pixels are too small"]),
        (["--config", "no_such.yaml"], ["There is no file no_such.yaml", "--print_config"]),
        (["--config", "quickstrat"], ["There is no file quickstrat. Did you mean", "quickstart.yaml?"]),
        (["--model.optimizer.init_args.lrr=0.1"], ["Adam has no option 'lrr'", "Did you mean 'lr'?", "weight_decay"]),
        (["--model.optimizer=torch.optim.Adm"], ["no class 'torch.optim.Adm'", "Did you mean 'torch.optim.Adam'?"]),
        (["--model.optimizer=Adamm"], ["no class 'Adamm'", "Did you mean 'Adam'?", "SGD"]),
        (
            ["--model.lr_scheduler.init_args.T_maxx=3"],
            ["CosineAnnealingLR has no option 'T_maxx'", "Did you mean 'T_max'?", "eta_min"],
        ),
        (["--model.lr_scheduler=StepLR"], ["StepLR needs step_size"]),
        (["--model.network=torchh.nn.Linear"], ["There is no module 'torchh'"]),
        (["--data=EventDigits"], ["no class 'EventDigits'", "Did you mean 'EventDigitsDataModule'?", "SHDDataModule"]),
        (["--trainer.max_epochs=many"], ["trainer.max_epochs: found 'many'; expected a whole number"]),
        (["--trainer.precision=bf16mixed"], ["found 'bf16mixed'", "Did you mean 'bf16-mixed'?"]),
        (["--trainer.accelerator=cpuu"], ["trainer: ", "'cpuu'", "auto"]),
        (["--modell.algorithm=bptt"], ["no option --modell.algorithm", "Did you mean --model.algorithm?"]),
        (["more.yaml"], ["'more.yaml' belongs to no option", "--config more.yaml"]),
        (["--ckpt_path=none.ckpt"], ["There is no checkpoint none.ckpt"]),
        ([f"--ckpt_path={QUICKSTART}"], ["is no checkpoint, or only a part of one"]),
    ],
)
def test_errors_name_what_was_meant(options, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", QUICKSTART, *options])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for words in said:
        assert words in message
    assert "usage:" not in message and len(message) < 1500


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("supervise_last", "supervise_lst", ["no option 'supervise_lst'", "Did you mean 'supervise_last'?"]),
        ("        lr: 5.0e-3", "        learning_rate: 5.0e-3", ["Adam has no option 'learning_rate'", "lr, betas"]),
        ("trainer:\n", "trainr:\n", ["Did you mean 'trainer.max_epochs'?"]),
        ("    loop", "\tloop", ["wrong.yaml, line 25", "never with tabs"]),
        ("    loop", "  loop", ["wrong.yaml, line 26", "optimizer:", "same column"]),
    ],
)
def test_wrong_key_in_yaml(old, new, said, tmp_path, capsys):
    text = Path(QUICKSTART).read_text()
    assert old in text
    config = tmp_path / "wrong.yaml"
    config.write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config)])
    message = capsys.readouterr().err
    assert exit_.value.code == 2
    for words in (*said, "More: stllr"):
        assert words in message, message


def test_a_configuration_without_settings(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    for arguments, words in (
        (["fit", "--config", str(tmp_path / "empty.yaml")], "empty.yaml has no settings in it"),
        (["fit"], "model and data not given. Name a YAML file that has them: --config configs/quickstart.yaml"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fti", "--config", QUICKSTART], "There is no command 'fti'. Did you mean 'fit'?"),
        (["dmeo"], "There is no command 'dmeo'. Did you mean 'demo'?"),
        (["--config", QUICKSTART], "A command comes before --config, such as: stllr fit --config"),
    ],
)
def test_wrong_commands(arguments, said, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message and "Commands: demo, fit, validate, test, predict, compare, ablate." in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.output=readot"], ["output='readot' is no module of the model"]),
        (["--model.supervise_last=0"], ["supervise_last=0: expected a positive number"]),
        (["--model.update_every=3", "--trainer.accumulate_grad_batches=2"], ["leave one of them out"]),
        (["--model.optimizer.lr=-1"], ["optimizer or lr_scheduler: Invalid learning rate: -1"]),
        (["--model.num_classes=5"], ["EventDigitsDataModule has 10 classes, but model.num_classes is 5"]),
        (["--model.network.init_args.num_classes=12"], ["(16, 12), but model.num_classes is 10", "same num_classes"]),
        (["--model.network.init_args.size=34"], ["The frames do not fit the network", "size, in_channels"]),
    ],
)
def test_errors_while_it_runs_are_told_in_a_few_words(options, said, small_digits, monkeypatch, capsys):
    arguments = ["fit", "--config", QUICKSTART, "--data.num_samples=80", "--trainer.fast_dev_run=1", *QUIET, *options]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for words in (*said, "STLLR_TRACEBACK=1", "More: stllr fit --help"):
        assert words in message, message
    assert "Traceback" not in message


def test_the_traceback_on_request(small_digits, monkeypatch):
    monkeypatch.setenv("STLLR_TRACEBACK", "1")
    options = ["--data.num_samples=80", "--trainer.fast_dev_run=1", "--model.output=readot", *QUIET]
    with pytest.raises(AttachmentError, match="readot"):
        main(["fit", "--config", QUICKSTART, *options])


def test_a_defect_keeps_its_traceback():
    assert plain_words(RuntimeError("something broke")) is None
    assert plain_words(ValueError("of another library")) is None


def test_a_checkpoint_of_another_network():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())
    said = plain_words(caught.value)
    assert "of another network" in said and "size mismatch for weight" in said and "config.yaml" in said


def test_missing_data_file_is_an_error_of_the_arguments(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIGS / "nmnist_subset.yaml"), f"--data.path={tmp_path / 'none.npz'}", *QUIET])
    assert "none.npz" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out == OVERVIEW


def test_overview_does_not_wait_for_lightning():
    read = "import sys; from lightning_modules.command.cli import main; main(['--help'])"
    code = f"{read}; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--help"], ["--trainer.max_epochs", "--test_after_fit"]),
        (
            ["fit", "--model.help", "SpikingClassifier"],
            ["--model.algorithm", "--model.supervise_last", "--model.predict_over"],
        ),
        (["fit", "--data.help", "EventDigitsDataModule"], ["--data.num_steps", "--data.batch_size"]),
        (["demo", "--help"], ["--epochs", "--output"]),
    ],
)
def test_help_pages(arguments, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for words in said:
        assert words in text


def test_help_does_not_list_every_module_of_torch(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "SpikingClassifier"])
    text = capsys.readouterr().out
    assert "lightning_modules.SpikingConvNet" in text and "torch.nn.Hardswish" not in text
    assert text.count("\n") < 200


def test_lists_of_other_classes_are_cut():
    names = ",\n".join(f"torch.optim.A{i}" for i in range(20))
    text = shorten_help(f"An optimizer. (known subclasses: {names})\n", "lightning_modules")
    text = " ".join(text.split())
    assert "A7" in text and "A8" not in text and "12 more)" in text


def test_print_config_round_trip(small_digits, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", QUICKSTART, "--print_config"])
    complete = tmp_path / "complete.yaml"
    complete.write_text(capsys.readouterr().out)
    assert main(["fit", "--config", str(complete), "--data.num_samples=80", "--trainer.fast_dev_run=1", *QUIET]) == 0


def test_module_entry():
    done = subprocess.run([sys.executable, "-m", "lightning_modules"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == OVERVIEW


def test_explain_keeps_other_messages_and_drops_the_noise():
    noise = "  Does not validate against any of the Union subtypes\n  Errors:\n"
    message = f'Parser key "model":\n{noise}    - Something\n  Given value: x'
    assert explain(message, [], lightning_modules) == 'Parser key "model":\n  - Something'
    assert explain(
        "Subcommand 'fit' does not accept option 'seed_everythin'", ["seed_everything"], lightning_modules
    ) == ("There is no option 'seed_everythin'. Did you mean 'seed_everything'?")
    assert did_you_mean("zzz", ["size"]) == ""
    assert "loop" in accepted_options("lightning_modules.SpikingClassifier")
