"""Synapses that are not called at a step at which their neuron runs: as if they had been called on zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from stllr_plugin.calls import SynapseCall, Tag
from stllr_plugin.neuron import Neuron
from stllr_plugin.traces import EdgeTraces, NeuronTraces


def mark_skipped(neuron: Neuron, traces: NeuronTraces, current: Tensor, called: list[SynapseCall]) -> Tensor:
    """Marks a neuron's input with the synapses that usually add to it and were not called at this step.

    Their traces still have a part in the step, through the membrane, which the marks put into its graph. Synapses with
    something other than a sum between them and the neuron are left out: what that would have made of zeros is not
    known.

    Args:
        neuron: The neuron.
        traces: Those of the layer that runs.
        current: Its input.
        called: The synapse calls that add to it; those marked here are added to the list.
    """
    usual = [edge for edge in traces.edges.values() if edge.direct and edge.like is not None]
    if len(usual) <= len(called):
        return current
    sites = [call.site for call in called]
    for edge in usual:
        if edge.site in sites:
            sites.remove(edge.site)
        elif neuron.rule_for(edge.site.rule).lambda_pre != 0.0:
            current = _called_on_zeros(neuron, edge, current, called)
    return current


def _called_on_zeros(neuron: Neuron, edge: EdgeTraces, current: Tensor, called: list[SynapseCall]) -> Tensor:
    like = edge.like
    assert like is not None
    weight = edge.site.current_weight()
    if not weight.requires_grad:
        return current
    zeros = torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
    session = neuron.session
    call = SynapseCall(edge.site, zeros, zeros._version, weight, session.next_order(), current.shape)
    called.append(call)
    return Tag.apply(call, current, weight)  # type: ignore[no-any-return]
