"""Feedback matrices of the signals that reach hidden layers directly."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor, nn

from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.session import several_processes


def _kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    matrix = torch.empty(shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(matrix, generator=generator)
    return matrix


class Feedback(MutableMapping[str, Tensor]):
    """Feedback matrices by neuron module name, each [outputs, *neuron shape].

    A matrix that was not set is made when it is first needed, from ``seed`` and the neuron's name alone.

    Args:
        names: The hidden neurons.
        seed: The seed.
        make: Makes a matrix of a shape with a generator; by default Kaiming uniform.
        trained: Whether the matrices are parameters.
    """

    def __init__(
        self,
        names: list[str],
        seed: int,
        make: Callable[[tuple[int, ...], torch.Generator], Tensor] = _kaiming_uniform,
        trained: bool = False,
    ) -> None:
        """See the class."""
        self.names = names
        self.seed = seed
        self.trained = trained
        self._make = make
        self._agreed = False
        self._matrices: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The matrix of one neuron, once it was set or made."""
        return self._matrices[name]

    def __setitem__(self, name: str, matrix: Tensor) -> None:
        """Sets a matrix; its shape is checked when it is used."""
        if name not in self.names:
            raise RuleError(f"There is no hidden spiking neuron named {name!r}; feedback goes to {self.names}.")
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            what = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise RuleError(f"feedback[{name!r}] is a tensor of floats, [outputs, *neuron shape]; found {what}.")
        matrix = matrix.detach()
        before = self._matrices.get(name)
        if self.trained and before is not None:
            before.data = matrix.clone()  # the same parameter, since an optimizer may hold it
        else:
            self._matrices[name] = nn.Parameter(matrix.clone()) if self.trained else matrix

    def __delitem__(self, name: str) -> None:
        """Drops a matrix; it will be made anew when needed."""
        del self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the matrices that exist."""
        return iter(self._matrices)

    def __len__(self) -> int:
        """Number of matrices that exist."""
        return len(self._matrices)

    def _agree_on_seed(self) -> None:
        """Takes rank 0's seed, since processes often differ in theirs and must not differ in the matrices."""
        if not self._agreed and several_processes():
            seeds = [self.seed]
            torch.distributed.broadcast_object_list(seeds, src=0)
            self.seed = seeds[0]
        self._agreed = True

    def matrix(self, name: str, outputs: int, like: Tensor) -> Tensor:
        """The matrix of a neuron whose signal has the shape of ``like`` [B, *shape], on its device; made if need be."""
        shape = (outputs, *like.shape[1:])
        if name not in self._matrices:
            self._agree_on_seed()
            # The CPU generator gives the same numbers on every device.
            generator = torch.Generator().manual_seed((self.seed + zlib.crc32(name.encode())) % 2**63)
            self[name] = self._make(shape, generator)
        matrix = self._matrices[name]
        if tuple(matrix.shape) != shape:
            raise StateError(
                f"learner.feedback[{name!r}] has shape {tuple(matrix.shape)}, but this network needs {shape} (outputs, "
                "then the shape of the neuron's spikes without the batch)."
            )
        if matrix.device != like.device:
            self[name] = matrix.to(like.device)
            matrix = self._matrices[name]
        return matrix
