r"""The S-TLLR rule as plain data, and the settings published for it.

For a synapse j -> i and time step t, with x the presynaptic input, v the membrane minus the threshold and delta the
learning signal::

    tr_x[t]   = lambda_pre  * tr_x[t-1]   + x[t]
    tr_psi[t] = lambda_post * tr_psi[t-1] + psi(v[t])
    e_ij[t]   = alpha_pre * psi(v_i[t]) * tr_x_j[t]  +  alpha_post * x_j[t] * tr_psi_i[t-1]
    dL/dW_ij  = sum over supervised t of delta_i[t] * e_ij[t]

(Apolinario & Roy, "S-TLLR: STDP-inspired Temporal Local Learning Rule for Spiking Neural Networks", TMLR 2025, eqs. 10
to 13.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from stllr_plugin.activations import InverseSquare, Psi, Spike, Triangle, describe_psi, resolve_psi
from stllr_plugin.errors import RuleError
from stllr_plugin.registry import SIGNALS

Propagate = Literal["psi", "surrogate"]
Convention = Literal["code", "paper", "current"]


@dataclass(frozen=True)
class STLLRRule:
    """Settings of the S-TLLR rule. Immutable; every value is checked on construction.

    Args:
        alpha_pre: Weight of the causal term (presynaptic trace times psi). Any finite number.
        lambda_pre: Decay per time step of the presynaptic trace, in [0, 1]; or "leak", the decay of the membrane of the
            neuron that the synapse feeds, as it is when the learner attaches.
        alpha_post: Weight of the non-causal term (postsynaptic trace times input). Any finite number; 0 switches it
            off.
        lambda_post: Decay per time step of the postsynaptic trace, in [0, 1].
        psi: Secondary activation psi(v): "triangle", "inverse_square", "sigmoid", "rational", "dspike", "spike", a
            callable, or None for the derivative of the neuron's own surrogate. See :mod:`stllr_plugin.activations`.
        propagate: What carries the learning signal to the layer below (and to biases): "psi", as in the authors' code,
            or "surrogate", the neuron's own surrogate derivative (Algorithm 1 of the paper).
        convention: "code" weights the newest postsynaptic sample by 1, as the authors' code does; "paper" puts another
            lambda_post in front of the non-causal term (eq. 10). All published settings are in "code". "current" lets
            the non-causal term see the trace of the same step, tr_psi[t] in place of tr_psi[t-1], as pair-based STDP
            does.
        learning_signal: The learning signal that belongs to these settings; the learner uses it unless it is told
            otherwise. None means "bp".

    Raises:
        RuleError: If a value is out of its range.
    """

    alpha_pre: float = 1.0
    lambda_pre: float | Literal["leak"] = 0.8
    alpha_post: float = -0.2
    lambda_post: float = 0.5
    psi: str | Psi | None = "triangle"
    propagate: Propagate = "psi"
    convention: Convention = "code"
    learning_signal: str | None = None

    def __post_init__(self) -> None:
        """Checks all fields; reports the first that is wrong."""
        for name in ("alpha_pre", "alpha_post", "lambda_pre", "lambda_post"):
            value = getattr(self, name)
            if name == "lambda_pre" and value == "leak":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise RuleError(f"{name}={value!r}: expected a finite number.")
        for name in ("lambda_pre", "lambda_post"):
            value = getattr(self, name)
            if value != "leak" and not 0.0 <= value <= 1.0:
                raise RuleError(f"{name}={value!r}: a trace decays by a factor in [0, 1] per time step.")
        resolve_psi(self.psi)
        for name, allowed in (
            ("propagate", get_args(Propagate)),
            ("convention", get_args(Convention)),
            ("learning_signal", (None, *SIGNALS)),
        ):
            if getattr(self, name) not in allowed:
                raise RuleError(f"{name}={getattr(self, name)!r}: use one of {list(allowed)}.")

    @property
    def noncausal_scale(self) -> float:
        """Factor in front of ``x_j[t] * tr_psi_i[t-1]``: alpha_post, times lambda_post in the paper's convention."""
        return self.alpha_post * (self.lambda_post if self.convention == "paper" else 1.0)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> STLLRRule:
        """Returns published settings by name.

        Args:
            name: One of :meth:`presets`.
            **overrides: Fields to change, e.g. ``alpha_post=0.0``.

        Raises:
            RuleError: If the name is not known or an override is not valid.
        """
        if not isinstance(name, str) or name not in _PRESETS:
            raise RuleError(f"There is no preset {name!r}; known: {', '.join(_PRESETS)}.")
        unknown = set(overrides) - {field.name for field in fields(cls)}
        if unknown:
            raise RuleError(f"STLLRRule has no field {sorted(unknown)}; fields: {[f.name for f in fields(cls)]}.")
        return replace(_PRESETS[name](), **overrides)

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names that :meth:`preset` accepts."""
        return tuple(_PRESETS)

    def describe(self) -> dict[str, Any]:
        """The rule as plain data (numbers, strings, None), for reports and checkpoints."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**data, "psi": describe_psi(self.psi)}


