"""A network that learns without labels: STDP and competition, on the built-in event recordings of digits.

    python examples/unsupervised_stdp.py

One layer of neurons sees the events. At each step only the neuron that is furthest above its threshold fires (lateral
inhibition). Its synapses from pixels that were active lately grow, those from pixels that are active after it shrink
(rule "stdp", no loss), each neuron's weights keep their sum, and a neuron that fires more than its share gets a higher
threshold. In time each neuron answers to one way of writing one digit.

Labels come in only afterwards, to read the layer out in two ways: each neuron votes for the class at which it fired
most ("votes"), and a linear classifier on the spike counts ("linear"). Both are compared with the same layer before
training, with thresholds adapted but random weights, and with a linear classifier on the event counts themselves, which
needs no layer at all.
"""

import argparse

import snntorch as snn
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from lightning_modules.data import EventDigitsDataModule
from stllr_plugin import STLLRLearner, STLLRRule

NEURONS, STEPS, BATCH = 100, 10, 20
SUM_OF_WEIGHTS = 10.0
THRESHOLD_RATE = 0.005
LEARNING_RATE = 0.005
RULE = STLLRRule.preset("stdp", lambda_pre=0.5, alpha_post=-0.2, lambda_post=0.5)


class Layer(nn.Module):
    """Synapses and neurons of which one fires per step; ``forward`` is one time step."""

    def __init__(self, inputs):
        super().__init__()
        self.synapses = nn.Linear(inputs, NEURONS, bias=False)
        nn.init.uniform_(self.synapses.weight)
        self.neurons = snn.Leaky(
            beta=0.75, threshold=torch.ones(NEURONS), reset_mechanism="zero", inhibition=True, init_hidden=True
        )
        self.normalise()

    def forward(self, x):
        """One time step: pixels [B, inputs] to spikes [B, neurons]."""
        return self.neurons(self.synapses(x))

    @torch.no_grad()
    def normalise(self):
        """No weight below zero, and the same sum for each neuron."""
        weight = self.synapses.weight.clamp_(min=0)
        weight.mul_(SUM_OF_WEIGHTS / weight.sum(1, keepdim=True))

    def adapt_thresholds(self, spikes):
        """Spikes [B, neurons] of a batch: whoever fired more than its share gets a higher threshold."""
        excess = spikes.mean(0) - spikes.mean()
        self.neurons.threshold = (self.neurons.threshold + THRESHOLD_RATE * NEURONS * excess / STEPS).clamp(min=0.05)


def load(samples):
    """Events as spikes [N, steps, pixels], with labels, for training and test."""
    data = EventDigitsDataModule(num_steps=STEPS, downsample=2, batch_size=100, num_samples=samples)
    data.prepare_data()
    data.setup()
    parts = []
    for loader in (data.train_dataloader(), data.test_dataloader()):
        batches = [((frames > 0).float().flatten(2), labels) for frames, _, labels in loader]
        parts.append(tuple(torch.cat(column) for column in zip(*batches, strict=True)))
    return parts


def train(layer, frames, epochs, learn=True):
    optimizer = STLLRLearner(layer, torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE), rule=RULE)
    for _ in range(epochs):
        for batch in torch.randperm(len(frames)).split(BATCH):
            spikes = torch.zeros(len(batch), NEURONS)
            for x in frames[batch].unbind(1):
                spikes += layer(x).detach()
                if learn:
                    optimizer.reinforce()
            layer.adapt_thresholds(spikes)
            if learn:
                optimizer.step()  # also ends the sequence
                optimizer.zero_grad()
                layer.normalise()
            else:
                optimizer.reset()
    optimizer.detach()


@torch.no_grad()
def spike_counts(layer, frames):
    layer.eval()
    counts = []
    for batch in frames.split(200):
        layer.neurons.reset_mem()
        counts.append(sum(layer(x) for x in batch.unbind(1)))
    layer.neurons.reset_mem()
    layer.train()
    return torch.cat(counts)


def votes(counts, labels, test_counts):
    """Each neuron belongs to the class at which it fired most; the class whose neurons fire most on average wins."""
    response = torch.stack([counts[labels == digit].mean(0) for digit in range(10)])
    members = nn.functional.one_hot(response.argmax(0), 10).float()
    return (test_counts @ (members / members.sum(0).clamp(min=1))).argmax(1)


def read_out(layer, frames, labels, test_frames, test_labels):
    counts, test_counts = spike_counts(layer, frames), spike_counts(layer, test_frames)
    linear = LogisticRegression(max_iter=1000).fit(counts, labels)
    return {
        "votes": (votes(counts, labels, test_counts) == test_labels).float().mean().item(),
        "linear": linear.score(test_counts, test_labels),
    }


def main(epochs=15, samples=None, seed=0):
    (frames, labels), (test_frames, test_labels) = load(samples)
    results = {}
    for name, learn in (("random weights", False), ("STDP", True)):
        torch.manual_seed(seed)
        layer = Layer(frames.shape[2])
        train(layer, frames, epochs, learn)
        results[name] = read_out(layer, frames, labels, test_frames, test_labels)
    events = LogisticRegression(max_iter=1000).fit(frames.sum(1), labels)
    results["events, no layer"] = {"linear": events.score(test_frames.sum(1), test_labels)}
    for name, found in results.items():
        print(f"{name:17}", "  ".join(f"{kind} {accuracy:6.1%}" for kind, accuracy in found.items()))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--samples", type=int, default=None, help="use only the first so many of the 1797 recordings")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
