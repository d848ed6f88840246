"""Look inside a network while one sequence runs: spikes of a layer, traces and eligibility of one synapse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_modules.tasks.states import reset_states, spikes_of
from stllr_plugin import STLLRLearner, STLLRRule


@dataclass(frozen=True)
class Recording:
    """What happened in one spiking layer during one sequence.

    Attributes:
        edge: Name of the connection, "synapse->neuron".
        rule: The rule of its traces.
        spikes: Spikes of all neurons of the layer, [T, neurons].
        pre: Presynaptic trace of the chosen input, [T].
        post: Postsynaptic trace of the chosen neuron, [T].
    """

    edge: str
    rule: STLLRRule
    spikes: Tensor
    pre: Tensor
    post: Tensor

    @property
    def inputs(self) -> Tensor:
        """Input x[t] of the chosen synapse, from its trace: [T]."""
        return self.pre - float(self.rule.lambda_pre) * _before(self.pre)

    @property
    def psi(self) -> Tensor:
        """The chosen neuron's secondary activation, from its trace: [T]."""
        return self.post - self.rule.lambda_post * _before(self.post)

    @property
    def causal(self) -> Tensor:
        """First term of the eligibility, alpha_pre * psi(v[t]) * tr_x[t]: [T]."""
        return self.rule.alpha_pre * self.psi * self.pre

    @property
    def noncausal(self) -> Tensor:
        """Second term of the eligibility, alpha_post * x[t] * tr_psi[t-1]: [T]."""
        return self.rule.noncausal_scale * self.inputs * _before(self.post)


def record_sequence(
    network: nn.Module, frames: Tensor, rule: STLLRRule, neuron: str, input_of: tuple[int, int, int] | None = None
) -> Recording:
    """Run one sequence through a convolutional network with S-TLLR attached and keep what one synapse saw.

    The network is left as it was (mode, states, no learner); its weights do not change. Shown is the neuron of the
    layer whose trace varied most, and of the inputs in its receptive field one that spiked in about a third of steps.

    Args:
        network: One call is one time step; nothing may be attached to it.
        frames: One sequence, [T, C, H, W].
        rule: Rule of the traces.
        neuron: Name of the spiking layer.
        input_of: Channel, row and column of the neuron to show; the one whose trace varied most if None.
    """
    spikes, pres, posts = [], [], []
    was_training = network.training
    layer = network.get_submodule(neuron)
    heard = layer.register_forward_hook(
        lambda module, args, output: spikes.append(spikes_of(output).detach()[0].flatten())
    )
    try:
        with STLLRLearner(network, rule=rule) as learner:
            network.train()
            learner.reset()
            reset_states(network)
            for frame in frames:
                network(frame.unsqueeze(0))
                (edge,) = (name for name in learner.traces() if name.endswith(f"->{neuron}"))
                traces = learner.traces()[edge]
                pres.append(_sample(traces["pre"]))
                posts.append(_sample(traces["post"]))
            (seen,) = (one for one in learner.report().edges if one.name == edge)
            rule = replace(rule, lambda_pre=seen.rule["lambda_pre"])  # a number, where the rule says "leak"
    finally:
        heard.remove()
        reset_states(network)
        network.train(was_training)
    pre, post = torch.stack(pres), torch.stack(posts)
    chosen = input_of or _unravel(int(post.std(0).argmax()), post.shape[1:])
    source = _telling_input(network.get_submodule(edge.partition("->")[0]), pre, post, chosen, rule)
    return Recording(edge, rule, torch.stack(spikes), _at(pre, source), _at(post, chosen))


def _before(trace: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(trace[:1]), trace[:-1]))


def _at(traces: Tensor, place: tuple[int, ...]) -> Tensor:
    """The trace of one place, [T], out of [T, ...]."""
    for position in place:
        traces = traces[:, position]
    return traces


def _sample(trace: Tensor | None) -> Tensor:
    assert trace is not None, "The layer has no such trace."
    return trace.detach()[0].float().cpu()


def _unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index), shape))


def _telling_input(
    synapse: nn.Module, pre: Tensor, post: Tensor, neuron: tuple[int, ...], rule: STLLRRule
) -> tuple[int, ...]:
    """An input of the neuron that is active now and then; one that always or never is would show little."""
    inputs = pre - float(rule.lambda_pre) * _before(pre)
    distance = ((inputs > 0.5).float().mean(0) - 1 / 3).abs()
    if isinstance(synapse, nn.Conv2d):
        allowed = torch.zeros_like(distance, dtype=torch.bool)
        window = []
        for axis in (0, 1):  # rows, then columns: the kernel around the neuron's place, whatever pooling lies between
            kernel, stride, padding = synapse.kernel_size[axis], synapse.stride[axis], int(synapse.padding[axis])
            outputs = (pre.shape[2 + axis] + 2 * padding - kernel) // stride + 1
            place = neuron[1 + axis] * (outputs // post.shape[2 + axis]) * stride - padding
            window.append(slice(max(place, 0), place + kernel))
        allowed[(slice(None), *window)] = True
        distance = distance.masked_fill(~allowed, 2.0)
    return _unravel(int(distance.argmin()), distance.shape)
