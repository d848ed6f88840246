"""Errors and warnings of the package.

Every error derives from :class:`STLLRError` and from the built-in exception that a caller would expect, so that
existing ``except ValueError`` or ``except RuntimeError`` clauses keep working.
"""

from __future__ import annotations


class STLLRError(Exception):
    """Base class of all errors of this package."""


class RuleError(STLLRError, ValueError):
    """A field of a rule, or a preset's name, is not valid."""


class AttachmentError(STLLRError, ValueError):
    """The model cannot be trained with this rule as it is; nothing was changed.

    Attributes:
        problems: One text per problem; each names the module, what was found and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        """Joins the problems into one message."""
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))
        super().__init__(
            f"STLLRLearner cannot attach to this model ({count} problem{'s' if count != 1 else ''}; "
            f"the model was not changed):\n{lines}"
        )


class NotAttachedError(STLLRError, RuntimeError):
    """A learner was used after ``detach()``, or a copy of an attached model was trained without its own learner."""


class NoGradientCapturedError(STLLRError, RuntimeError):
    """``step()`` was called although no synapse received an S-TLLR gradient since the last one."""


class StateError(STLLRError, RuntimeError):
    """Neuron states or traces do not fit the step that the model just ran."""


class SequenceInputError(STLLRError, ValueError):
    """A module received several time steps in one call, which an online rule cannot train."""


class CheckpointingError(STLLRError, RuntimeError):
    """The forward pass was run again inside a backward pass (activation checkpointing)."""


class NonFiniteError(STLLRError, FloatingPointError):
    """NaN or infinity in a trace or in a gradient."""


class STLLRWarning(UserWarning):
    """Category of all warnings of this package."""
