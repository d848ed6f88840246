"""One window: the model is called once, on K time steps stacked along the batch dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stllr_plugin.calls import SynapseCall
from stllr_plugin.hooks import eager
from stllr_plugin.network import Network
from stllr_plugin.nn import SequenceDropout
from stllr_plugin.record import GIVEN_UP
from stllr_plugin.responses.base import NeedsStepsError
from stllr_plugin.sites.neuron import NeuronSite
from stllr_plugin.sparse import with_sparse_inputs
from stllr_plugin.supervision import OpenWindow
from stllr_plugin.ways.windows.neuron import Steps, run_neuron
from stllr_plugin.ways.windows.takeover import Takeover


def _sparse(module: nn.Linear, forward: Callable[..., Any]) -> Callable[..., Any]:
    return eager(with_sparse_inputs(module, forward))


class Window:
    """A context, to be entered once, in which the model takes and returns [K * B, ...], step 0 first.

    Layers without a state see one big batch. Neurons run through their K steps. Batch norm in training mode, whose
    statistics are those of one step, and dropout that is fixed over a sequence, are called for each step.

    Args:
        network: The attached network.
        opened: The steps.
        batch: B.
    """

    def __init__(self, network: Network, opened: OpenWindow, batch: int) -> None:
        """See the class."""
        self.network = network
        self.opened = opened
        self.num_steps = opened.num_steps
        self.batch = batch
        self._calls: list[SynapseCall] = []
        self._runs: dict[str, int] = {}
        replacements: list[tuple[nn.Module, Callable[[Callable[..., Any]], Callable[..., Any]]]] = []
        synaptic = network.synaptic_parameters
        steps = Steps(opened, batch, self._calls, synaptic)
        for site in network.neurons:
            replacements.append((site.module, self._neuron(site, steps)))
        for module in network.model.modules():
            statistics = isinstance(module, _NormBase) and module.training and module.track_running_stats
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            if statistics or batch_norm or isinstance(module, SequenceDropout):
                replacements.append((module, self._each_step))
        for synapse in network.synapses:
            layer = getattr(synapse, "module", None)
            own = getattr(synapse, "has_own_forward", False)
            if type(layer) is nn.Linear and not own and isinstance(layer._parameters.get("weight"), nn.Parameter):
                replacements.append((layer, partial(_sparse, layer)))
        self._takeover = Takeover(replacements)

    def __enter__(self) -> Window:
        """Takes the modules over."""
        self._runs.clear()
        session = self.network.session
        session.window = self.opened
        session.time.pass_by(self.opened.stop)
        self._takeover.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Gives them back."""
        self._takeover.__exit__(*error)
        self.network.session.window = None
        for call in self._calls:  # their neurons have them
            call.give_up(GIVEN_UP)
        self._calls.clear()
        self._takeover = Takeover([])  # whose functions hold this window

    def _neuron(self, site: NeuronSite, steps: Steps) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def replace(forward: Callable[..., Any]) -> Callable[..., Any]:
            @eager
            def run(*args: Any, **kwargs: Any) -> Any:
                self._runs[site.name] = self._runs.get(site.name, 0) + 1
                if self._runs[site.name] > 1:
                    raise NeedsStepsError(f"neuron {site.name!r} runs several times within a step")
                return run_neuron(site, steps, forward, args, kwargs)

            return run

        return replace

    def _each_step(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @eager
        def run(x: Tensor) -> Tensor:
            return torch.cat([forward(step) for step in x.chunk(self.num_steps)])

        return run