def resolve_rule(rule: str | STLLRRule) -> STLLRRule:
    """Turns a preset's name into its rule; rules pass through.

    Raises:
        RuleError: If it is neither a rule nor a known name.
    """
    if isinstance(rule, str):
        return STLLRRule.preset(rule)
    if not isinstance(rule, STLLRRule):
        raise RuleError(f"rule must be an STLLRRule or the name of a preset; found {type(rule).__name__}.")
    return rule


# Settings of the published experiments (S-TLLR paper, Table 2 and App. A.3; lambda and alpha as in the authors' code),
# then rules that are special cases of the same engine. Names end in "_like" where something of the original is missing.
# Made when asked for, since the learning signals that they name are registered by then.
_PRESETS: dict[str, Callable[[], STLLRRule]] = {
    "dvs_gesture": lambda: STLLRRule(1.0, 0.75, -1.0, 0.2, "triangle"),
    "cifar10_dvs": lambda: STLLRRule(1.0, 0.5, -1.0, 0.2, "sigmoid"),
    "ncaltech101": lambda: STLLRRule(1.0, 0.5, -1.0, 0.2, "sigmoid"),
    "shd": lambda: STLLRRule(1.0, 1.0, 1.0, 0.5, "inverse_square"),
    "mvsec": lambda: STLLRRule(1.0, 0.8, -0.2, 0.5, "rational"),
    # Xiao et al., "Online Training Through Time for Spiking Neural Networks", NeurIPS 2022.
    "ottt": lambda: STLLRRule(1.0, "leak", 0.0, 0.0, None, "surrogate"),
    # Meng et al., "Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks", ICCV 2023.
    "sltt": lambda: STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate"),
    # Apolinario, Roy & Frenkel, IJCNN 2025 (alpha_post is -1, 0 or 1 there, by data set).
    "tess": lambda: STLLRRule(1.0, 0.5, -1.0, 0.2, "triangle", learning_signal="tess"),
    # Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
    # Communications 2020: random e-prop for LIF neurons. Exact if the readout does not leak; a leaky one would low-pass
    # each eligibility, which needs memory per synapse. Its dampening is 0.3 and its pseudo-derivative as wide as the
    # threshold: for one that is not 1, pass psi=Triangle(0.3, threshold).
    "eprop_lif_like": lambda: STLLRRule(1.0, "leak", 0.0, 0.0, Triangle(0.3, 1.0), learning_signal="dfa"),
    # Kaiser, Mostafa & Neftci, "Synaptic Plasticity Dynamics for Deep Continuous Local Learning (DECOLLE)", Frontiers
    # in Neuroscience 2020. Its neuron is an SRM0, with two traces in a row (0.97 and 0.92); here there is one.
    "decolle_like": lambda: STLLRRule(1.0, 0.92, 0.0, 0.0, InverseSquare(10.0), learning_signal="local_random"),
    # Quintana et al., "ETLP: Event-based Three-factor Local Plasticity for online learning with neuromorphic hardware",
    # 2023. Its neurons adapt their thresholds, which adds an eligibility per synapse; this is its LIF part.
    "etlp_like": lambda: STLLRRule(1.0, "leak", 0.0, 0.0, Triangle(0.3, 1.0), learning_signal="drtp"),
    # Ortner, Pes, Gentinetta, Frenkel & Pantazi, "Online Spatio-Temporal Learning with Target Projection", AICAS 2023.
    # Its eligibility also follows the path through the reset; this one does not.
    "osttp_like": lambda: STLLRRule(1.0, "leak", 0.0, 0.0, None, "surrogate", learning_signal="drtp"),
    # Pair-based additive STDP: psi is the spike. Needs no loss; see learner.reinforce().
    "stdp": lambda: STLLRRule(1.0, 0.5, -1.0, 0.5, Spike(), convention="current", learning_signal="one"),
}
