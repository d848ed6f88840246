"""The interface of responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from stllr_plugin.calls import SynapseCall

if TYPE_CHECKING:
    from typing_extensions import Self

Roots = list[tuple[GradientEdge, Tensor]]  # edges of the graph in front of the neuron, and their gradients


class NeedsStepsError(Exception):
    """A model that cannot run in windows; its text is the reason."""


@dataclass(slots=True)
class InnerSynapse:
    """A synapse within the neuron (a recurrent weight, say): its calls, one per step.

    Attributes:
        call: The first of them.
        x: Its inputs, [K, B, ...].
    """

    call: SynapseCall
    x: Tensor


@dataclass(slots=True)
class Response:
    """What a neuron did in K steps.

    Attributes:
        output: What the module returns, its tensors over all steps: [K * B, ...].
        leaves: Those of its tensors (and of the states that it keeps) that get the rule's gradient.
        spikes: Position of the spikes among them; None for readouts.
        v: Membrane minus threshold, [K, B, ...]; None for readouts, and where it is not needed any more.
        shape: Shape of u, [K, B, ...]; None where it is not known.
        links: Tensors in the graph in front of the neuron, of which :meth:`carry` gives the gradients.
        root: Edge of the tensor (u, or the neuron's input) on which synapses are found to act; None if that needs no
            gradient.
        direct: Whether u follows from the input current and those of inner synapses through their sum and one factor.
        slope: That factor, du/d(current); None for 1.
        projects: Whether weights of the neuron's own lie between its input and the input current.
        gate: Where the neuron could spike at all, [K, B, ...]; None for everywhere.
        gain: What each spike is multiplied with, broadcastable to [K, B, ...]; None for 1.
        inner: Synapses within the neuron.
        parameters: Parameters of the neuron that are no synapses, such as a learnable threshold, and that get their
            gradients from :meth:`carry`.
        count: Number of leaves, known also once they are let go of.
        input_shape: Shape of the neuron's input, [K * B, ...], where that is the link.
        input_dtype: Its dtype.
    """

    output: Any
    leaves: list[Tensor]
    spikes: int | None
    v: Tensor | None
    shape: torch.Size | None = None
    links: list[Tensor] = field(default_factory=list)
    root: GradientEdge | None = None
    direct: bool = False
    slope: Tensor | None = None
    projects: bool = False
    gate: Tensor | None = None
    gain: Tensor | None = None
    inner: list[InnerSynapse] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    count: int = 0
    input_shape: torch.Size | None = None
    input_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Counts the leaves."""
        self.count = len(self.leaves)

    def acts_on(self, current: Tensor) -> Self:
        """Notes the neuron's input, in the graph, as the one link; returns itself."""
        self.links = [current]
        self.input_shape = current.shape
        self.root = get_edge(current)
        self.input_dtype = current.dtype
        return self

    @property
    def binary(self) -> bool:
        """Whether each spike is known to be 0 or 1."""
        return False

    @property
    def carries_plainly(self) -> bool:
        """Whether a gradient of u, times ``slope``, is one of the input current and of what inner synapses gave out."""
        return False

    def plain_link(self, gradient: Tensor) -> Tensor:
        """A gradient of the input current of a single step, [B, ...], as one of the input, where that is so."""
        return gradient

    def passes(self, position: int) -> bool:
        """Whether a gradient of that leaf is one of u."""
        return False

    def split(self, deltas: Sequence[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None]]:
        """dL/d(spikes) as [K, B, ...], and the gradients of the other leaves, None at the place of the spikes."""
        signal = None if self.spikes is None else deltas[self.spikes]
        states = [None if i == self.spikes else delta for i, delta in enumerate(deltas)]
        if signal is not None and self.shape is not None:
            signal = signal.reshape(self.shape)
        return signal, states

    def pull(self, membrane: Tensor | None, leaves: Sequence[Tensor | None]) -> tuple[Roots, list[Tensor | None]]:
        """Carries gradients of u [K, B, ...] and of the leaves out of the neuron.

        Returns:
            Edges in front of the neuron and their gradients [K * B, ...]; and the gradients of what inner synapses gave
            out, [K, B, ...].
        """
        raise NotImplementedError

    def carry(
        self, signal: Tensor | None, psi: Tensor | None, leaves: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What goes on to the layer below, through the links, and to the parameters.

        Args:
            signal: dL/dy [K, B, ...]; None if no loss reaches the spikes.
            psi: psi(v) if it carries the signal, None if the neuron's own surrogate does.
            leaves: Gradients of the other leaves; None at the place of the spikes.
        """
        raise NotImplementedError

    def forget_distance(self, psi_carries: bool) -> None:
        """Lets go of v, if the backward pass can do without, now that psi(v) is known.

        Args:
            psi_carries: Whether psi carries the learning signal to the layer below.
        """

    def let_go(self) -> None:
        """Forgets what only the forward pass has a use for."""
        self.output, self.leaves, self.links = None, [], []


def get_edge(tensor: Tensor) -> GradientEdge | None:
    """The edge of a tensor in the graph; None if it needs no gradient."""
    if not tensor.requires_grad:
        return None
    node = tensor.grad_fn
    return get_gradient_edge(tensor) if node is None else GradientEdge(node, tensor.output_nr)
