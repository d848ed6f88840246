"""Losses that are sums over time steps, so that each step can be taught as it happens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class TETLoss(nn.Module):
    r"""Temporal efficient training: every time step is asked for the class, and outputs are kept near phi.

    Of a sequence of outputs O[t] [B, C] with T steps and labels y it is
    ``(1 - lamb) * mean_t CE(O[t], y) + lamb * mean_t MSE(O[t], phi)``. One call gives one step's term; the terms of a
    sequence add up to the loss. (Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient
    Re-weighting", ICLR 2022.) ::

        criterion = TETLoss(num_steps=T)
        for t in range(T):
            criterion(net(x[t]), y).backward()

    Args:
        phi: The value that outputs are kept near; the authors take the threshold.
        lamb: Weight of that term, in [0, 1]. Published code has values from 0.001 to 0.05.
        num_steps: T, by which each term is divided. With None it is not: the terms then add up to T times the loss,
            and their mean is the loss.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        reduction: "mean" over the batch, or "none" for the term of each sample, [B].

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        phi: float = 1.0,
        lamb: float = 0.05,
        num_steps: int | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        """See the class."""
        super().__init__()
        if not 0.0 <= lamb <= 1.0:
            raise ValueError(f"lamb={lamb!r}: expected a weight in [0, 1].")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps={num_steps!r}: expected at least 1, or None.")
        if reduction not in ("mean", "none"):
            raise ValueError(f'reduction={reduction!r}: expected "mean" or "none".')
        self.phi = phi
        self.lamb = lamb
        self.num_steps = num_steps
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The term of one time step.

        Args:
            outputs: Outputs of this step, [B, C].
            target: Labels [B], or class probabilities [B, C].

        Raises:
            ValueError: If the outputs are not those of one step.
        """
        if outputs.dim() != 2:
            raise ValueError(
                f"TETLoss takes the outputs of one time step, [batch, classes]; found shape {tuple(outputs.shape)}. "
                "Call it once for each step."
            )
        entropy = F.cross_entropy(outputs, target, reduction="none", label_smoothing=self.label_smoothing)
        distance = (outputs - self.phi).square().mean(dim=1)
        term = (1.0 - self.lamb) * entropy + self.lamb * distance
        if self.num_steps is not None:
            term = term / self.num_steps
        return term if self.reduction == "none" else term.mean()

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"phi={self.phi}, lamb={self.lamb}, num_steps={self.num_steps}"
