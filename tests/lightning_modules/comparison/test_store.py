"""Results in a folder: written at once or not at all, found by their key, never those of another configuration."""

import json
import os

import pytest

from lightning_modules.comparison.store import OtherConfigurationError, Store, differences, key_of, write_atomically

IDENTITY = {"trainer": {"max_epochs": 10}, "model": {"init_args": {"rule": {"alpha_post": -1.0}}}}


def test_a_result_comes_back_in_a_new_process_of_the_same_configuration(tmp_path):
    Store(tmp_path / "out", IDENTITY).put("S-TLLR-seed0", "abc", {"accuracy": 0.5})
    again = Store(tmp_path / "out", json.loads(json.dumps(IDENTITY)))
    assert again.get("S-TLLR-seed0", "abc") == {"accuracy": 0.5}
    assert again.get("S-TLLR-seed0", "abd") is None and again.get("other", "abc") is None


def test_nothing_is_made_before_the_first_result(tmp_path):
    Store(tmp_path / "out", IDENTITY)
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    Store(tmp_path, IDENTITY).put("run", "abc", {})
    other = {"trainer": {"max_epochs": 2}, "model": IDENTITY["model"]}
    with pytest.raises(OtherConfigurationError, match=r"trainer.max_epochs: 10 there, 2 here\n.*--output"):
        Store(tmp_path, other)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OtherConfigurationError, match="not written by this command"):
        Store(tmp_path, IDENTITY)


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_damaged_result_counts_as_missing(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.put("run", "abc", {"x": 1})
    (file,) = store.results.iterdir()
    file.write_text(file.read_text()[:20])
    assert store.get("run", "abc") is None


def test_a_result_drops_its_unfinished_work(tmp_path):
    store = Store(tmp_path, IDENTITY)
    work, other = store.unfinished("run", "abc"), store.unfinished("run", "xyz")
    for folder in (work, other):
        folder.mkdir(parents=True)
    store.put("run", "abc", {})
    assert not work.exists() and other.exists()


def test_keys_depend_on_values_and_not_on_their_order():
    assert key_of({"a": 1, "b": {"c": 2.0}}) == key_of({"b": {"c": 2.0}, "a": 1}) != key_of({"a": 1, "b": {"c": 2.5}})


def test_differences_name_options_as_the_command_line_does():
    there = {"model": {"init_args": {"rule": {"alpha_post": -1}, "loop": "online"}}}
    here = {"model": {"init_args": {"rule": {"alpha_post": 0, "psi": "triangle"}, "loop": "online"}}}
    assert differences(there, here) == [
        "model.rule.alpha_post: -1 there, 0 here",
        "model.rule.psi: not set there, triangle here",
    ]
    assert len(differences({}, {str(i): i for i in range(20)})) == 7
