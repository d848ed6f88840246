"""``learner.verify``: the user's own model, on one batch, against a slow computation that shares no code with it."""

from stllr_plugin.verify.check import verify
from stllr_plugin.verify.result import Row, Verification, VerificationError

__all__ = ["Row", "Verification", "VerificationError", "verify"]
