"""Layers whose weight is used by a function of the user's, such as ``F.linear(x, layer.weight)``, not by a call.

Such a product leaves a node in the graph that keeps its input. The walk from a neuron takes it for a call of the layer,
and a hook on the node drops the ordinary gradient that autograd would send to the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from stllr_plugin.arrivals import between_at, compare, put_at
from stllr_plugin.calls import SynapseCall, bypassed
from stllr_plugin.products import Product, linear_weight_gradients_of
from stllr_plugin.synapses import Term, convolution_weight_gradient

# By name of the node: where among its edges the input and the weight are, and what it calls the input that it keeps.
_KINDS = {
    "AddmmBackward0": (1, 2, "_saved_mat1"),
    "MmBackward0": (0, 1, "_saved_self"),
    "ConvolutionBackward0": (0, 1, "_saved_input"),
}


class Use:
    """Watches the node of such a product: a post-hook of it.

    Attributes:
        call: The use as a call of the layer.
        nested: Whether a backward pass runs that belongs to one step of one neuron alone.
    """

    def __init__(self, call: SynapseCall, position: int) -> None:
        """Args: the use, and where the weight is among the node's edges."""
        self.call = call
        self.nested = False
        self._position = position

    def __call__(
        self, sent: Sequence[Tensor | None], received: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...] | None:
        """After the node has run in a backward pass."""
        call = self.call
        if not call.consumed:
            return None
        if not self.nested and received[0] is not None and call.arrivals is not None:
            compare(received[0], call.arrivals.take(), partial(bypassed, [call]), call.site.session.doubts)
        if not self.nested and call.onward is not None:
            call.onward.tell(sent[call.onward_position])
        return tuple(None if i == self._position else gradient for i, gradient in enumerate(sent))


def use_at(node: Any, weights: Mapping[int, Any]) -> tuple[SynapseCall, Node | None] | None:
    """The use of a layer's weight that left a node in the graph, and the node of its input; None for all other nodes.

    Args:
        node: The node.
        weights: By id of a parameter, the synapse whose weight it makes.
    """
    kind = _KINDS.get(type(node).__name__)
    if kind is None:
        return None
    place, position, kept = kind
    behind = node.next_functions[position][0]
    if type(node).__name__ != "ConvolutionBackward0":
        if type(behind).__name__ != "TBackward0":
            return None
        behind = behind.next_functions[0][0]
    weight = getattr(behind, "variable", None)
    site = None if weight is None else weights.get(id(weight))
    if site is None or site.module._parameters.get(site.synapse.weight_name) is not weight:
        return None
    known: Any = between_at(node)
    if known is None:
        x: Tensor = getattr(node, kept)
        session = site.session
        session.uncalled.discard(site)
        shape = torch.Size(node._input_metadata[0].shape)
        call = SynapseCall(site, x.detach(), x._version, weight, session.next_order(), shape, product=_product(node))
        call.onward_position = place
        known = Use(call, position)
        put_at(node, known)
    return known.call, node.next_functions[place][0]


def _product(node: Any) -> Product:
    if type(node).__name__ != "ConvolutionBackward0":
        return Product(torch.nn.functional.linear, linear_weight_gradients_of)
    settings = (
        tuple(node._saved_stride),
        tuple(node._saved_padding),
        tuple(node._saved_dilation),
        node._saved_transposed,
        tuple(node._saved_output_padding),
        node._saved_groups,
    )

    def gradient(terms: Sequence[Term], weight: Tensor) -> Tensor:
        found = [convolution_weight_gradient(x, g, weight, *settings) for x, g in terms]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)

    return Product(torch.nn.functional.linear, gradient)
