"""``stllr demo``: train a spiking network with S-TLLR on built-in event data, draw what happened, compare the memory.

Everything goes through the same classes as ``stllr fit``; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.callbacks import History
from lightning_modules.command.quiet import quiet_loggers
from lightning_modules.data import EventDigitsDataModule
from lightning_modules.demo.inspection import record_sequence
from lightning_modules.demo.plots import DemoPicture, draw_demo
from lightning_modules.memory import format_bytes, measure_peak_memory
from lightning_modules.networks import SpikingConvNet
from lightning_modules.tasks.classification import SpikingClassifier
from stllr_plugin import STLLRRule

NUM_STEPS = 20
DOWNSAMPLE = 2
SIZE = 17  # side of a frame: the sensor's 34 pixels, downsampled
BATCH_SIZE = 16
LEARNING_RATE = 5e-3
EPOCHS = 10
GAIN = 0.6
RULE = "dvs_gesture"
SUPERVISE_LAST = 5


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        accuracy: Test accuracy, 0 to 1, of the epoch that was best on the validation data.
        seconds: Time of training, validation included.
        memory: Peak bytes of one training batch, for "stllr" and "bptt".
        picture: The picture's file.
    """

    accuracy: float
    seconds: float
    memory: dict[str, int]
    picture: Path

    def summary(self) -> str:
        """Three lines: accuracy, and the peak memory of both algorithms."""
        stllr, bptt = self.memory["stllr"], self.memory["bptt"]
        ratio = bptt / max(stllr, 1)
        setting = f"one batch of {BATCH_SIZE} x {NUM_STEPS} time steps"
        return "\n".join(
            (
                f"test accuracy           {self.accuracy:.1%}   (S-TLLR, {self.seconds:.0f} s of training)",
                f"peak memory of S-TLLR   {format_bytes(stllr):<7} ({setting})",
                f"peak memory of BPTT     {format_bytes(bptt):<7} (the same network and batch: {ratio:.1f} x)",
            )
        )


def make_task(algorithm: str = "stllr", epochs: int = EPOCHS) -> SpikingClassifier:
    """The demo's network and how it learns."""
    return SpikingClassifier(
        SpikingConvNet(size=SIZE, channels=(12, 32), kernel_size=5, padding=2, weight_standardization=False, gain=GAIN),
        num_classes=10,
        algorithm=algorithm,
        rule=RULE,
        supervise_last=SUPERVISE_LAST,
        optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )


def make_data(samples: int | None, downsample: int = DOWNSAMPLE) -> EventDigitsDataModule:
    """The event recordings, ready for use."""
    data = EventDigitsDataModule(num_steps=NUM_STEPS, downsample=downsample, num_samples=samples, batch_size=BATCH_SIZE)
    data.prepare_data()
    data.setup()
    return data


def prepare_batch(algorithm: str, num_steps: int, batch_size: int) -> Callable[[], object]:
    """One training batch of the demo's network as a function, for :func:`measure_peak_memory`.

    A sequence of one step runs first, so that what the libraries allocate on first use does not count.
    """
    seed_everything(0, verbose=False)
    task = make_task(algorithm)
    frames = (torch.rand(batch_size, num_steps, 2, SIZE, SIZE) < 0.05).float()
    labels = torch.arange(batch_size) % 10

    def loader(steps: int) -> DataLoader[Any]:
        return DataLoader([(frames[:, :steps], torch.full((batch_size,), steps), labels)], batch_size=None)  # type: ignore[arg-type]

    def train(steps: int) -> None:
        with quiet():
            options: dict[str, Any] = dict.fromkeys(
                ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
            )
            Trainer(max_epochs=1, accelerator="cpu", **options).fit(task, loader(steps))

    train(1)
    return partial(train, num_steps)


