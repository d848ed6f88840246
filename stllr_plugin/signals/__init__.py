"""Learning signals: where delta = dL/dy of each neuron comes from.

- "bp": through the layers of the same time step, as the layer's own psi or surrogate carries it.
- "dfa", "sign_dfa": fixed random matrices times the output error of the step.
- "drtp": a fixed random projection of the target.
- "local", "local_random", "tess": the error of a readout of the layer's own.
- "one": the same for all, without a loss (:mod:`stllr_plugin.stdp`).

A signal of one's own is a class with :func:`register_signal`.
"""

from stllr_plugin.registry import SIGNALS, register_signal
from stllr_plugin.signals.base import Backpropagation, LearningSignal, SignalCost, SignalSetup
from stllr_plugin.signals.direct import DirectFeedback, DirectSignal
from stllr_plugin.signals.feedback import Feedback
from stllr_plugin.signals.local import LocalReadouts, SquareWaves, TrainedReadouts
from stllr_plugin.signals.target import TargetProjection, TargetSignal

__all__ = [
    "SIGNALS",
    "Backpropagation",
    "DirectFeedback",
    "DirectSignal",
    "Feedback",
    "LearningSignal",
    "LocalReadouts",
    "SignalCost",
    "SignalSetup",
    "SquareWaves",
    "TargetProjection",
    "TargetSignal",
    "TrainedReadouts",
    "register_signal",
]
