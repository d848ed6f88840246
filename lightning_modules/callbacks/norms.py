"""Norms of gradients and traces, by edge."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from stllr_plugin import STLLRLearner


class EdgeNorms(Callback):
    """Writes norms of gradients and traces into the log, to see where learning fades or explodes.

    ``grad_norm/<edge>``, with edges named as in the learner's report (``fc1->lif1``), is the norm of the gradient of
    all parameters of the edge's synapse, before clipping. Layers without an edge (readouts, norm layers) and networks
    without a learner ("bptt") go by the module's name. ``trace_norm/<edge>/pre`` and ``/post`` are the norms of the
    traces at the end of the sequence, one per sample, averaged over the batch.

    Args:
        every_n_steps: Write at every so many optimizer steps.

    Attributes:
        latest: The norms that were written last.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: at least one step lies between two measurements.")
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, and write; mixed precision has unscaled the gradients, clipping is still to come."""
        if trainer.global_step % self.every_n_steps:
            return
        network = getattr(pl_module, "network", pl_module)
        learner = getattr(pl_module, "learner", None)
        norms = gradient_norms(network, learner)
        if learner is not None:
            norms.update(trace_norms(learner))
        self.latest = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step)


def gradient_norms(network: nn.Module, learner: STLLRLearner | None = None) -> dict[str, Tensor]:
    """``grad_norm/<edge or module>`` to the norm of the gradient of its parameters."""
    owners: dict[str, list[str]] = {}  # synapse -> its edges
    if learner is not None:
        for edge in learner.report().edges:
            owners.setdefault(edge.synapse, []).append(edge.name)
    squares: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        square = parameter.grad.detach().float().square().sum()
        module = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        for owner in owners.get(_owner(name, owners), [module or name]):
            squares[owner] = squares[owner] + square if owner in squares else square
    return {f"grad_norm/{name}": square.sqrt() for name, square in squares.items()}


def _owner(parameter: str, synapses: dict[str, Any]) -> str:
    """The synapse to which a parameter belongs: itself, or the module around it (parametrized weights lie deeper)."""
    name = parameter
    while name and name not in synapses:
        name = name.rpartition(".")[0]
    return name


def trace_norms(learner: STLLRLearner) -> dict[str, Tensor]:
    """``trace_norm/<edge>/pre`` and ``/post`` to the mean norm of a sample's trace."""
    return {
        f"trace_norm/{edge}/{kind}": trace.detach().float().flatten(1).norm(dim=1).mean()
        for edge, traces in learner.traces().items()
        for kind, trace in traces.items()
        if trace is not None
    }
