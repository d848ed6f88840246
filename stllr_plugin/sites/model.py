"""Around one call of the whole model: what it returns at a step that is not supervised teaches nothing.

Neurons and readouts drop such signals themselves. What lies behind them (a norm layer or a scale after the last
synapse) has no hook of ours, so its share is dropped where the model returns. This needs a model whose call is one time
step; where the loop over time is inside ``forward``, parameters behind the last synapse follow the caller's loss.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.masked import masked
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.session import Session
from stllr_plugin.sites.unknown import look_for_spikes
from stllr_plugin.supervision import Sequence
from stllr_plugin.walk import find_calls


class ModelSite:
    """The attached model as a whole."""

    def __init__(self, session: Session, model: nn.Module) -> None:
        """See the class."""
        self.session = session
        self.model = model
        self._steps_before = 0

    def attach(self) -> list[Any]:
        """Registers the hooks, behind those of synapses and neurons; returns their handles."""
        return [
            self.model.register_forward_pre_hook(_BeforeModel(self)),
            self.model.register_forward_hook(_AfterModel(self)),
        ]

    def before(self, args: tuple[Any, ...]) -> None:
        """Notes where the sequence stands."""
        if self.session.is_recording:
            self.session.enter()
            if self.session.updates.watching and self.session.window is None:
                sequence = self.session.sequence
                self.session.updates.see_input(sequence.number, not sequence.steps, args)
        self._steps_before = self.session.supervision.steps_run
        self.session.time.model_calls += 1

    def after(self, output: Any) -> Any:
        """Masks the output of one time step; looks for neurons that the learner does not know behind the last layer."""
        sequence = self.session.sequence
        if not self.session.is_recording or self.session.window is not None:
            return None
        map_tensors(output, self._look)
        if sequence.all_supervised:
            return None
        if self.session.supervision.steps_run - self._steps_before > 1:
            return None  # the loop over time is inside
        step = sequence.clock
        if not sequence.needs_graph(step):
            return map_tensors(output, Tensor.detach)
        return map_tensors(output, lambda tensor: _of_step(tensor, sequence, step))

    def _look(self, tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:
            calls, _ = find_calls(tensor.grad_fn, tensor.shape)
            look_for_spikes(self.session, "the loss (the model's output)", tensor, [call for _, call, _ in calls])
        return tensor


def _of_step(tensor: Tensor, sequence: Sequence, step: int) -> Tensor:
    lengths = sequence.lengths
    per_sample = lengths is None or (tensor.dim() > 0 and tensor.shape[0] == lengths.shape[0])
    return masked(tensor, lambda grad: sequence.mask(grad, step)) if per_sample else tensor


class _BeforeModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.site.before(args)


class _AfterModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.site.after(output)
