"""Products with spikes, most of which are 0: rows of a table are added up in place of a dense matrix product.

For processors only: which values are 0 must be known on the host, and a GPU's dense product is fast. They take part
where they take less time than the dense ones: layers that are large enough, and spikes that are rare enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

DENSEST = 0.1  # share of values other than 0; at more the dense product is as fast
SMALLEST = 2**24  # multiplications of the dense product; in smaller ones the search costs as much
NARROWEST = 64  # values of a row of the table
_CACHED = 2**16  # values of a table that fit into a processor's cache beside the rest
_MANY = 512  # rows; of fewer the transposition and the search take what the sum saves
_SAMPLE = 16  # every how many-th row is looked at first


@dataclass(slots=True)
class SparseMatrix:
    """A matrix of which only the values other than 0 are known, in the order of its rows.

    Attributes:
        columns: Column of each value.
        begins: Where each row begins among them.
        values: The values; None if all are 1.
    """

    columns: Tensor
    begins: Tensor
    values: Tensor | None

    @classmethod
    def of(cls, x: Tensor, width: int, transposed: bool = False, binary: bool = False) -> SparseMatrix | None:
        """Finds the values of x [N, in], or of its transpose.

        Args:
            x: The input of a layer.
            width: How many columns the table has that it is to be multiplied with.
            transposed: Whether the transpose is meant.
            binary: Whether all values are known to be 0 or 1.

        Returns:
            The matrix; None if the product is better done densely.
        """
        if not _may_pay(x, width):
            return None
        sample = x[::_SAMPLE] if len(x) >= 8 * _SAMPLE else x
        if int(torch.count_nonzero(sample)) > DENSEST * sample.numel():
            return None
        filled = x.bool()
        rows, columns = (filled.t().contiguous() if transposed else filled).nonzero().unbind(1)
        if len(rows) > DENSEST * x.numel():
            return None
        values = None
        if not binary:
            within = columns * x.shape[1] + rows if transposed else rows * x.shape[1] + columns
            values = x.view(-1).index_select(0, within)
            values = None if bool((values == 1).all()) else values
        begins = torch.searchsorted(rows, torch.arange(x.shape[1] if transposed else len(x)))
        return cls(columns, begins, values)

    def times(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The product with a table [matrix width, width], given and returned as :func:`in_parts`."""
        return [
            functional.embedding_bag(self.columns, part, self.begins, mode="sum", per_sample_weights=self.values)
            for part in parts
        ]


def in_parts(table: Tensor) -> list[Tensor]:
    """A table [height, width] as some of its columns after the others: rows are read at random, best from the cache."""
    return [part.contiguous() for part in table.split(max(NARROWEST, _CACHED // len(table)), 1)]


def _may_pay(x: Tensor, width: int) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous()
        and width >= NARROWEST
        and x.numel() * width >= SMALLEST
    )


def sparse_gradient(x: Tensor, g: Tensor) -> Tensor | None:
    """``g^T x``, [out, in], for x [N, in] with many zeros and g [N, out]; None where that is better done densely."""
    found = SparseMatrix.of(x, g.shape[1], transposed=True) if len(x) >= _MANY else None
    return None if found is None else torch.cat([part.t() for part in found.times(in_parts(g))])


class SparseLinear(Function):
    """``linear(x, weight, bias)`` for a weight that is out of the graph, and an x [N, in] whose zeros are known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: SparseMatrix, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the class."""
        ctx.save_for_backward(weight)
        product = torch.cat(found.times(in_parts(weight.t())), 1)
        return product if bias is None else product.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        """See the class."""
        (weight,) = ctx.saved_tensors
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        return x_grad, None, None, grad.sum(0) if ctx.needs_input_grad[3] else None


def with_sparse_inputs(module: nn.Linear, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Another ``forward`` of a linear layer whose weight the learner has taken out of the graph."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        x = args[0] if len(args) == 1 and not kwargs else None
        weight, bias = module.weight, module.bias
        if x is None or x.dim() != 2 or x.shape[1] != weight.shape[1]:  # the layer itself says what is wrong
            return forward(*args, **kwargs)
        if weight.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return forward(*args, **kwargs)
        found = SparseMatrix.of(x.detach(), len(weight))
        if found is None or (torch.is_grad_enabled() and weight.requires_grad):
            return forward(*args, **kwargs)
        product: Tensor = SparseLinear.apply(x, found, weight, bias)
        return product

    return run
