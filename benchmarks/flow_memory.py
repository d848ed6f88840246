"""Peak memory of training an optical flow network on W consecutive windows: S-TLLR, and backpropagation through time.

The network of configs/flow_simulated.yaml with 16 channels (recurrent encoder, snnTorch), random events of 5 %, the
loss at the last of 5 bins of every window, one update per batch of 8 lanes. Each figure is the peak resident set of a
process of its own, above the level before the batch, which is there already. No data needed:

    python benchmarks/flow_memory.py --windows 1 4 16 64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from lightning_modules.flow import EndpointErrorLoss
from lightning_modules.flow.batch import FlowBatch
from lightning_modules.memory import format_bytes, measure_peak_memory
from lightning_modules.networks import FSFN
from lightning_modules.tasks.states import reset_states
from stllr_plugin import STLLRLearner

BINS, LANES, SIDE = 5, 8, 32


def random_batch(windows: int) -> FlowBatch:
    """Random events and flow."""
    torch.manual_seed(0)
    return FlowBatch(
        counts=(torch.rand(LANES, windows, BINS, 2, SIDE, SIDE) < 0.05).float(),
        present=torch.ones(LANES, windows, dtype=torch.bool),
        new_recording=torch.ones(LANES, dtype=torch.bool),
        flow=torch.randn(LANES, windows, 2, SIDE, SIDE),
        valid=torch.ones(LANES, windows, SIDE, SIDE, dtype=torch.bool),
    )


def prepare(algorithm: str, windows: int) -> Callable[[], None]:
    """The work of one training batch, as a function without arguments."""
    network = FSFN(base_channels=16, levels=2, residual_blocks=0, scales=1, recurrent="encoder")
    optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters())
    learner = None
    if algorithm == "stllr":
        learner = STLLRLearner(network, optimizer, rule="mvsec", supervise_last=1, num_steps=BINS)
    loss_fn = EndpointErrorLoss()

    def train(batch: FlowBatch) -> None:
        loss = torch.zeros(())
        for w in range(batch.num_windows):
            window = batch.window(w)
            if learner is not None and w:
                learner.extend(BINS)
            for step in window.counts.unbind(1):
                flows = network(step)
            value = loss_fn(flows, window).mean() / batch.num_windows
            if learner is not None:
                value.backward()
            else:
                loss = loss + value
        if learner is not None:
            learner.step()
            learner.zero_grad()
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        reset_states(network)

    train(random_batch(1))
    batch = random_batch(windows)
    return lambda: train(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments = parser.parse_args()
    print("| windows of a batch | time steps | BPTT | S-TLLR | ratio |")
    print("|---|---|---|---|---|")
    for windows in arguments.windows:
        bptt, stllr = (measure_peak_memory(prepare, algorithm, windows) for algorithm in ("bptt", "stllr"))
        cells = (windows, windows * BINS, format_bytes(bptt), format_bytes(stllr), f"{stllr / bptt:.2f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
