"""Why a model is run step by step."""

from __future__ import annotations


class NeedsStepsError(Exception):
    """The model, or one of its modules, cannot be run on several time steps at once; the message says why."""
