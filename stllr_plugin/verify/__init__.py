"""``learner.verify``: the user's own model, on one batch, against a slow computation that shares no code with it."""

from stllr_plugin.verify.result import Row, Verification, VerificationError
from stllr_plugin.verify.standalone import verify

__all__ = ["Row", "Verification", "VerificationError", "verify"]
