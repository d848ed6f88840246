"""Learning signals: where delta_i[t] of a hidden layer comes from.

"bp" carries it down through the layers of the same time step. All others bring it to each hidden layer directly, from
the output error ("dfa", "sign_dfa") or from the target ("drtp", "local", "local_random", "tess").
"""

from stllr_plugin.signals.base import LearningSignal
from stllr_plugin.signals.direct import DirectFeedback, DirectSignal
from stllr_plugin.signals.feedback import Feedback
from stllr_plugin.signals.local import LocalReadouts, SquareWaves
from stllr_plugin.signals.target import TargetProjection, TargetSignal

SIGNALS: dict[str, type[LearningSignal]] = {
    "bp": LearningSignal,
    "dfa": DirectFeedback,
    "sign_dfa": DirectFeedback,
    "drtp": TargetProjection,
    "local": LocalReadouts,
    "local_random": LocalReadouts,
    "tess": SquareWaves,
}

__all__ = [
    "SIGNALS",
    "DirectFeedback",
    "DirectSignal",
    "Feedback",
    "LearningSignal",
    "LocalReadouts",
    "SquareWaves",
    "TargetProjection",
    "TargetSignal",
]
