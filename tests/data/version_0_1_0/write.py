"""Writes the checkpoints in this folder, which later versions must load. They come from 0.1.0, at commit 9d6ac7e.

To make them again, with this folder copied into a checkout of that commit::

    git worktree add ../of_0_1_0 9d6ac7e
    cp -r tests/data/version_0_1_0 ../of_0_1_0/tests/data/
    cd ../of_0_1_0 && python -m tests.data.version_0_1_0.write

- ``learners.pt``: for each learning signal a model and its learner after two sequences ("before"), and the model's
  weights after a third one ("after").
- ``task.ckpt``: a Lightning checkpoint of the command line after the first of two epochs; ``task_after.pt``: the
  network's weights after the second.

``tests/contracts/test_old_checkpoints.py`` and ``tests/lightning_modules/tasks/test_old_checkpoints.py`` load them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from stllr_plugin import STLLRLearner, STLLRRule

FOLDER = Path(__file__).parent
SIGNALS = ("bp", "dfa", "sign_dfa", "drtp", "local", "local_random", "tess")
RULE = STLLRRule(1.0, 0.8, -0.3, 0.5, "triangle")
INPUTS, HIDDEN, CLASSES, STEPS, BATCH = 8, 6, 4, 5, 4


def scattered(*shape: int, start: int = 0) -> Tensor:
    """Numbers in [0, 1) that look random, and are the same on every machine and in every version of torch."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count, dtype=torch.float64) + start + 1) * 0.6180339887498949 % 1.0).view(shape).float()


class Network(nn.Module):
    """Two layers of neurons; the loss sees the membrane of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(0.8, init_hidden=True, output=True)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = 2.4 * (scattered(*parameter.shape, start=100 * number) - 0.35)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))[1]


def make(signal: str) -> tuple[Network, STLLRLearner]:
    net = Network()
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    return net, STLLRLearner(net, adam, rule=RULE, learning_signal=signal, feedback_seed=3)


def train(net: Network, learner: STLLRLearner, sequences: range) -> None:
    for number in sequences:
        x = (scattered(STEPS, BATCH, INPUTS, start=1000 * number) < 0.5).float()
        labels = torch.arange(BATCH) % CLASSES
        learner.zero_grad()
        if learner.learning_signal in ("drtp", "local", "local_random", "tess"):
            learner.set_target(labels, 1 / STEPS)
        for step in x:
            (cross_entropy(net(step), labels) / STEPS).backward()
        learner.step()


def learners() -> dict[str, Any]:
    found = {}
    for signal in SIGNALS:
        net, learner = make(signal)
        train(net, learner, range(2))
        before = {"model": _copied(net.state_dict()), "learner": _copied(learner.state_dict())}
        train(net, learner, range(2, 3))
        found[signal] = {"before": before, "after": {name: p.detach().clone() for name, p in net.named_parameters()}}
    return found


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


# The same for a task of the command line.


def frames() -> TensorDataset:
    """Frames [12, STEPS, INPUTS], their lengths, and labels."""
    x = (scattered(12, STEPS, INPUTS) < 0.5).float()
    return TensorDataset(x, torch.full((12,), STEPS), torch.arange(12) % CLASSES)


def make_loader() -> DataLoader[Any]:
    return DataLoader(frames(), batch_size=BATCH)


def config(folder: Path, task: str, network: str) -> dict[str, Any]:
    """The settings of the run, as in a YAML file."""
    kept = {"dirpath": str(folder), "filename": "{epoch}", "save_top_k": -1}
    return {
        "seed_everything": 0,
        "model": {
            "class_path": task,
            "init_args": {
                "network": {
                    "class_path": network,
                    "init_args": {"in_features": INPUTS, "hidden": [HIDDEN], "num_classes": CLASSES, "gain": 3.0},
                },
                "num_classes": CLASSES,
                "rule": {"preset": "dvs_gesture", "alpha_post": -0.3},
                "learning_signal": "dfa",
                "supervise_last": 3,
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.02}},
            },
        },
        "data": {"class_path": "tests.data.version_0_1_0.data.TinyData"},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": kept}],
        },
    }


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The network's weights in a Lightning checkpoint."""
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if ".fc" in name or ".readout" in name}


def main() -> None:
    import yaml
    from lightning_modules.cli import main as stllr

    small = {"_use_new_zipfile_serialization": False}  # a zip archive has a padded entry for each tensor
    torch.save(learners(), FOLDER / "learners.pt", **small)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = config(
            folder, "lightning_modules.classification.SpikingClassifier", "lightning_modules.networks.SpikingMLP"
        )
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        assert stllr(["fit", "--config", str(folder / "run.yaml")]) == 0
        shutil.copy(folder / "epoch=0.ckpt", FOLDER / "task.ckpt")
        torch.save(weights(folder / "epoch=1.ckpt"), FOLDER / "task_after.pt", **small)


if __name__ == "__main__":
    main()
