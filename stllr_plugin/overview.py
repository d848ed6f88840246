"""Looking into an attached network: the report, its traces, its memory, and whether all of it is finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stllr_plugin.activations import resolve_psi
from stllr_plugin.errors import NonFiniteError
from stllr_plugin.network import Network
from stllr_plugin.precision import num_bytes
from stllr_plugin.report import Edge, Report


def report(network: Network, settings: dict[str, Any]) -> Report:
    """What is trained how."""
    edges: dict[str, Edge] = {}
    for neuron, _, edge, rule in network.edges():
        edges[edge.name] = Edge(
            edge.name, edge.site.name, neuron.name, rule.describe(), neuron.adapter.spiking, edge.reached
        )
    plan = network.plan
    fed = {edge.synapse for edge in edges.values()}
    frozen = {name for name, module, synapse in plan.synapses if not synapse.trainable(module)}
    readouts = (s.name for s in network.synapses if s.name not in fed and s.name not in frozen)
    return Report(
        edges=tuple(edges.values()),
        synapses={site.name: type(getattr(site, "module", site)).__name__ for site in network.synapses},
        neurons={neuron.name: type(neuron.module).__name__ for neuron in network.neurons},
        readouts=tuple(readouts) if edges else (),
        other_parameters=tuple(plan.other_parameters),
        excluded=tuple(name for name, _ in plan.excluded),
        settings=settings if network.run_notes is None else {**settings, "run": network.run_notes},
    )


def traces(network: Network) -> dict[str, dict[str, Tensor | None]]:
    """The running traces by edge name: "pre" (shape of the synapse's input) and "post" (of the neuron), or None."""
    result: dict[str, dict[str, Tensor | None]] = {}
    for _, layer in network.layers():
        layer.settle()
    for _, layer, edge, rule in network.edges():
        post = layer.posts.get((resolve_psi(rule.psi), rule.lambda_post))
        edge.lent = True
        result[edge.name] = {"pre": edge.pre, "post": None if post is None else post.trace}
    return result


def memory_usage(network: Network) -> dict[str, int]:
    """Bytes held between time steps, by what they are for, and their total."""
    usage = {"pre": 0, "post": 0, "feedback": 0}
    for _, layer in network.layers():
        layer.settle()
        usage["pre"] += sum(num_bytes(edge.pre) for edge in layer.edges.values())
        usage["post"] += sum(num_bytes(post.trace) for post in layer.posts.values())
    usage.update(network.signal.memory())
    if network.session.fold_steps > 1:
        waiting = [edge.waiting for _, _, edge, _ in network.edges() if edge.waiting is not None]
        usage["waiting"] = sum(num_bytes(steps.inputs) + num_bytes(steps.factors) for steps in waiting)
    return {**usage, "total": sum(usage.values())}


def assert_finite(network: Network) -> None:
    """Looks for NaN and infinity in traces and in the gradients of the model; reads one value from the device.

    Raises:
        NonFiniteError: Names the first place in the order input, membrane, gradient.
    """
    checks: list[tuple[str, Tensor]] = []
    for neuron, layer in network.layers():
        layer.settle()
        for edge in layer.edges.values():
            if edge.pre is not None:
                checks.append((f"the presynaptic trace of edge {edge.name}: the input of that synapse was", edge.pre))
        for post in layer.posts.values():
            if post.trace is not None:
                checks.append(
                    (f"the postsynaptic trace of neuron {neuron.name!r}: psi of its membrane was", post.trace)
                )
    for name, parameter in network.model.named_parameters():
        if parameter.grad is not None:
            checks.append((f"the gradient of parameter {name!r}: the loss or the learning signal was", parameter.grad))
    if not checks:
        return
    home = checks[0][1].device
    flags = torch.stack([tensor.isfinite().all().to(home) for _, tensor in checks]).cpu()
    if not bool(flags.all()):
        place = checks[int(flags.logical_not().nonzero()[0])][0]
        raise NonFiniteError(
            f"NaN or infinity in {place} not finite. Nothing was updated. Look for NaN in the data, for exploding "
            "weights (clip the gradients, lower the learning rate), or for a psi or surrogate that overflows."
        )
