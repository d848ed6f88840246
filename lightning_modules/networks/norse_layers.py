"""Norse's cells as layers that keep their own state, so that they can stand where a snnTorch neuron stands.

Norse scales the input current by ``dt * tau_mem_inv = 1 - beta``. The current is divided by that factor here, which
makes thresholds and weights mean the same as for ``snntorch.Leaky``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.neurons.base import StateKeeper, map_tensors, register_keeper, reset_rows

_DT = 1e-3


class NorseLayer(nn.Module):
    """A Norse cell with the state of its running sequence.

    Args:
        beta: Membrane decay per time step; sets ``tau_mem_inv = (1 - beta) / dt``.

    Raises:
        ValueError: If the decay is not in [0, 1).
    """

    cell: nn.Module

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1) for a Norse neuron, got {beta}.")
        self.beta = beta
        self.gain = 1.0 - beta
        self._state: Any = None

    @property
    def _rate(self) -> Tensor:
        return torch.as_tensor(self.gain / _DT)

    def reset_states(self) -> None:
        """Forget the running sequence."""
        self._state = None

    def detach_states(self) -> None:
        """Cut the state from its graph and keep its value."""
        self._state = map_tensors(self._state, Tensor.detach)

    def _step(self, current: Tensor) -> Tensor:
        state = self._state
        if state is not None and state[0].shape != current.shape and state[0].dim():
            state = None  # another batch size: a new sequence
        output: Tensor
        output, self._state = self.cell(current / self.gain, state)
        return output

    def forward(self, current: Tensor) -> Tensor:
        """One time step: input current to output, same shape."""
        return self._step(current)


class NorseLIFBox(NorseLayer):
    """``LIFBoxCell``: spikes, and a reset of the membrane to 0.

    Args:
        beta: Membrane decay per time step.
        threshold: Firing threshold.
    """

    is_spiking = True

    def __init__(self, beta: float, threshold: float) -> None:
        super().__init__(beta)
        from norse.torch import LIFBoxCell, LIFBoxParameters

        v_th = torch.as_tensor(float(threshold))
        self.cell = LIFBoxCell(p=LIFBoxParameters(tau_mem_inv=self._rate, v_th=v_th), dt=_DT)


class NorseRecurrentLIFBox(NorseLIFBox):
    """``LIFBoxCell`` whose spikes of the step before come back through a convolution, as in ``snntorch.RLeaky``.

    Args:
        beta: Membrane decay per time step.
        threshold: Firing threshold.
        channels: Channels of the input current.
        kernel_size: Side of the recurrent kernels.
    """

    def __init__(self, beta: float, threshold: float, channels: int, kernel_size: int = 3) -> None:
        super().__init__(beta, threshold)
        self.recurrent = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self._spikes: Tensor | None = None

    def reset_states(self) -> None:
        """Forget the running sequence."""
        super().reset_states()
        self._spikes = None

    def detach_states(self) -> None:
        """Cut the state from its graph and keep its value."""
        super().detach_states()
        self._spikes = None if self._spikes is None else self._spikes.detach()

    def forward(self, current: Tensor) -> Tensor:
        """One time step: input current [B, channels, H, W] to spikes, same shape."""
        if self._spikes is None or self._spikes.shape != current.shape:
            self._spikes = torch.zeros_like(current)
        self._spikes = self._step(current + self.recurrent(self._spikes))
        return self._spikes


class NorseLIBox(NorseLayer):
    """``LIBoxCell``: a leaky integrator that never spikes; its membrane is the output.

    Args:
        beta: Membrane decay per time step.
    """

    is_spiking = False

    def __init__(self, beta: float) -> None:
        super().__init__(beta)
        from norse.torch import LIBoxCell, LIBoxParameters

        self.cell = LIBoxCell(p=LIBoxParameters(tau_mem_inv=self._rate), dt=_DT)


class _NorseStates(StateKeeper):
    """Tells the learner of these states, which it cuts between time steps and resets with its own."""

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, NorseLayer)

    def change(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        self.restore(module, map_tensors(self._states(module), change))

    def reset(self, module: nn.Module, mask: Tensor | None) -> None:
        if mask is None:
            module.reset_states()  # type: ignore[operator]
            return

        def restarted(state: Tensor) -> Tensor:
            return reset_rows(state, mask) if state.dim() and state.shape[0] == mask.shape[0] else state

        self.change(module, restarted)

    def save(self, module: nn.Module) -> Any:
        return map_tensors(self._states(module), Tensor.detach)  # cells replace their states, and never overwrite them

    def restore(self, module: nn.Module, saved: Any) -> None:
        module._state, spikes = saved
        if isinstance(module, NorseRecurrentLIFBox):
            module._spikes = spikes

    @staticmethod
    def _states(module: nn.Module) -> tuple[Any, Any]:
        return module._state, getattr(module, "_spikes", None)


register_keeper(_NorseStates())
