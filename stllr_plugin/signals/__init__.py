"""Learning signals: where delta_i[t] of a hidden layer comes from.

"bp" carries it down through the layers of the same time step. All others bring it to each hidden layer directly, from
the output error ("dfa", "sign_dfa"), the target ("drtp", "local", "local_random", "tess") or a reward ("one").
"""

from stllr_plugin.signals.base import LearningSignal
from stllr_plugin.signals.direct import DirectFeedback, DirectSignal
from stllr_plugin.signals.feedback import Feedback
from stllr_plugin.signals.local import LocalReadouts, SquareWaves
from stllr_plugin.signals.target import TargetProjection, TargetSignal
from stllr_plugin.stdp import Reinforcement

SIGNALS: dict[str, type[LearningSignal]] = {
    "bp": LearningSignal,
    "dfa": DirectFeedback,
    "sign_dfa": DirectFeedback,
    "drtp": TargetProjection,
    "local": LocalReadouts,
    "local_random": LocalReadouts,
    "tess": SquareWaves,
    "one": Reinforcement,
}

__all__ = [
    "SIGNALS",
    "DirectFeedback",
    "DirectSignal",
    "Feedback",
    "LearningSignal",
    "LocalReadouts",
    "Reinforcement",
    "SquareWaves",
    "TargetProjection",
    "TargetSignal",
]
