"""Peak memory and time of S-TLLR and of backpropagation through time (BPTT), against the number of time steps.

One small convolutional snnTorch network, random spikes, one training batch. Each figure is measured in a process of its
own: memory is the peak resident set above the level before the first step (on Linux), time the median over the repeats.
Contenders alternate, so that a machine whose speed drifts is fair to both. Run it on a quiet machine:

    python benchmarks/memory_and_time.py --steps 10 50 100 200 --supervise 5
"""

import argparse
import os
import platform
import statistics
import time

import snntorch
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_modules.memory import format_bytes, measure_peak_memory
from stllr_plugin import STLLRLearner


def network():
    return nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1),
        snntorch.Leaky(0.5, threshold=0.8, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        snntorch.Leaky(0.5, threshold=0.8, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 10),
    )


def batch(steps, size):
    torch.manual_seed(0)
    return (torch.rand(steps, size, 2, 32, 32) < 0.1).float(), torch.randint(0, 10, (size,))


def train_bptt(net, optimizer, x, y, supervise):
    loss = 0.0
    for t, frame in enumerate(x):
        out = net(frame)
        if t >= len(x) - supervise:
            loss = loss + cross_entropy(out, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


def train_stllr(net, optimizer, x, y, supervise):
    for t, frame in enumerate(x):
        out = net(frame)
        if t >= len(x) - supervise:
            cross_entropy(out, y).backward()
    optimizer.step()
    optimizer.zero_grad()


def prepare(algorithm, steps, size, supervise):
    """The work of one training batch, as a function without arguments."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    train = train_bptt
    if algorithm == "stllr":
        optimizer = STLLRLearner(
            net, optimizer, rule="dvs_gesture", supervise_last=min(supervise, steps), num_steps=steps
        )
        train = train_stllr
    x, y = batch(steps, size)
    warm_x = x[:2]
    if algorithm == "stllr":
        optimizer.reset(num_steps=2)
    train(net, optimizer, warm_x, y, supervise)
    return lambda: train(net, optimizer, x, y, supervise)


def seconds(algorithms, steps, size, supervise, repeats):
    works = {algorithm: prepare(algorithm, steps, size, supervise) for algorithm in algorithms}
    times = {algorithm: [] for algorithm in algorithms}
    for _ in range(repeats):
        for algorithm, work in works.items():
            start = time.perf_counter()
            work()
            times[algorithm].append(time.perf_counter() - start)
    return {algorithm: statistics.median(values) for algorithm, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 100, 200], help="numbers of time steps")
    parser.add_argument("--supervise", type=int, default=5, help="supervised steps at the end of each sequence")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {platform.machine()};"
    )
    print(f"batch {arguments.batch}, last {arguments.supervise} steps supervised.\n")
    print("| time steps | BPTT memory | S-TLLR memory | ratio | BPTT s | S-TLLR s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for steps in arguments.steps:
        memory = {
            algorithm: measure_peak_memory(prepare, algorithm, steps, arguments.batch, arguments.supervise)
            for algorithm in ("bptt", "stllr")
        }
        times = seconds(("bptt", "stllr"), steps, arguments.batch, arguments.supervise, arguments.repeats)
        print(
            f"| {steps} | {format_bytes(memory['bptt'])} | {format_bytes(memory['stllr'])} "
            f"| {memory['stllr'] / memory['bptt']:.2f} | {times['bptt']:.2f} | {times['stllr']:.2f} "
            f"| {times['stllr'] / times['bptt']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
