"""One run: train, test as it goes, count the spikes; from its last checkpoint if it was cut off."""

from __future__ import annotations

import math
import platform
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.command.errors import OURS, our_error
from lightning_modules.comparison.counting import count_operations
from lightning_modules.comparison.experiment import Experiment, Variant, choosing, quiet_seeding
from lightning_modules.comparison.recorder import Recorder, test_batches
from lightning_modules.comparison.signal_costs import price_of
from lightning_modules.comparison.store import Store
from lightning_modules.data import CacheError, DownloadError, EventDataError

Say = Callable[[str], None]
CHECKPOINT = "last.ckpt"


class RunError(ValueError):
    """A run cannot start or go on; the message says what to do."""


def train(
    experiment: Experiment,
    variant: Variant,
    seed: int,
    store: Store,
    *,
    every_epoch: bool = True,
    callbacks: Sequence[Callback] = (),
    say: Say = print,
) -> dict[str, Any]:
    """The result of one run: from the store if it is there, else by training.

    Args:
        experiment: The configuration.
        variant: What is different in this run.
        seed: Seed of the weights and the order of the samples.
        store: Where results are kept.
        every_epoch: Test after each epoch, which the best test epoch needs.
        callbacks: Further callbacks, for tests.
        say: Takes lines of progress.
    """
    name = f"{variant.name}-seed{seed}"
    key, more = (experiment.key(variant, seed, every_epoch=wanted) for wanted in (every_epoch, True))
    known = store.get(name, key) or store.get(name, more)
    if known is not None:
        say(f"{variant.name}, seed {seed}: done before, {_line(known)}")
        return known
    folder = store.unfinished(name, key)
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_file():
        say(f"{variant.name}, seed {seed}: goes on from its last checkpoint ...")
        try:
            result = _fit(experiment, variant, seed, every_epoch, folder, checkpoint, callbacks)
        except (RuntimeError, EOFError, KeyError, OSError) as error:
            if not _damaged(checkpoint):
                raise
            say(
                f"{variant.name}, seed {seed}: the checkpoint {checkpoint} is damaged and cannot be read ({error}), "
                "starts again ..."
            )
            result = _fit(experiment, variant, seed, every_epoch, folder, None, callbacks)
    else:
        say(f"{variant.name}, seed {seed}: training ...")
        result = _fit(experiment, variant, seed, every_epoch, folder, None, callbacks)
    store.put(name, key, result)
    say(f"{variant.name}, seed {seed}: {_line(result)}")
    return result


def _fit(
    experiment: Experiment,
    variant: Variant,
    seed: int,
    every_epoch: bool,
    folder: Path,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    monitor, mode = choosing(experiment.settings)
    recorder = Recorder(monitor, mode, every_epoch)
    saver = ModelCheckpoint(
        folder, filename="last", save_top_k=1, monitor=None, save_on_train_epoch_end=True, enable_version_counter=False
    )
    with quiet():
        cli = experiment.build(variant, seed, [recorder, saver, *callbacks])
        _check_price(cli.model)
        cli.datamodule.prepare_data()
        cli.datamodule.setup("test")  # the recorder tests during the fit
        cli.trainer.fit(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=checkpoint,
            weights_only=None if checkpoint is None else True,
        )
        if cli.trainer.interrupted:
            raise KeyboardInterrupt
        counts = count_operations(
            cli.model,
            test_batches(cli.trainer),
            recorder.edges,
            recorder.signal,
            cli.trainer.strategy.root_device,
        )
    return {
        "variant": variant.name,
        "changes": dict(variant.changes),
        "seed": seed,
        "monitor": monitor,
        **_found(recorder, every_epoch),
        "counts": counts,
        "parameters": sum(parameter.numel() for parameter in cli.model.parameters()),
        "machine": machine(cli.trainer.strategy.root_device),
    }


def _check_price(model: Any) -> None:
    """Say before the training, not after it, that a signal cannot be counted."""
    signal = model.learning_signal or getattr(model.rule, "learning_signal", None) or "bp"
    try:
        price_of(signal)
    except ValueError as error:
        raise RunError(str(error)) from error


def _found(recorder: Recorder, every_epoch: bool) -> dict[str, Any]:
    """What the epochs gave."""
    accuracies = [epoch.get("test_accuracy", math.nan) for epoch in recorder.epochs]
    if not accuracies:
        raise RunError("Nothing was trained: trainer.max_epochs is 0.")
    return {
        "epochs": recorder.epochs,
        "chosen": recorder.chosen,
        "test_chosen": None if recorder.chosen is None else accuracies[recorder.chosen],
        "test_last": accuracies[-1],
        "test_best": max(accuracies) if every_epoch else None,
        "val_chosen": None if recorder.chosen is None else recorder.epochs[recorder.chosen].get("val_accuracy"),
        "order": f"{recorder.order:08x}",
        "edges": recorder.edges,
        "signal": recorder.signal,
        "matrices": recorder.matrices,
    }


def look(experiment: Experiment) -> dict[str, Any]:
    """Facts of the configuration that are known before training: data, network, a batch. Errors show here.

    Raises:
        RunError: If the data cannot be read.
    """
    with quiet():
        cli = experiment.build()
        try:
            cli.datamodule.prepare_data()
            cli.datamodule.setup("fit")
            frames, lengths, labels = next(iter(cli.datamodule.train_dataloader()))
        except Exception as error:
            ours = our_error(error, OURS)
            if ours is None and not isinstance(error, (EventDataError, DownloadError, CacheError, FileNotFoundError)):
                raise
            said = str(ours or error)
            hint = (
                ""
                if "--data.path" in said or not _names_path(experiment)
                else "\nIf they are elsewhere: --data.path PATH"
            )
            raise RunError(f"The data cannot be used: {said}{hint}") from error
        report = getattr(cli.datamodule, "report", None)
        facts = report() if callable(report) else {}
    return {
        "dataset": facts.get("dataset", type(cli.datamodule).__name__),
        "split": facts.get("split", ""),
        "task": type(cli.model).__name__,
        "network": type(cli.model.network).__name__,
        "batch_size": int(frames.shape[0]),
        "num_steps": int(frames.shape[1]),
        "frame_shape": list(frames.shape[2:]),
        "max_epochs": cli.trainer.max_epochs,
        "device": cli.trainer.strategy.root_device.type,
    }


def _names_path(experiment: Experiment) -> bool:
    return "path" in (experiment.settings["data"].get("init_args") or {})


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were made on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "device": device.type, "name": name, "threads": torch.get_num_threads()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks about hardware, data loading workers and the like out of the output."""
    with warnings.catch_warnings(), quiet_seeding():
        warnings.simplefilter("ignore")
        yield


def _damaged(checkpoint: Path) -> bool:
    """Whether the file is cut off or its checksums are wrong (checkpoints are zip archives)."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is not None
    except zipfile.BadZipFile:
        return True


def _line(result: dict[str, Any]) -> str:
    chosen, number = result["test_chosen"], result["chosen"]
    if chosen is None:
        return f"test accuracy {result['test_last']:.1%} in the last epoch"
    return f"test accuracy {chosen:.1%} (epoch {number + 1} of {len(result['epochs'])}, chosen by {result['monitor']})"
