"""Synapse types: modules whose output is linear in a weight, and the weight gradient of each.

The rule only needs ``weight_gradient(x, g)``: the gradient that the plain layer would give its weight for input x and
output gradient g. With a trace in place of x it yields the causal term, with a postsynaptic factor in place of g the
other one, so the eligibility e_ij is never materialised. A new type is one subclass with :func:`register_synapse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from stllr_plugin.sparse import sparse_gradient

Term = tuple[Tensor, Tensor]  # an input [B, ...] and an output gradient [B, ...]

_REGISTRY: dict[type[nn.Module], Synapse] = {}
# Of each registered type, the functions that its forward consists of.
_FUNCTIONS: dict[type[nn.Module], dict[str, Any]] = {}
_PARTS = ("forward", "_conv_forward", "_output_padding")


class Synapse:
    """How one kind of layer depends on its weight.

    Attributes:
        weight_name: Name of the weight attribute.
        input_name: Name of the input argument of ``forward``, for calls by keyword.
        sums_bias: Whether :meth:`bias_gradient` stands in for the module's own backward pass for ``bias``.
    """

    weight_name: ClassVar[str] = "weight"
    input_name: ClassVar[str] = "input"
    sums_bias: ClassVar[bool] = False

    def problem(self, module: nn.Module) -> str | None:
        """What stands against training this module (found, then what to do), or None."""
        weight = getattr(module, self.weight_name, None)
        if isinstance(weight, nn.parameter.UninitializedParameter):
            return "its weight is not initialised yet (lazy layer); run one forward pass first"
        if isinstance(weight, nn.Parameter) or parametrize.is_parametrized(module, self.weight_name):
            return None
        if self._originals(module):
            return None
        return (
            f"`{self.weight_name}` is a plain tensor, and no parameter that it could be computed from was found; use "
            "torch.nn.utils.parametrizations or torch.nn.utils.prune"
        )

    def _originals(self, module: nn.Module) -> list[nn.Parameter]:
        """Parameters from which a hook before each call computes the weight: torch's pruning and old-style norms."""
        names = [self.weight_name + suffix for suffix in ("_orig", "_g", "_v")]
        return [parameter for name in names if (parameter := module._parameters.get(name)) is not None]

    def trainable(self, module: nn.Module) -> list[nn.Parameter]:
        """Parameters behind the weight that require a gradient (the originals, where the weight is parametrized)."""
        if parametrize.is_parametrized(module, self.weight_name):
            originals = module.parametrizations[self.weight_name].parameters()  # type: ignore[index, union-attr]
            return [parameter for parameter in originals if parameter.requires_grad]
        weight = module._parameters.get(self.weight_name)
        originals = self._originals(module) if weight is None else [weight]
        return [parameter for parameter in originals if parameter.requires_grad]

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the weight for input x [B, ...] and output gradient g [B, ...], all of one float dtype."""
        raise NotImplementedError

    def weight_gradients(self, module: nn.Module, terms: Sequence[Term], weight: Tensor) -> Tensor:
        """Sum of :meth:`weight_gradient` over pairs (x, g), the terms of the rule.

        To be overridden where that can be had for less than one product after the other.
        """
        first, *rest = terms
        total = self.weight_gradient(module, *first, weight)
        for x, g in rest:
            total = total + self.weight_gradient(module, x, g, weight)
        return total

    def is_batched(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the first dimension of an input is a batch."""
        return x.dim() > 1

    def bias_gradient(self, module: nn.Module, g: Tensor) -> Tensor:
        """Gradient of ``bias`` for an output gradient g [B, ...]; for types with :attr:`sums_bias`, and Linear."""
        raise NotImplementedError


def register_synapse(*types: type[nn.Module]) -> Callable[[type[Synapse]], type[Synapse]]:
    """Class decorator that makes a :class:`Synapse` known for exactly these module types and their subclasses."""

    def register(cls: type[Synapse]) -> type[Synapse]:
        for kind in types:
            _REGISTRY[kind] = cls()
            _FUNCTIONS[kind] = {name: getattr(kind, name) for name in _PARTS if hasattr(kind, name)}
        return cls

    return register


def find_synapse(module: nn.Module) -> Synapse | None:
    """The synapse type of a module, or None if it is not a synapse."""
    for kind in type(module).__mro__:
        if kind in _REGISTRY:
            return _REGISTRY[kind]
    return None


