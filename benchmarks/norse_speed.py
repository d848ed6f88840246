"""Time of a training batch of Norse networks, relative to backpropagation through time in Norse.

Three networks of the size of Spiking Heidelberg Digits, 100 steps, batch 128, random spikes (8 %), one thread. All
train from the same weights; the contenders take turns, and a ratio is the median of those within the rounds. To be run
from the root of a checkout, with the extra `norse`: `python -m benchmarks.norse_speed`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import norse.torch as norse
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.measure import alternate, paired_ratio
from stllr_plugin import STLLRLearner

STEPS, BATCH, CLASSES = 100, 128, 20
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LIFRecurrentCell, LICell": lambda: norse.SequentialState(
        norse.LIFRecurrentCell(700, 450), nn.Linear(450, CLASSES), norse.LICell()
    ),
    "Linear, LIFCell, LICell": lambda: norse.SequentialState(
        nn.Linear(700, 450), norse.LIFCell(), nn.Linear(450, CLASSES), norse.LICell()
    ),
    "Linear, LIFBoxCell, LIBoxCell": lambda: norse.SequentialState(
        nn.Linear(700, 450), norse.LIFBoxCell(), nn.Linear(450, CLASSES), norse.LIBoxCell()
    ),
}


def looping(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, last: int) -> Callable[[], None]:
    """A plain script: one backward pass at the end, or with a learner one at each supervised step."""

    def train() -> None:
        optimizer.zero_grad()
        state, total = None, torch.zeros(())
        for t in range(STEPS):
            output, state = net(x[t], state)
            if t >= STEPS - last:
                loss = cross_entropy(output, y)
                if isinstance(optimizer, STLLRLearner):
                    loss.backward()
                else:
                    total = total + loss
        if not isinstance(optimizer, STLLRLearner):
            total.backward()
        optimizer.step()

    return train


def running(net: nn.Module, learner: STLLRLearner, x: Tensor, y: Tensor, last: int) -> Callable[[], None]:
    """The fast path."""

    def train() -> None:
        learner.zero_grad()
        learner.run(net, x, y, cross_entropy, window=20, supervise_last=last)
        learner.step()

    return train


def contenders(make: Callable[[], nn.Module], x: Tensor, y: Tensor, last: int) -> dict[str, Callable[[], None]]:
    """All of them, with networks of their own."""
    found: dict[str, Callable[[], None]] = {}
    for name in ("BPTT", "attached", "fold_steps=5", "run, window=20"):
        torch.manual_seed(0)
        net = make()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-6)
        if name == "BPTT":
            found[name] = looping(net, optimizer, x, y, last)
        elif name.startswith("run"):
            found[name] = running(net, STLLRLearner(net, optimizer, rule="shd"), x, y, last)
        else:
            fold = 5 if "fold" in name else 1
            told = STLLRLearner(net, optimizer, rule="shd", supervise_last=last, num_steps=STEPS, fold_steps=fold)
            found[name] = looping(net, told, x, y, last)
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(STEPS, BATCH, 700, generator=generator) < 0.08).float()
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    print(
        "| network | supervised steps | BPTT, s | attached | fold_steps=5 | run, window=20 |\n|---|---|---|---|---|---|"
    )
    for name, make in NETWORKS.items():
        for last in (10, 90):
            works = contenders(make, x, y, last)
            for work in works.values():
                work()
            times = alternate(works, rounds, "cpu")
            base = [wall for wall, _ in times.pop("BPTT")]
            ratios = [paired_ratio([wall for wall, _ in values], base)["median"] for values in times.values()]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {last} | {sorted(base)[len(base) // 2]:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
