"""The fast path: several time steps at once, layer by layer, with the gradients of one step after the other."""

from stllr_plugin.windows.run import RunResult, run

__all__ = ["RunResult", "run"]