def run(
    folder: Path, epochs: int = EPOCHS, seed: int = 0, samples: int | None = None, accelerator: str = "auto"
) -> DemoResult:
    """Train, test, measure and draw.

    Args:
        folder: Where the picture and the checkpoint go.
        epochs: Passes over the training data.
        seed: Seed of the weights and of the order of the samples.
        samples: Use only the first so many digits; all if None.
        accelerator: As for the Lightning trainer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(seed, workers=True, verbose=False)
    print("Making event recordings of handwritten digits (once; they are kept in a cache) ...", flush=True)
    data = make_data(samples)

    print(f"Training a spiking network with S-TLLR, {epochs} epochs ...", flush=True)
    task = make_task(epochs=epochs)
    history = History()
    with quiet():
        trainer = _make_trainer(folder, epochs, accelerator, history)
        start = time.perf_counter()
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - start
        (test,) = trainer.test(task, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
        probabilities = torch.cat(list(trainer.predict(task, datamodule=data) or []))  # type: ignore[arg-type]

    print("Measuring the peak memory of S-TLLR and of BPTT, each in a process of its own ...", flush=True)
    memory = {
        algorithm: measure_peak_memory(prepare_batch, algorithm, NUM_STEPS, BATCH_SIZE)
        for algorithm in ("stllr", "bptt")
    }
    frames, labels = test_samples(data)
    sharp, _ = test_samples(make_data(samples, downsample=1))  # the same recordings at the sensor's full resolution
    shown = choose_samples(labels, probabilities.argmax(1))
    picture = folder / "demo.png"
    recording = record_sequence(task.network, frames[shown[0]], STLLRRule.preset(RULE), neuron="features.lif2")
    draw_demo(
        DemoPicture(
            frames=sharp[shown],
            labels=labels[shown],
            predictions=probabilities.argmax(1)[shown],
            recording=recording,
            train_accuracy=history["train_accuracy"],
            val_accuracy=history["val_accuracy"],
            test_labels=labels,
            test_predictions=probabilities.argmax(1),
            memory=memory,
            num_steps=NUM_STEPS,
        ),
        picture,
    )
    return DemoResult(test["test_accuracy"], seconds, memory, picture)


def _make_trainer(folder: Path, epochs: int, accelerator: str, history: History) -> Trainer:
    best = ModelCheckpoint(folder, filename="best", monitor="val_accuracy", mode="max", enable_version_counter=False)
    return Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        callbacks=[history, best, RichProgressBar()],
        enable_model_summary=False,
    )


def test_samples(data: EventDigitsDataModule) -> tuple[Tensor, Tensor]:
    """All test samples in order: frames [N, T, 2, H, W] and labels [N]."""
    batches = [(frames, labels) for frames, _, labels in data.test_dataloader()]
    frames, labels = zip(*batches, strict=True)
    return torch.cat(frames), torch.cat(labels)


def choose_samples(labels: Tensor, predictions: Tensor, count: int = 8) -> list[int]:
    """Samples for the picture: one of each of different digits, the last one wrong if the network made a mistake."""
    right = (labels == predictions).tolist()
    chosen: list[int] = []
    for digit in (3, 8, 5, 0, 2, 7, 4, 9, 6, 1):
        chosen += [i for i in range(len(right)) if right[i] and int(labels[i]) == digit][:1]
    wrong = [i for i in range(len(right)) if not right[i]][:1]
    return (chosen[: count - len(wrong)] + wrong) or [0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks about hardware, data loading workers and the like out of the demo's output."""
    with warnings.catch_warnings(), quiet_loggers("lightning.pytorch", "lightning.fabric"):
        warnings.simplefilter("ignore")
        yield


def main(args: Sequence[str] | None = None) -> int:
    """``stllr demo``."""
    parser = argparse.ArgumentParser(
        prog="stllr demo",
        description="Train a small spiking network with S-TLLR on built-in event data (a few minutes on a CPU), draw "
        "what happened into one picture, and compare the memory with backpropagation through time.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for demo.png and best.ckpt (default: demo)"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training data (default: {EPOCHS})")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order of samples (default: 0)")
    parser.add_argument("--samples", type=int, help="use only the first so many of 1797 digits, for a quick look")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps or auto (default: auto)")
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # layers this small gain nothing from more, and lose much where the cores are busy
    result = run(options.output, options.epochs, options.seed, options.samples, options.accelerator)
    print(result.summary())
    print(f"picture: {result.picture}")
    return 0
