"""Verification of a learner on the user's own model and batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.errors import SequenceInputError, STLLRError, STLLRWarning
from stllr_plugin.neurons import find_adapter
from stllr_plugin.rule import STLLRRule, resolve_rule
from stllr_plugin.settings import check_count, checked_layer_rules, checked_patterns
from stllr_plugin.verify.copies import fresh_copy, random_state_kept
from stllr_plugin.verify.double import in_float64
from stllr_plugin.verify.drive import Clock, Drive, Forward, find_clock, make_drive
from stllr_plugin.verify.plan import layers_without_hooks
from stllr_plugin.verify.result import Row, Verification, VerificationError
from stllr_plugin.verify.spike_probe import Prepare, find_jumps
from stllr_plugin.verify.tape import Tape, record
from stllr_plugin.verify.verdicts import TOLERANCE, compare, rows_of_jumps, rows_without_gradient
from stllr_plugin.verify.written_out import Gradients, RuleOf, WrittenOut

Attach = Callable[..., AbstractContextManager[Any]]

# The rule without traces, whose gradient is that of autograd within each step.
_PLAIN = STLLRRule(alpha_pre=1.0, lambda_pre=0.0, alpha_post=0.0, lambda_post=0.0, psi=None, propagate="surrogate")


def verify_with(
    attach: Attach,
    model: nn.Module,
    inputs: Any,
    loss_fn: Callable[..., Tensor | None],
    *,
    rule: str | STLLRRule,
    layer_rules: Mapping[str, str | STLLRRule] | None = None,
    exclude: str | Iterable[str] = (),
    supervise_last: int | None = None,
    learning_signal: str | None = None,
    forward: Forward | None = None,
    steps: bool | None = None,
    num_steps: int | None = None,
    attached: bool = False,
) -> Verification:
    """Compares the gradients that a learner gives a model, on one batch, with those of a slow, independent computation.

    The model may be attached or not, and in the middle of a sequence: everything runs on copies, in float64 where the
    model can. Nothing of the model, its gradients, its states or the random generators is different afterwards.

    Args:
        attach: The learner's class, or what stands for it: called with a copy of the model and the settings, a context
            manager. (The class has this as a method, so this module does not know it.)
        model: The network.
        inputs: One batch: [time, batch, ...] or a list with one item per time step, or whatever the model takes where
            its loop over time is inside.
        loss_fn: Where the model is called once per time step: of the output of a step, or of the output and the number
            of the step; the losses are summed, None skips a step. Else of what the one call returns.
        rule: As the learner has it.
        layer_rules: As the learner has them.
        exclude: As the learner has them.
        supervise_last: As the learner has it.
        learning_signal: As the learner has it, by default the rule's own. Verified is "bp", whatever it is.
        forward: Your own loop, ``forward(model, inputs)``, which returns what loss_fn takes. It must run the model that
            it is given.
        steps: Whether a call of the model is one time step; None finds out.
        num_steps: Number of time steps, where that cannot be found out from the calls and the batch.
        attached: Whether a learner is attached to the model: layers that it does not know are then reported.

    Returns:
        The comparisons; print it.

    Raises:
        VerificationError: If the model or the batch cannot be run for this.
        RuleError: If a setting is not valid.
    """
    for name, value in (("supervise_last", supervise_last), ("num_steps", num_steps)):
        if value is not None:
            check_count(name, value)
    if not isinstance(model, nn.Module):
        raise VerificationError(f"verify() takes a model, a torch module; found {type(model).__name__}.")
    job = _Job(
        attach=attach,
        model=model,
        rule=resolve_rule(rule),
        layer_rules={name: resolve_rule(value) for name, value in checked_layer_rules(layer_rules).items()},
        exclude=checked_patterns(exclude),
        supervise_last=supervise_last,
        num_steps=num_steps,
    )
    job.note_signal(learning_signal or job.rule.learning_signal or "bp")
    missed = layers_without_hooks(model, job.exclude) if attached else []
    rows = [*missed, *_in_best_precision(job, inputs, loss_fn, forward, steps)]
    dtype = str(job.dtype).removeprefix("torch.")
    return Verification(tuple(rows), dtype, TOLERANCE[job.dtype], job.steps, tuple(job.notes))


def _in_best_precision(
    job: _Job, inputs: Any, loss_fn: Callable[..., Tensor | None], forward: Forward | None, steps: bool | None
) -> list[Row]:
    """The comparisons in float64, or in float32 where the model does not run in float64."""
    with random_state_kept(job.model) as put_back, torch.enable_grad():
        job.put_back = put_back
        try:
            with in_float64() as convert:
                return job.rows(make_drive(job.copy(), convert(inputs), loss_fn, forward, steps))
        except (STLLRError, KeyboardInterrupt):
            raise
        except Exception as error:  # of the user's code, which may not know float64
            job.notes.append(
                f"Computed in float32, since the model does not run in float64 ({type(error).__name__}: {error}). "
                "The search for unknown spike functions needs float64, and was left out."
            )
        job.dtype = torch.float32
        return job.rows(make_drive(job.copy(), inputs, loss_fn, forward, steps))


@dataclass
class _Job:
    """One verification."""

    attach: Attach
    model: nn.Module
    rule: STLLRRule
    layer_rules: dict[str, STLLRRule]
    exclude: tuple[str, ...]
    supervise_last: int | None
    num_steps: int | None
    dtype: torch.dtype = torch.float64
    put_back: Callable[[], None] = lambda: None
    notes: list[str] = field(default_factory=list)
    steps: int | None = None

    def note_signal(self, learning_signal: str) -> None:
        """Says that a signal other than "bp" is left out."""
        if learning_signal != "bp":
            self.notes.append(
                f'The learning signal {learning_signal!r} is not checked: both sides were computed with "bp", which '
                "checks traces, psi and products."
            )

    def copy(self) -> nn.Module:
        """A new copy of the model, and random generators as they were."""
        twin = fresh_copy(self.model, self.dtype if self.dtype == torch.float64 else None)
        self.put_back()
        return twin

    def rows(self, drive: Drive) -> list[Row]:
        """Both checks."""
        clock = find_clock(self.copy(), drive, self.num_steps)
        self.steps = clock.num_steps
        supervised = self._supervised(clock)
        left_alone = self._left_alone()

        def record_again(prepare: Prepare = lambda model: None) -> Tape:
            twin = self.copy()
            prepare(twin)
            return record(twin, drive, clock, left_alone, supervised)

        rows: list[Row] = []
        # The plain rule may be refused where the user's is not, for the sake of a surrogate that it alone uses.
        plain_rules = {name: replace(_PLAIN) for name in self.layer_rules}
        learned = self._learned(drive, _PLAIN, plain_rules, clock)
        own = self._learned(drive, self.rule, self.layer_rules, clock)
        if isinstance(own, Row):
            return [own]
        written = self._written(drive, clock, left_alone, supervised, self._rule_of)
        rows += compare("forward", {"loss": own.loss}, {"loss": written.loss}, self.dtype)
        if isinstance(learned, Row):
            rows.append(replace(learned, check="plain", verdict="not checked"))
        else:
            plain = self._written(drive, clock, left_alone, supervised, None)
            rows += compare("plain", learned.gradients, plain.gradients, self.dtype, self._unchecked(plain, written))
            rows += rows_without_gradient(
                plain.gradients, learned.gradients, plain.synaptic, self._through_time(drive, supervised)
            )
        rows += compare(
            "rule", own.gradients, written.gradients, self.dtype, self._unchecked(written, written), written.feeds
        )
        rows += written.rows
        if self.dtype == torch.float64:
            rows += rows_of_jumps(find_jumps(written.tape, record_again))
        return rows

    def _supervised(self, clock: Clock) -> range | None:
        if self.supervise_last is None:
            return None
        if clock.num_steps is None:
            raise VerificationError("The number of time steps is not known, and supervise_last needs it: num_steps=...")
        return range(max(clock.num_steps - self.supervise_last, 0), clock.num_steps)

    def _left_alone(self) -> set[str]:
        names = [name for name, _ in self.model.named_modules()]
        return {name for name in names for pattern in self.exclude if fnmatchcase(name, pattern)}

    def _rule_of(self, synapse: str, neuron: str) -> STLLRRule:
        """The first pattern that matches the synapse, else the first that matches the neuron, else the rule of all."""
        for name in (synapse, neuron):
            for pattern, rule in self.layer_rules.items():
                if name and fnmatchcase(name, pattern):
                    return self._with_leak(rule, neuron)
        return self._with_leak(self.rule, neuron)

    def _with_leak(self, rule: STLLRRule, neuron: str) -> STLLRRule:
        if rule.lambda_pre != "leak":
            return rule
        module = self.model.get_submodule(neuron)
        adapter = find_adapter(module)
        leak = None if adapter is None else adapter.leak(module)
        return rule if leak is None else replace(rule, lambda_pre=leak)

    # The two sides.

    def _learned(
        self, drive: Drive, rule: STLLRRule, layer_rules: Mapping[str, STLLRRule], clock: Clock
    ) -> _Side | Row:
        """What a learner leaves in ``.grad`` of a copy; a row if it refuses."""
        twin = self.copy()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", STLLRWarning)
                with self.attach(
                    twin,
                    rule=rule,
                    layer_rules=layer_rules,
                    learning_signal="bp",
                    supervise_last=self.supervise_last,
                    exclude=self.exclude,
                ) as learner:
                    learner.reset(num_steps=drive.num_steps)
                    self.put_back()
                    loss = drive.loss(twin, supervised=self._supervised(clock) if drive.by_steps else None)
                    loss.backward()
        except (VerificationError, SequenceInputError):
            raise
        except STLLRError as error:
            advice = f"the learner refuses this: {' '.join(str(error).split())}"
            return Row("rule", type(twin).__name__, None, "refused", advice)
        return _Side(loss.detach(), {name: p.grad for name, p in twin.named_parameters() if p.requires_grad})

    def _written(
        self, drive: Drive, clock: Clock, left_alone: set[str], supervised: range | None, rule_of: RuleOf | None
    ) -> _Written:
        """The same from a tape."""
        twin = self.copy()
        tape = record(twin, drive, clock, left_alone, supervised)
        computation = WrittenOut(tape, twin, rule_of, supervised, bool(left_alone))
        found = computation.run()
        for name, parameter in twin.named_parameters():
            if name.startswith(tuple(f"{part}." for part in left_alone)):  # left alone on request
                found.bypassing.pop(parameter, None)
        return _Written(tape, twin, found, computation.synaptic, drive.by_steps or supervised is None)

    def _unchecked(self, side: _Written, written: _Written) -> dict[str, str]:
        """Reasons by parameter. What the rule cannot write out because it acts later, autograd cannot show either."""
        reasons = dict(side.reasons)
        late = {name: why for name, why in written.reasons.items() if "step later" in why}
        left = self._left_alone()
        for name in side.names.values():
            if any(not part or name.startswith(f"{part}.") for part in left):
                reasons[name] = "it belongs to a module that is excluded"
        return {**late, **reasons}

    def _through_time(self, drive: Drive, supervised: range | None) -> Callable[[], set[str]]:
        """Names of parameters that backpropagation through time reaches; computed when asked for."""

        def reached() -> set[str]:
            twin = self.copy()
            drive.loss(twin, supervised=supervised if drive.by_steps else None).backward()
            return {name for name, parameter in twin.named_parameters() if parameter.grad is not None}

        return reached


@dataclass
class _Side:
    """Loss and gradients by parameter name."""

    loss: Tensor
    gradients: dict[str, Tensor | None]


class _Written(_Side):
    """What was found from a tape, in terms of names."""

    def __init__(
        self, tape: Tape, model: nn.Module, found: Gradients, synaptic: set[nn.Parameter], steps_told: bool
    ) -> None:
        self.tape = tape
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(tape.loss.detach(), {name: found.of.get(p) for p, name in self.names.items()})
        self.synaptic = {name for p, name in self.names.items() if p in synaptic}
        self.feeds = {self.names[p]: ", ".join(edges) for p, edges in found.feeds.items()}
        self.reasons = {self.names[p]: why for p, why in found.unchecked.items()}
        if not steps_told:
            late = "the loss uses it directly, and which steps those are cannot be seen from outside; pass the steps"
            self.reasons.update({self.names[p]: late for p in found.beside})
        wrong = sorted({call.name for call in tape.neuron_calls if not call.agrees})
        if wrong and found.feeds:
            why = (
                f"what neuron {wrong[0]!r} compared with its threshold could not be found: it did not spike where its "
                "membrane was above the threshold that its adapter gives"
            )
            self.reasons.update({name: why for name in self.gradients})
        self.rows = [
            Row(
                "model",
                self.names[p],
                None,
                "FAILED",
                f"this weight of a layer reaches neuron {neuron!r} without a call of the layer, as in F.linear(x, "
                "layer.weight), so it follows no rule: it gets the ordinary gradient of each step. Call the layer, or "
                "give the product a module of its own",
            )
            for p, neuron in found.bypassing.items()
        ]
