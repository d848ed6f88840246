"""Learning signals: where delta_i[t] of a hidden layer comes from.

"bp" carries it down through the layers of the same time step. Direct feedback alignment ("dfa") replaces it by fixed
random matrices times the output error, ``delta = e @ B`` with ``e = dL[t]/d(output)``; "sign_dfa" uses the sign of the
error, ``sign(e) @ B``. (Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", NeurIPS 2016;
S-TLLR paper, Sec. 4.2.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.sites import NeuronSite

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


class LearningSignal:
    """The signal "bp": it reaches hidden layers through the layers above, at the same time step."""

    name = "bp"

    def hidden(self, site: NeuronSite, spikes: Tensor) -> Tensor:
        """Called with each neuron's grafted spikes; returns what the layers above see."""
        return spikes

    def reaches(self, site: NeuronSite) -> bool:
        """Whether the signal comes to this neuron directly, so that nothing may reach it through other layers."""
        return False

    def attach(self) -> list[Any]:
        """Registers what the signal needs; returns handles."""
        return []

    def restart(self) -> None:
        """Forgets the running step."""


class Feedback(MutableMapping[str, Tensor]):
    """Feedback matrices by neuron module name, each [outputs, *neuron shape].

    A matrix that was not set is drawn when it is first needed: Kaiming uniform, from ``seed`` and the neuron's name
        alone.
    """

    def __init__(self, names: list[str], seed: int) -> None:
        """Args: names of the hidden neurons; the seed."""
        self.names = names
        self.seed = seed
        self._agreed = False
        self._matrices: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The matrix of one neuron, once it was set or drawn."""
        return self._matrices[name]

    def __setitem__(self, name: str, matrix: Tensor) -> None:
        """Sets a matrix; its shape is checked when it is used."""
        if name not in self.names:
            raise RuleError(f"There is no hidden spiking neuron named {name!r}; feedback goes to {self.names}.")
        self._matrices[name] = matrix.detach()

    def __delitem__(self, name: str) -> None:
        """Drops a matrix; it will be drawn anew when needed."""
        del self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the matrices that exist."""
        return iter(self._matrices)

    def __len__(self) -> int:
        """Number of matrices that exist."""
        return len(self._matrices)

    def _agree_on_seed(self) -> None:
        """Takes rank 0's seed, since processes often differ in theirs and must not differ in the matrices."""
        dist = torch.distributed
        if not self._agreed and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            seeds = [self.seed]
            dist.broadcast_object_list(seeds, src=0)
            self.seed = seeds[0]
        self._agreed = True

    def matrix(self, name: str, outputs: int, like: Tensor) -> Tensor:
        """The matrix of a neuron whose spikes are ``like`` [B, *shape], on its device; drawn if need be."""
        shape = (outputs, *like.shape[1:])
        if name not in self._matrices:
            self._agree_on_seed()
            # The CPU generator gives the same numbers on every device.
            generator = torch.Generator().manual_seed((self.seed + zlib.crc32(name.encode())) % 2**63)
            matrix = torch.empty(shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(matrix, generator=generator)
            self._matrices[name] = matrix
        matrix = self._matrices[name]
        if tuple(matrix.shape) != shape:
            raise StateError(
                f"learner.feedback[{name!r}] has shape {tuple(matrix.shape)}, but this network needs {shape} (outputs, "
                "then the shape of the neuron's spikes without the batch)."
            )
        if matrix.device != like.device:
            matrix = self._matrices[name] = matrix.to(like.device)
        return matrix.to(like.dtype)


class DirectFeedback(LearningSignal):
    """The signals "dfa" and "sign_dfa": the output error of each step, projected straight to every hidden layer."""

    def __init__(
        self, learner: STLLRLearner, output_name: str, output: nn.Module, hidden: list[str], sign: bool, seed: int
    ) -> None:
        """Args: the learner, the module whose output the loss sees, names of the hidden neurons, and the seed."""
        self.name = "sign_dfa" if sign else "dfa"
        self.learner = learner
        self.output_name = output_name
        self.output = output
        self.sign = sign
        self.feedback = Feedback(hidden, seed)
        self._waiting: dict[str, tuple[Tensor, int]] = {}

    def hidden(self, site: NeuronSite, spikes: Tensor) -> Tensor:
        """Keeps the grafted spikes for the error of this step; the layers above see them cut off."""
        if not self.reaches(site):
            return spikes
        self._waiting[site.name] = (spikes, self.learner.supervision.clock)
        return spikes.detach()

    def reaches(self, site: NeuronSite) -> bool:
        """True for hidden neurons."""
        return site.name in self.feedback.names

    def attach(self) -> list[Any]:
        """Hooks the output module, after the hooks of synapses and neurons."""
        return [self.output.register_forward_hook(_OutputHook(self))]

    def restart(self) -> None:
        """See the base class."""
        self._waiting.clear()

    def deliver(self, result: Any) -> Any:
        """Routes the error that will arrive at the outputs of this step to the hidden layers."""
        clock = self.learner.supervision.clock
        late = [name for name, (_, step) in self._waiting.items() if step != clock]
        if late:
            raise StateError(
                f"Neurons {late} run after module {self.output_name!r}, which is taken for the output, so no error of "
                "their time step can reach them. Name the module that the loss sees with output=."
            )
        waiting = {name: spikes for name, (spikes, _) in self._waiting.items() if spikes.requires_grad}
        self._waiting = {}
        items = list(result) if isinstance(result, tuple) else [result]
        places = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.requires_grad]
        if not waiting or not places:
            return result
        outputs = [items[place] for place in places]
        width = outputs[0].flatten(1).shape[1]
        if any(output.flatten(1).shape[1] != width for output in outputs):
            raise StateError(
                f"The outputs of module {self.output_name!r} have different sizes; name the module that the loss sees."
            )
        matrices = [self.feedback.matrix(name, width, spikes) for name, spikes in waiting.items()]
        routed = _ErrorFork.apply(matrices, self.sign, len(outputs), *outputs, *waiting.values())
        for place, output in zip(places, routed, strict=True):
            items[place] = output
        return tuple(items) if isinstance(result, tuple) else items[0]


class _OutputHook(Hook):
    refuses = False

    def __init__(self, signal: DirectFeedback) -> None:
        super().__init__(signal.output_name)
        self.signal = signal

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.signal.learner.is_recording:
            return self.signal.deliver(output)
        return None


class _ErrorFork(Function):
    """Identity on the outputs; also hands the projected error to the spikes of the hidden layers."""

    @staticmethod
    def forward(ctx: Any, matrices: list[Tensor], sign: bool, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.matrices, ctx.sign, ctx.count = matrices, sign, count
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Any, ...]:
        given = [error.flatten(1) for error in errors if error is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        error = given[0] if len(given) == 1 else torch.stack(given).sum(0)
        if ctx.sign:
            error = error.sign()
        deltas = [
            (error.to(matrix.dtype) @ matrix.flatten(1)).unflatten(1, matrix.shape[1:]) for matrix in ctx.matrices
        ]
        return (None, None, None, *errors, *deltas)
