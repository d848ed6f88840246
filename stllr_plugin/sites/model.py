"""Around one call of the whole model: what it returns at a step that is not supervised teaches nothing.

Neurons and readouts drop such signals themselves. What lies behind them (a norm layer or a scale after the last
synapse) has no hook of ours, so its share is dropped where the model returns. This needs a model whose call is one time
step; where the loop over time is inside ``forward``, parameters behind the last synapse follow the caller's loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd import Function

from stllr_plugin.hooks import Hook, eager
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.supervision import Supervision

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class ModelSite:
    """The attached model as a whole."""

    def __init__(self, learner: STLLRLearner, model: nn.Module) -> None:
        """See the class."""
        self.learner = learner
        self.model = model
        self._steps_before = 0

    def attach(self) -> list[Any]:
        """Registers the hooks, behind those of synapses and neurons; returns their handles."""
        return [
            self.model.register_forward_pre_hook(_BeforeModel(self)),
            self.model.register_forward_hook(_AfterModel(self)),
        ]

    def before(self) -> None:
        """Notes where the sequence stands."""
        self._steps_before = self.learner.supervision.steps_run
        self.learner.model_calls += 1

    def after(self, output: Any) -> Any:
        """Masks the output of one time step."""
        supervision = self.learner.supervision
        every_step = supervision.last is None and supervision.random is None and supervision.lengths is None
        if not self.learner.is_recording or every_step:
            return None
        if supervision.steps_run - self._steps_before > 1:
            return None  # the loop over time is inside
        step = supervision.clock
        if not supervision.needs_graph(step):
            return map_tensors(output, Tensor.detach)
        return map_tensors(output, lambda tensor: _mask(tensor, supervision, step))


def _mask(tensor: Tensor, supervision: Supervision, step: int) -> Tensor:
    lengths = supervision.lengths
    per_sample = lengths is None or (tensor.dim() > 0 and tensor.shape[0] == lengths.shape[0])
    return StepMask.apply(supervision, step, tensor) if tensor.requires_grad and per_sample else tensor


class StepMask(Function):
    """Identity on a model's output; drops the gradient of steps and samples that are not supervised."""

    @staticmethod
    def forward(ctx: Any, supervision: Supervision, step: int, tensor: Tensor) -> Tensor:
        """Returns the tensor, under a new one."""
        ctx.supervision, ctx.step = supervision, step
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor | None]:
        """See the class."""
        return None, None, ctx.supervision.mask(grad, ctx.step)


class _BeforeModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: Any) -> None:
        self.site.before()


class _AfterModel(Hook):
    refuses = False

    def __init__(self, site: ModelSite) -> None:
        super().__init__("")
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.site.after(output)
