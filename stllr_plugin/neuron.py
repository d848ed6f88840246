"""A neuron of the attached model: its module, its adapter, and the rules of the synapses that feed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stllr_plugin.activations import Psi
from stllr_plugin.calls import SynapseSite
from stllr_plugin.errors import RuleError, StateError
from stllr_plugin.neurons.base import NeuronAdapter
from stllr_plugin.neurons.surrogates import other_surrogate, surrogate_name, surrogate_problem
from stllr_plugin.own_weights import OwnWeightSite
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session

T = TypeVar("T")


class Neuron:
    """What is known of one neuron, whatever it does at a step.

    Attributes:
        session: What all parts of the learner share.
        name: Module name.
        module: The neuron.
        adapter: What is known about its kind.
        rule: The neuron's rule: its own by name, else the learner's.
        own_weights: Sites of weights that the module holds itself.
        inner_sites: Sites of synapses that are modules within it, such as a recurrent layer.
        passed: Where the last step was known by heart: the module's own weights and what they were applied to.
        tap: What sees, on this instance only, where the module decides about spikes.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        module: nn.Module,
        adapter: NeuronAdapter,
        rule: STLLRRule,
        own_weights: list[OwnWeightSite],
        inner_sites: list[SynapseSite],
    ) -> None:
        """See the class."""
        self.session = session
        self.name = name
        self.module = module
        self.adapter = adapter
        self.rule = self._with_leak(rule)
        self.own_weights = own_weights
        self.inner_sites = inner_sites
        self.tap = adapter.make_tap(module)
        self.passed: list[tuple[OwnWeightSite, Tensor]] = []
        self._surrogate_checked = False
        self._known: dict[Callable[[Neuron], Any], tuple[int, Any]] = {}
        self._rules: dict[STLLRRule, STLLRRule] = {}  # synapses' own rules, with lambda_pre="leak" replaced

    @property
    def kind(self) -> str:
        """Its name and class, for messages."""
        return f"Neuron {self.name!r} ({type(self.module).__name__})"

    @property
    def keeps_state(self) -> bool:
        """Whether the module keeps its states from step to step, so that they are not passed in and out."""
        return self.adapter.keeps_state(self.module)

    @property
    def takes_sequences(self) -> bool:
        """Whether the module takes [time, batch, ...], of which the learner feeds and accepts one step per call."""
        return self.adapter.is_sequence(self.module)

    def known(self, look: Callable[[Neuron], T]) -> T:
        """What there is to see of the module: looked at once per sequence, since it is needed at each step."""
        number = self.session.sequence.number
        seen = self._known.get(look)
        if seen is None or seen[0] != number:
            seen = self._known[look] = (number, look(self))
        return seen[1]

    def _with_leak(self, rule: STLLRRule) -> STLLRRule:
        if rule.lambda_pre != "leak":
            return rule
        leak = self.adapter.leak(self.module)
        if leak is None:
            raise RuleError(
                f"{self.kind}: the rule has lambda_pre='leak', but this layer has no single leak. Pass a number, for "
                "example with layer_rules."
            )
        return replace(rule, lambda_pre=leak)

    def rule_for(self, own: STLLRRule | None) -> STLLRRule:
        """The rule of a synapse that feeds this neuron: its own, else the neuron's."""
        if own is None:
            return self.rule
        if own not in self._rules:
            self._rules[own] = self._with_leak(own)
        return self._rules[own]

    def psi(self, psi: Psi | None, v: Tensor) -> Tensor:
        """The secondary activation (None: the neuron's own surrogate derivative) of v = u - threshold, checked.

        Args:
            psi: The activation.
            v: Of K steps, [K, B, ...].
        """
        if psi is None:
            self._check_surrogate(v)
            return self.adapter.surrogate_derivative(self.module, v)
        alone = len(v) == 1  # a function of the user's own sees one step in the shape that the neuron has
        v = v[0] if alone else v
        version = v._version
        with torch.no_grad():
            value = psi(v)
        if v._version != version:
            raise StateError(
                f"Neuron {self.name!r}: psi changed v in place, on which the learning signal and other rules depend. "
                "Use the out-of-place operation (v.abs(), not v.abs_())."
            )
        if not isinstance(value, Tensor) or value.shape != v.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StateError(
                f"Neuron {self.name!r}: psi returned {found} for v of shape {tuple(v.shape)}; it must map a tensor "
                "element by element."
            )
        if not value.is_floating_point():
            raise StateError(
                f"Neuron {self.name!r}: psi returned {value.dtype}, with which no gradient can be computed; return "
                "floating-point numbers, for example psi(v).to(v.dtype)."
            )
        return value.detach().unsqueeze(0) if alone else value.detach()

    def _check_surrogate(self, v: Tensor) -> None:
        """Looks at the neuron's own surrogate when it is first needed.

        Attaching has looked already, but where a synapse's own rule asks for it only the running model shows which
        neuron that is.
        """
        if self._surrogate_checked:
            return
        function = self.adapter.spike_function(self.module)
        problem = surrogate_problem(function, v.device)
        if problem is not None:
            raise RuleError(
                f"{self.kind}: the rule of a synapse has psi=None, which uses the neuron's own surrogate, "
                f"{surrogate_name(self.module, function)}, which cannot serve: {problem}. Give the neuron another, "
                f"e.g. {other_surrogate(self.module)}, or the rule a psi of its own."
            )
        self._surrogate_checked = True
