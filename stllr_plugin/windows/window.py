"""One window: the model is called once, on K time steps stacked along the batch dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stllr_plugin.hooks import eager
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.nn import SequenceDropout
from stllr_plugin.sparse import with_sparse_inputs
from stllr_plugin.windows.errors import NeedsStepsError
from stllr_plugin.windows.takeover import Takeover

if TYPE_CHECKING:
    from stllr_plugin.graft import SynapseCall
    from stllr_plugin.learner import STLLRLearner
    from stllr_plugin.sites import NeuronSite


GIVEN_UP = torch.empty(0)  # in place of a tensor that autograd keeps for us


def _sparse(module: nn.Linear, forward: Callable[..., Any]) -> Callable[..., Any]:
    return eager(with_sparse_inputs(module, forward))


class Window:
    """A context in which the model takes and returns [K * B, ...], step 0 first.

    Layers without a state see one big batch. Neurons run through their K steps. Batch norm in training mode, whose
    statistics are those of one step, and dropout that is fixed over a sequence, are called for each step.

    Attributes:
        num_steps: K.
        batch: B.
        supervised: Whether a loss is given to these steps; else nothing keeps a graph.
        calls: Synapse calls that neurons have taken in.
    """

    def __init__(self, learner: STLLRLearner, num_steps: int, batch: int, supervised: bool) -> None:
        """See the class."""
        self.learner = learner
        self.num_steps = num_steps
        self.batch = batch
        self.supervised = supervised
        self.calls: list[SynapseCall] = []
        self._runs: dict[str, int] = {}
        replacements: list[tuple[nn.Module, Callable[[Callable[..., Any]], Callable[..., Any]]]] = []
        for site in learner.neurons:
            replacements.append((site.module, self._neuron(site)))
        for module in learner.model.modules():
            statistics = isinstance(module, _NormBase) and module.training and module.track_running_stats
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            if statistics or batch_norm or isinstance(module, SequenceDropout):
                replacements.append((module, self._each_step))
        for synapse in learner.synapse_sites:
            layer = getattr(synapse, "module", None)
            if type(layer) is nn.Linear and isinstance(layer._parameters.get("weight"), nn.Parameter):
                replacements.append((layer, partial(_sparse, layer)))
        self._takeover = Takeover(replacements)

    def __enter__(self) -> Window:
        """Takes the modules over."""
        self._runs.clear()
        self.learner.window = self
        self._takeover.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Gives them back."""
        self._takeover.__exit__(*error)
        self.learner.window = None
        for call in self.calls:  # their neurons have them
            call.x, call.version = GIVEN_UP, GIVEN_UP._version
        self.calls.clear()

    def _neuron(self, site: NeuronSite) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        from stllr_plugin.windows.neuron import run_neuron

        def replace(forward: Callable[..., Any]) -> Callable[..., Any]:
            @eager
            def run(*args: Any, **kwargs: Any) -> Any:
                self._runs[site.name] = self._runs.get(site.name, 0) + 1
                if self._runs[site.name] > 1:
                    raise NeedsStepsError(f"neuron {site.name!r} runs several times within a step")
                return run_neuron(site, self, forward, args, kwargs)

            return run

        return replace

    def _each_step(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @eager
        def run(x: Tensor) -> Tensor:
            return torch.cat([forward(step) for step in x.chunk(self.num_steps)])

        return run

    def first_states(
        self, site: NeuronSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """Splits a neuron's arguments into its input [K * B, ...] and the states of the first step.

        States that come in over a whole window are those which the window before gave out: its last step counts.
        """
        if not args or not isinstance(args[0], Tensor):
            raise NeedsStepsError(f"neuron {site.name!r} gets its input by keyword")
        current = args[0]
        if current.shape[:1] != (self.num_steps * self.batch,):
            raise NeedsStepsError(
                f"neuron {site.name!r} gets an input of shape {tuple(current.shape)}, in which the batch of "
                f"{self.batch} is not the first dimension"
            )

        def last(state: Tensor) -> Tensor:
            if state.numel() == 0:
                return state  # snnTorch's states before the first step
            if state.dim() == 0 or state.shape[0] < self.batch:
                raise NeedsStepsError(f"neuron {site.name!r} gets a state of shape {tuple(state.shape)}")
            return state.detach()[-self.batch :]

        return current, map_tensors(args[1:], last), {name: map_tensors(value, last) for name, value in kwargs.items()}
