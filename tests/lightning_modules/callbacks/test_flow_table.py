"""The table of each recording's errors: right over lanes, batches and processes; logged, in a file, readable."""

import csv
import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_modules.callbacks import FlowTable
from lightning_modules.callbacks import flow_table as module
from lightning_modules.flow import flow_figure
from tests.lightning_modules.flow.tasks import Task, loader, make_batch


def run(tmp_path, task, table, *batches):
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        callbacks=[table],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.test(task, loader(*batches), verbose=False)
    files = list(tmp_path.rglob("flow_table.csv"))
    if not files:
        return metrics, None
    with open(files[0]) as file:
        return metrics, {row.pop("recording"): row for row in csv.DictReader(file)}


def expected(task, batches, mask="valid"):
    """Mean over windows of the mean error, and windows, by recording."""
    found = {}
    for batch in batches:
        flows = task.flows(batch)
        for b, name in enumerate(batch.names):
            for w in range(2):
                counted = batch.valid[b, w]
                if mask == "both":
                    counted = counted & (batch.counts[b, w].sum((0, 1)) > 0)
                if batch.present[b, w] and counted.any():
                    errors = (flows[b, w] - batch.flow[b, w]).norm(dim=0)[counted]
                    lengths = batch.flow[b, w].norm(dim=0)[counted]
                    found.setdefault(name, []).append((float(errors.mean()), float(lengths.mean())))
    return {name: [sum(v) / len(v) for v in zip(*rows, strict=True)] + [len(rows)] for name, rows in found.items()}


@pytest.mark.parametrize("mask", [None, "both"])
def test_a_line_for_each_recording(tmp_path, mask):
    task = Task()
    task.metric_mask = "valid"
    batches = (make_batch(), make_batch(names=("one", "three"), new=(False, True), seed=7))
    batches[0].valid[0, 0] = False  # a window that does not count
    wanted = expected(task, batches, mask or "valid")
    assert {name: row[2] for name, row in wanted.items()} == {"one": 3, "two/3": 1, "three": 1}
    metrics, rows = run(tmp_path, task, FlowTable(mask), *batches)
    for name, (aee, zero, windows) in wanted.items():
        assert metrics[f"test_aee/{name}"] == pytest.approx(aee, rel=1e-5)
        assert metrics[f"test_aee_zero/{name}"] == pytest.approx(zero, rel=1e-5)
        assert float(rows[name]["aee"]) == pytest.approx(aee, rel=1e-5)
        assert float(rows[name]["windows"]) == windows
    total = sum(row[0] for row in wanted.values())
    assert metrics["test_aee_sum"] == pytest.approx(total, rel=1e-5)
    assert float(rows["sum"]["aee"]) == pytest.approx(total, rel=1e-5)
    assert rows["sum"]["outliers_1px"] == ""
    assert not task.network._forward_hooks


def test_without_true_flow_there_is_no_table(tmp_path):
    batch = make_batch()
    batch.flow = batch.valid = None
    assert run(tmp_path, Task(), FlowTable(), batch) == ({}, None)


def test_processes_are_added_up(monkeypatch):
    other = {"one": {"windows": 1.0, "aee": 4.0}, "two": {"windows": 2.0, "aee": 6.0}}
    mine = {"one": {"windows": 3.0, "aee": 4.0}}

    def gather(into, value):
        into[:] = [other, value]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    whole = module._over_processes(mine)
    assert {name: module._mean(sums)["aee"] for name, sums in whole.items()} == {"one": 2.0, "two": 3.0}
    assert mine == {"one": {"windows": 3.0, "aee": 4.0}}


def test_bad_settings_and_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mask"):
        FlowTable("all")

    class Silent(Task):
        def test_step(self, batch, batch_idx):
            return None

    with pytest.raises(TypeError, match="not called once for each time step"):
        run(tmp_path, Silent(), FlowTable(), make_batch())


def test_the_text_lines_up():
    row = dict.fromkeys(module.SHOWN, 1.25)
    text = module._text({"a": row, "a longer name": row, "sum": {"windows": 2.0, "aee": 2.5, "aee_zero": math.pi}})
    lengths = {len(line.rstrip()) for line in text.splitlines()[:3]}
    assert len(lengths) == 1
    assert text.splitlines()[-1].split() == ["sum", "2", "2.50", "3.14"]


def test_no_process_waits_for_another_that_has_other_windows(tmp_path, monkeypatch):
    """torchmetrics asks all processes for their state in each ``compute``, unless told not to."""
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    with pytest.raises(ValueError, match="process group"):  # what happens if it asks
        metrics = module.flow_metrics(events=False)
        metrics.update(make_batch().flow[:, 0], make_batch().window(0))
        metrics.compute()
    metrics, rows = run(tmp_path, Task(), FlowTable(), make_batch())
    assert len(rows) == 3
    pytest.importorskip("torchvision")
    flow_figure(make_batch().window(0), make_batch().flow[:, 0])  # one process draws, the others do not
