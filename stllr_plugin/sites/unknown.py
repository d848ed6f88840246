"""Looks for spikes of neurons that the learner does not know, where a neuron or the loss takes something in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stllr_plugin.calls import SynapseCall
from stllr_plugin.session import Session
from stllr_plugin.walk import made_without_neuron


def look_for_spikes(session: Session, name: str, tensor: Tensor, calls: Sequence[SynapseCall]) -> None:
    """Watches the values of a tensor and of the inputs of the synapses behind it, where they may be such spikes.

    Args:
        session: What all parts of the learner share.
        name: Of what takes the tensor in, for messages.
        tensor: A neuron's input, or what the model returned.
        calls: The synapse calls behind it.
    """
    if not calls or tensor.grad_fn is None:
        return
    wiring = (name, frozenset(call.site.name for call in calls))
    if not session.watch.wants(wiring, session.sequence.number):
        return
    itself, inputs = made_without_neuron(tensor.grad_fn)
    if itself:
        session.watch.look(f"The input of {name}", tensor)
    for call in inputs:
        session.watch.look(f"The input of synapse {call.site.name!r}", call.x)