class KnownForward:
    """Tells whether a layer runs as its registered type does, or with a ``forward`` of its own.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.Module) -> None:
        """See the class."""
        kind = next(kind for kind in type(module).__mro__ if kind in _REGISTRY)
        self._functions = tuple(_FUNCTIONS[kind].items())

    def of(self, module: nn.Module, ours: object | None = None) -> bool:
        """Whether it does now; cheap, since somebody may change that at any time.

        Args:
            module: The layer.
            ours: What the learner itself has put in the place of its ``forward``, if anything.
        """
        kind, own = type(module), module.__dict__
        return all(
            getattr(kind, name) is function and own.get(name, ours) is ours for name, function in self._functions
        )


@register_synapse(nn.Linear)
class LinearSynapse(Synapse):
    """``nn.Linear``, with any number of leading dimensions."""

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """See the base class; leading dimensions are summed over."""
        return linear_weight_gradients([(x, g)])

    def weight_gradients(self, module: nn.Module, terms: Sequence[Term], weight: Tensor) -> Tensor:
        """See the base class; all products go into one tensor."""
        return linear_weight_gradients(terms)

    def bias_gradient(self, module: nn.Module, g: Tensor) -> Tensor:
        """See the base class; leading dimensions are summed over."""
        return g.sum(list(range(g.dim() - 1))) if g.dim() > 1 else g


def linear_weight_gradients(terms: Sequence[Term]) -> Tensor:
    """Gradient of ``weight`` in ``linear(x, weight)``: [out, in], summed over pairs of x [..., in] and g [..., out]."""
    total: Tensor | None = None
    for x, g in terms:
        factors = g if g.dim() == 2 else g.reshape(-1, g.shape[-1])
        inputs = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        product = sparse_gradient(inputs, factors)
        if product is not None:
            total = product if total is None else total.add_(product)
        else:
            total = factors.t() @ inputs if total is None else total.addmm_(factors.t(), inputs)
    assert total is not None
    return total


class _ConvolutionSynapse(Synapse):
    """What convolutions and transposed ones share."""

    # On the CPU torch computes the bias's gradient together with the weight's, which is then thrown away here: as much
    # work as the gradient of the input.
    sums_bias = True

    def is_batched(self, x: Tensor, weight: Tensor) -> bool:
        """See the base class."""
        return x.dim() == weight.dim()

    def bias_gradient(self, module: nn.Module, g: Tensor) -> Tensor:
        """See the base class; g is [B, channels, ...] or, unbatched, [channels, ...]."""
        channels = g.dim() - (module.weight.dim() - 1)  # type: ignore[operator]
        return g.sum([dim for dim in range(g.dim()) if dim != channels])

    def weight_gradients(self, module: nn.Module, terms: Sequence[Term], weight: Tensor) -> Tensor:
        """See the base class; the terms are joined to one batch where a second weight costs more than the copy."""
        copied = sum(x.numel() + g.numel() for x, g in terms)
        batched = all(self.is_batched(x, weight) for x, _ in terms)
        if len(terms) > 1 and batched and copied < 3 * weight.numel():  # a weight is written, and two are added
            x, g = torch.cat([x for x, _ in terms]), torch.cat([g for _, g in terms])
            return self.weight_gradient(module, x, g, weight)
        return super().weight_gradients(module, terms, weight)


@register_synapse(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvSynapse(_ConvolutionSynapse):
    """Convolutions with any stride, dilation, groups, padding and padding mode."""

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """See the base class."""
        conv: Any = module
        if x.dim() == weight.dim() - 1:  # unbatched
            x, g = x.unsqueeze(0), g.unsqueeze(0)
        padding = conv.padding
        if isinstance(padding, str) or conv.padding_mode != "zeros":
            # Padding is linear in the input, so the trace of the padded input is the padded trace.
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * (weight.dim() - 2)
        return convolution_weight_gradient(
            x, g, weight, conv.stride, padding, conv.dilation, False, (0,) * len(padding), conv.groups
        )


@register_synapse(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ConvTransposeSynapse(_ConvolutionSynapse):
    """Transposed convolutions, ``output_size`` given or not."""

    def weight_gradient(self, module: nn.Module, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """See the base class."""
        conv: Any = module
        if x.dim() == weight.dim() - 1:
            x, g = x.unsqueeze(0), g.unsqueeze(0)
        # forward(x, output_size=...) picks the output padding per call; the size of g tells which.
        output_padding = [
            g.shape[2 + i]
            - (
                (x.shape[2 + i] - 1) * conv.stride[i]
                - 2 * conv.padding[i]
                + conv.dilation[i] * (weight.shape[2 + i] - 1)
                + 1
            )
            for i in range(weight.dim() - 2)
        ]
        return convolution_weight_gradient(
            x, g, weight, conv.stride, conv.padding, conv.dilation, True, output_padding, conv.groups
        )


def convolution_weight_gradient(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """Gradient of a convolution's weight; the arguments as torch's own."""
    gradient: Tensor = torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, transposed, output_padding, groups, (False, True, False)
    )[1]
    return gradient
