"""Products of a layer's input with its weights, found while the layer's own ``forward`` runs.

Nothing is assumed of a layer whose ``forward`` is not its library's. What the rule needs of it are its products, calls
like ``linear(x, w)`` or ``conv2d(x, w)`` in which x was made from the layer's input and w from parameters alone. The
gradient of w is the rule's, and goes on to the parameters as autograd finds it. What happens to the input before and to
the output after is pulled back like anything else between two layers. So the gradient is right for weights that are
masked, scaled, standardised or quantised as well as for norms, scales and several products inside; a use of the
layer's weight that is no such product is noticed by the walk to the neuron and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stllr_plugin.calls import SynapseSite
from stllr_plugin.hooks import eager
from stllr_plugin.marks import mark_of
from stllr_plugin.synapses import Term, convolution_weight_gradient, linear_weight_gradients

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED_CONVOLUTIONS = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_LAYERS = {functional.linear, *_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS}
_MATRICES = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__}


@dataclass(frozen=True, eq=False)
class Product:
    """One product.

    Attributes:
        apply: Maps x and w to the output.
        gradient: Sum of w's gradients over pairs of an input and an output gradient; None to differentiate ``apply``.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Sequence[Term], Tensor], Tensor] | None = None

    def weight_gradients(self, terms: Sequence[Term], weight: Tensor) -> Tensor:
        """The weight's gradient, summed over pairs of an input and an output gradient, all of one dtype."""
        if self.gradient is not None:
            return self.gradient(terms, weight)
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            outputs = [self.apply(x, leaf) for x, _ in terms]
            (found,) = torch.autograd.grad(outputs, leaf, [g for _, g in terms])
        return found


class Products(TorchFunctionMode):
    """While a layer's ``forward`` runs: tags the outputs of its products, whose weights then stay out of the graph.

    Args:
        site: The layer.
        inputs: The arguments of its call.
    """

    def __init__(self, site: SynapseSite, inputs: Any) -> None:
        """See the class."""
        super().__init__()
        self.site = site
        self._made: dict[int, Tensor] = {}  # tensors that were made from the input
        self._note(inputs)

    def begin(self) -> None:
        """The forward begins."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """The forward has ended."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._made.clear()

    @eager
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is, but for products."""
        kwargs = kwargs or {}
        found = self._product(func, args, kwargs)
        if found is not None:
            return found
        result = func(*args, **kwargs)
        if any(id(tensor) in self._made for tensor in _tensors((args, kwargs))):
            self._note(result)
            self._note(args[:1] if func in _IN_PLACE else ())
        return result

    def _note(self, value: Any) -> None:
        for tensor in _tensors(value):
            self._made[id(tensor)] = tensor

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        try:
            known = func in _LAYERS or func in _MATRICES or func in _OTHERS
        except TypeError:  # not hashable
            return None
        if not known:
            return None
        if func in _LAYERS:
            return self._of_layer(func, args, kwargs)
        if func in _MATRICES:
            return self._of_matrices(func, args, kwargs)
        return self._of_others(func, args, kwargs)

    def _of_layer(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        names = _TRANSPOSED if func in _TRANSPOSED_CONVOLUTIONS else _ARGUMENTS
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight = given.pop("input", None), given.pop("weight", None)
        if not self._is_product(x, weight):
            return None
        output = func(x, weight.detach(), **given)
        given.pop("bias", None)
        gradient: Any = linear_weight_gradients_of if func is functional.linear else _convolution(func, given)
        return self._tagged(x, output, weight, Product(lambda x, w: func(x, w, **given), gradient))

    def _of_matrices(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        if len(args) != 2 or kwargs:
            return None
        one, other = args
        if self._is_product(one, other):
            output = func(one, other.detach())
            plain = other.dim() == 2 and one.dim() > 1
            product = Product(func, _transposed_linear_gradients if plain else None)
            return self._tagged(one, output, other, product)
        if self._is_product(other, one):
            return self._tagged(other, func(one.detach(), other), one, Product(lambda x, w: func(w, x)))
        return None

    def _of_others(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        if func is torch.einsum:
            equation, *operands = args
            if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
                operands = list(operands[0])
            if len(operands) != 2 or not isinstance(equation, str):
                return None
            one, other = operands
            if self._is_product(one, other):
                output = torch.einsum(equation, one, other.detach())
                return self._tagged(one, output, other, Product(lambda x, w: torch.einsum(equation, x, w)))
            if self._is_product(other, one):
                output = torch.einsum(equation, one.detach(), other)
                return self._tagged(other, output, one, Product(lambda x, w: torch.einsum(equation, w, x)))
            return None
        if len(args) == 3 and not kwargs and self._is_product(args[1], args[2]):  # addmm
            added, x, weight = args
            return self._tagged(
                x, func(added, x, weight.detach()), weight, Product(torch.mm, _transposed_linear_gradients)
            )
        return None

    def _is_product(self, x: Any, weight: Any) -> bool:
        if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or not weight.requires_grad:
            return False
        return self._is_made(x) and not self._is_made(weight)

    def _is_made(self, tensor: Tensor) -> bool:
        """Whether a tensor was made from the layer's input, or by another layer or neuron."""
        return id(tensor) in self._made or not of_parameters_alone(tensor)

    def _tagged(self, x: Tensor, output: Tensor, weight: Tensor, product: Product) -> Tensor:
        tagged = self.site.tag(x, output, weight, product=product)
        self._note(tagged)
        return tagged


_IN_PLACE = frozenset(
    value
    for name in dir(Tensor)
    if name.endswith("_") and not name.endswith("__") and callable(value := getattr(Tensor, name))
) | {Tensor.__setitem__}
_OTHERS = {torch.einsum, torch.addmm}


def of_parameters_alone(tensor: Tensor) -> bool:
    """Whether a tensor was made without any layer or neuron of the model, as far as its graph shows."""
    seen: set[Any] = set()
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if mark_of(node) is not None:
            return False
        stack += [following for following, _ in node.next_functions]
    return True


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def linear_weight_gradients_of(terms: Sequence[Term], weight: Tensor) -> Tensor:
    """Of ``linear(x, weight)``."""
    return linear_weight_gradients(terms)


def _transposed_linear_gradients(terms: Sequence[Term], weight: Tensor) -> Tensor:
    return linear_weight_gradients(terms).t()


def _convolution(func: Any, given: dict[str, Any]) -> Callable[[Sequence[Term], Tensor], Tensor] | None:
    """The weight's gradient in one of torch's convolutions; None where that is better left to autograd."""
    transposed = func in _TRANSPOSED_CONVOLUTIONS
    if isinstance(given.get("padding"), str):
        return None

    def gradient(terms: Sequence[Term], weight: Tensor) -> Tensor:
        dims = weight.dim() - 2

        def of_each(name: str, default: int) -> tuple[int, ...]:
            value = given.get(name, default)
            value = (value,) if isinstance(value, int) else tuple(value)
            return value * dims if len(value) == 1 else value

        total: Tensor | None = None
        for x, g in terms:
            if x.dim() == weight.dim() - 1:
                x, g = x.unsqueeze(0), g.unsqueeze(0)
            found = convolution_weight_gradient(
                x,
                g,
                weight,
                of_each("stride", 1),
                of_each("padding", 0),
                of_each("dilation", 1),
                transposed,
                of_each("output_padding", 0),
                given.get("groups", 1),
            )
            total = found if total is None else total + found
        assert total is not None
        return total

    return gradient
