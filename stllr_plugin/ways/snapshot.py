"""What running a model changes, noted so that it can be undone."""

from __future__ import annotations

import torch

from stllr_plugin.network import Network
from stllr_plugin.neurons import find_keeper
from stllr_plugin.nn import SequenceDropout


class Snapshot:
    """States, buffers and random generators at the start of a sequence."""

    def __init__(self, network: Network) -> None:
        """Notes them."""
        self.supervision = network.session.supervision
        self.buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in network.model.modules()
            for name, buffer in module._buffers.items()
        ]
        self.kept = [
            (keeper, module, keeper.save(module))
            for module in network.model.modules()
            if (keeper := find_keeper(module)) is not None
        ]
        self.states = [(neuron, neuron.adapter.save_states(neuron.module)) for neuron in network.neurons]
        self.masks = [(m, m.mask) for m in network.model.modules() if isinstance(m, SequenceDropout)]
        self.sequence, self.steps = self.supervision.sequence, self.supervision.sequence.steps
        self.cpu = torch.get_rng_state()
        devices = {parameter.device for parameter in network.model.parameters() if parameter.device.type != "cpu"}
        self.devices = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]

    def restore(self) -> None:
        """Puts them back; may be called again."""
        for module, name, buffer, value in self.buffers:
            if buffer is None or value is None or name in module._non_persistent_buffers_set:
                module._buffers[name] = (
                    None if value is None else value.clone()
                )  # states, which modules replace rather than overwrite
            else:
                with torch.no_grad():
                    buffer.copy_(value)
                module._buffers[name] = buffer
        for keeper, module, saved in self.kept:
            keeper.restore(module, saved)
        for neuron, states in self.states:
            neuron.adapter.restore_states(neuron.module, states)
        for dropout, mask in self.masks:
            dropout.mask = mask
        self.supervision.sequence, self.sequence.steps = self.sequence, self.steps
        torch.set_rng_state(self.cpu)
        for device, state_of in self.devices:
            torch.get_device_module(device).set_rng_state(state_of, device)
