"""Every learning signal and preset trained once on real event-camera recordings, as a Markdown table.

    python benchmarks/learning_signals.py PATH/nmnist_small.npz
    python benchmarks/learning_signals.py PATH/nmnist_small.npz --only tess drtp --seeds 0 1 2

Every run is ``stllr fit --config configs/nmnist_subset.yaml`` with another signal or rule: the same network, data,
optimizer and learning rate, which were chosen for S-TLLR with the signal "bp". With "no eligibility" the weights of the
convolutions stay as they were drawn, and only biases and the readout learn: what the others must beat. Without the file
there is nothing to do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from nmnist_subset import options, quiet

from lightning_modules.command.trainer_cli import STLLRCLI

RULE = "--model.rule={preset: dvs_gesture, alpha_post: -0.2}"
CONTENDERS: dict[str, list[str]] = {
    "bp": [RULE],
    "dfa": [RULE, "--model.learning_signal=dfa"],
    "sign_dfa": [RULE, "--model.learning_signal=sign_dfa"],
    "drtp": [RULE, "--model.learning_signal=drtp"],
    "local": [RULE, "--model.learning_signal=local"],
    "local_random": [RULE, "--model.learning_signal=local_random"],
    "tess": [RULE, "--model.learning_signal=tess"],
    "preset ottt": ["--model.rule=ottt"],
    "preset sltt": ["--model.rule=sltt"],
    "preset tess": ["--model.rule=tess"],
    "preset eprop_lif_like": ["--model.rule=eprop_lif_like"],
    "preset decolle_like": ["--model.rule=decolle_like"],
    "preset etlp_like": ["--model.rule=etlp_like"],
    "preset osttp_like": ["--model.rule=osttp_like"],
    "no eligibility": ["--model.rule={preset: dvs_gesture, alpha_pre: 0.0, alpha_post: 0.0}"],
}


def accuracy(name: str, seed: int, data: Path, epochs: int, folder: str) -> float:
    """Trains and tests once."""
    arguments = ["fit", *options("stllr", data), *CONTENDERS[name], f"--seed_everything={seed}"]
    arguments += [f"--trainer.max_epochs={epochs}", f"--model.lr_scheduler.init_args.T_max={epochs}"]
    cli = STLLRCLI([*arguments, f"--trainer.default_root_dir={folder}", "--test_after_fit=true"])
    return float(cli.trainer.callback_metrics["test_accuracy"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/nmnist_small.npz"))
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, help="file for the table, besides the terminal")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        print(f"Skipped: there is no {arguments.data} (N-MNIST subset, see lightning_modules/data/nmnist_subset.py).")
        return 0
    torch.set_num_threads(1)  # fastest for layers this small
    quiet()
    lines = [f"| signal or preset | test accuracy, {arguments.epochs} epochs | each seed |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            found = [accuracy(name, seed, arguments.data, arguments.epochs, folder) for seed in arguments.seeds]
            lines.append(f"| {name} | {statistics.mean(found):.1%} | {' / '.join(f'{one:.1%}' for one in found)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
