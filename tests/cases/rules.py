"""The rules under test."""

from __future__ import annotations

import torch

from tests.oracles.stllr import Rule

RULES: dict[str, Rule] = {
    "default": Rule(),
    "paper": Rule(alpha_pre=0.75, alpha_post=1.0, lambda_post=0.25, psi="sigmoid", convention="paper"),
    "surrogate": Rule(lambda_pre=0.5, alpha_post=-1.0, psi="rational", propagate="surrogate"),
    "own_psi": Rule(alpha_post=-0.5, psi=None),
    "own_all": Rule(lambda_pre=1.0, alpha_post=0.5, psi=None, propagate="surrogate", convention="paper"),
    "callable": Rule(lambda_pre=0.25, psi=lambda v: torch.exp(-v * v)),
    "narrow": Rule(lambda_pre=0.75, alpha_post=-1.0, lambda_post=0.25, psi="inverse_square"),
}
# "narrow" multiplies a rounding of v by up to 200
FLOAT32_RULES = tuple(name for name in RULES if name != "narrow")
SLTT = Rule(alpha_pre=1.0, lambda_pre=0.0, alpha_post=0.0, lambda_post=0.0, psi=None, propagate="surrogate")
