"""stllr-plugin: train existing spiking networks with S-TLLR, an online, temporally local learning rule.

::

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    optimizer = STLLRLearner(net, optimizer, rule="dvs_gesture")  # the one new line

The package imports torch alone; what it knows about snnTorch, Norse and SpikingJelly loads when a model holds their
modules.
"""

from stllr_plugin.errors import (
    AttachmentError,
    CheckpointingError,
    NoGradientCapturedError,
    NonFiniteError,
    NotAttachedError,
    RuleError,
    SequenceInputError,
    StateError,
    STLLRError,
    STLLRWarning,
)
from stllr_plugin.hooks import detach, remove_hooks
from stllr_plugin.learner import STLLRLearner
from stllr_plugin.report import Report
from stllr_plugin.rule import STLLRRule

__version__ = "0.1.0"

__all__ = [
    "AttachmentError",
    "CheckpointingError",
    "NoGradientCapturedError",
    "NonFiniteError",
    "NotAttachedError",
    "Report",
    "RuleError",
    "STLLRError",
    "STLLRLearner",
    "STLLRRule",
    "STLLRWarning",
    "SequenceInputError",
    "StateError",
    "detach",
    "remove_hooks",
]
