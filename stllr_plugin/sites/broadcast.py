"""Notices that DistributedDataParallel has copied the hidden states of rank 0 over those of this process."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.parallel import DistributedDataParallel

from stllr_plugin.errors import StateError
from stllr_plugin.neuron import Neuron
from stllr_plugin.traces import NeuronTraces


def refuse_broadcast_states(neuron: Neuron, layers: Sequence[NeuronTraces]) -> None:
    """Raises StateError if that has just happened in the middle of a sequence.

    DDP writes in place and leaves no mark on the tensor, but while its forward runs it lists the buffers that it sent.
    A sequence that begins within that forward is safe: its states are new.

    Args:
        neuron: The neuron that is about to run.
        layers: The layers that it serves.
    """
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if ddp is None or not any(traces.steps for traces in layers):
        return
    states = [neuron.module._buffers.get(name) for name in neuron.adapter.state_buffers(neuron.module)]
    if any(state is sent for state in states for sent in getattr(ddp, "modules_buffers", ())):
        raise StateError(
            f"The hidden state of neuron {neuron.name!r} was overwritten between two time steps: "
            "DistributedDataParallel copies the buffers of rank 0 to all processes at each forward. Attach the "
            "learner to the model that you wrap, before wrapping it, or wrap with broadcast_buffers=False (newer "
            "torch: forward_sync_buffers=False; Lightning: DDPStrategy(broadcast_buffers=False))."
        )
