"""The learner: attaches the rule to a model and is an optimizer to everything that takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stllr_plugin import overview
from stllr_plugin.attach import Plan, hidden_neurons, plan_attachment, warn
from stllr_plugin.errors import NoGradientCapturedError, RuleError, StateError
from stllr_plugin.facade import OptimizerFacade
from stllr_plugin.hooks import attached_to
from stllr_plugin.network import Network
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session, several_processes
from stllr_plugin.settings import (
    check_parameters,
    check_settings,
    checked_layer_rules,
    checked_mask,
    checked_patterns,
    load_optimizer,
    split_state,
)
from stllr_plugin.signals import SIGNALS, LearningSignal, SignalSetup
from stllr_plugin.stdp import Plasticity
from stllr_plugin.supervision import Supervision
from stllr_plugin.ways.methods import WaysOfUse

if TYPE_CHECKING:
    from stllr_plugin.verify.result import Verification

_STATE_KEY = "stllr"


class STLLRLearner(WaysOfUse, OptimizerFacade):
    """Trains an existing snnTorch, Norse or SpikingJelly model with S-TLLR.

    Attaching is all that is needed: from then on the gradients that ``loss.backward()`` leaves in ``.grad`` are those
    of the rule. With an optimizer the learner *is* that optimizer to everything that takes one (schedulers, GradScaler,
    Lightning)::

        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        optimizer = STLLRLearner(net, optimizer, rule="dvs_gesture")

    Args:
        model: The network; it keeps its class, parameters, buffers and ``state_dict`` keys.
        optimizer: What updates the weights; None if you call your own optimizer's ``step()`` yourself (then call
            :meth:`reset` before each sequence yourself too).
        rule: An :class:`STLLRRule` or the name of a preset.
        layer_rules: Rules for some layers: shell-style pattern of a synapse's or a neuron's module name to rule or
            preset. The first pattern that matches wins; a rule for the synapse goes before one for the neuron that it
            feeds.
        learning_signal: "bp" (through the layers of the same step); "dfa" or "sign_dfa" (direct feedback alignment);
            or made from the target given with :meth:`set_target`: "drtp" (a random projection of it), "local" (a
            trained classifier per layer), "local_random" (a random one), "tess" (one of square waves); or "one",
            without a loss (:meth:`reinforce`). None takes the rule's own, else "bp". See :mod:`stllr_plugin.signals`.
        plasticity: How eligibilities become weight changes, for learning_signal="one".
        output: Name of the module whose output the loss sees, for all signals but "bp"; by default the last synapse or
            neuron.
        feedback_seed: Seed of the feedback matrices; by default ``torch.initial_seed()``.
        supervise_last: Supervise the last k steps of each sequence; None supervises all steps for which you call
            backward.
        supervise_random: Supervise k steps of each sequence, drawn anew for each from torch's generator (as SLTT-K
            does). Needs ``num_steps``, here or with :meth:`reset`; ``supervision.is_supervised(t)`` tells which.
        num_steps: Length of the sequences, if fixed. With ``supervise_last`` the steps before the supervised ones then
            keep no graph.
        exclude: Patterns of module names to leave alone.
        fold_steps: How many supervised steps' gradients are put into ``.grad`` together, when you call backward at each
            step: their products are one, which saves up to half of that work and takes memory for as many steps. The
            last of a sequence brings what is left, so its length must be known (``num_steps``, here or with
            :meth:`reset`); so does :meth:`step`, and :meth:`flush`. Between them ``.grad`` lacks the latest steps. None
            puts each step's gradients there at once.
        product_dtype: ``torch.bfloat16`` rounds to 8 bits what is multiplied for the weights' gradients, and each
            product, which about halves their time on hardware with bfloat16 units. Spikes are exact in it, and traces
            stay float32. None multiplies in at least float32, also under autocast.
        reset_after_step: Whether :meth:`step` ends the sequence. Pass False to update within a sequence, and call
            :meth:`reset` yourself.
        check_finite: Whether :meth:`step` looks for NaN and infinity first (one read from the device).

    Raises:
        AttachmentError: If the model cannot be trained as it is; lists every problem. The model is then unchanged.
        RuleError: If a rule or a setting is not valid.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        rule: str | STLLRRule,
        layer_rules: Mapping[str, str | STLLRRule] | None = None,
        learning_signal: str | None = None,
        plasticity: Plasticity | None = None,
        output: str | None = None,
        feedback_seed: int | None = None,
        supervise_last: int | None = None,
        supervise_random: int | None = None,
        num_steps: int | None = None,
        exclude: str | Iterable[str] = (),
        fold_steps: int | None = None,
        product_dtype: torch.dtype | None = None,
        reset_after_step: bool = True,
        check_finite: bool = True,
    ) -> None:
        """See the class."""
        check_settings(
            optimizer,
            {
                "supervise_last": supervise_last,
                "supervise_random": supervise_random,
                "num_steps": num_steps,
                "fold_steps": fold_steps,
            },
            {"reset_after_step": reset_after_step, "check_finite": check_finite},
            product_dtype,
            feedback_seed,
            learning_signal,
        )
        rules, excluded = checked_layer_rules(layer_rules), checked_patterns(exclude)
        plan = plan_attachment(model, rule, rules, learning_signal, output, excluded)
        _check_signal(plan, optimizer, fold_steps)
        check_parameters(model, optimizer)

        super().__init__(optimizer)
        self._plan = plan
        self._num_steps = num_steps
        supervision = Supervision(supervise_last, supervise_random)
        self._session = Session(model, supervision, 1 if fold_steps is None else fold_steps, product_dtype)
        self._signal = _make_signal(plan, self._session, feedback_seed)
        self._signal.use_plasticity(plasticity)
        _replace_others(model)  # all is checked by now
        self._network = Network(plan, self._session, self._signal)
        self._network.has_optimizer = optimizer is not None
        self.reset_after_step, self.check_finite = reset_after_step, check_finite
        supervision.begin(num_steps, None)
        self._network.attach()

    # The optimizer.

    def _groups_are_seen(self) -> None:
        """A GradScaler, say, looks at gradients next: what ``fold_steps`` keeps back arrives first."""
        network = self.__dict__.get("_network")
        if network is not None and network.session.fold_steps > 1 and not several_processes():
            network.flush()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the inner optimizer's parameters (without one: of the model's).

        Where gradients are thrown away that no :meth:`step` has used, as after a step that a GradScaler skipped, the
        sequence ends as it does with ``step()``.
        """
        if self._inner is None:
            self.model.zero_grad(set_to_none)
        else:
            self._inner.zero_grad(set_to_none)
            self._signal.zero_grad()
            unused = self._session.captures and self._session.clock >= 0
            if unused and self.reset_after_step and self._network.attached:
                self._end_sequence()
        self._network.discard_waiting()
        self._session.captures = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the weights, then ends the sequence (unless ``reset_after_step=False``).

        Args:
            closure: As in torch: evaluates the model, calls backward and returns the loss.

        Raises:
            NoGradientCapturedError: If no gradient of the rule arrived since the last step.
            NonFiniteError: If a trace or a gradient is NaN or infinite; nothing was updated.
            NotAttachedError: After :meth:`detach`.
        """
        self._require_attached()
        if self._inner is None:
            raise RuleError(
                "This learner was built without an optimizer; pass one, or call your own optimizer's step()."
            )
        if closure is not None and not callable(closure):
            raise RuleError(
                f"step() takes a closure, a function that evaluates the model, or nothing; found {closure!r}."
            )
        if closure is None:
            self._check_ready()
            self._inner.step()
            loss = None
        else:
            loss = self._inner.step(self._checked(closure))
        self._signal.step(self._inner)
        self._session.captures = 0
        if self.reset_after_step:
            self._warn_of_resets_within_sequences()
            self._end_sequence()
        return loss

    def _checked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure for the inner optimizer, which may evaluate it several times (as LBFGS does)."""

        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._check_ready()
            return loss

        return evaluate

    def _check_ready(self) -> None:
        """Brings in what is still kept back, and raises if an update would not be one by the rule."""
        if self._session.enabled:
            if several_processes() and self._network.waiting_edges():
                raise StateError(
                    f"step() came before the announced end of a sequence, and fold_steps={self.fold_steps} still keeps "
                    "gradients back, which the processes have not averaged. Nothing was updated. Run the sequence to "
                    "its end, announce its real length with learner.reset(num_steps=...), or leave fold_steps out."
                )
            self._session.watch.check()
            self._session.doubts.settle()
            self.flush()
            self._check_captured()
            self._signal.check_delivered()
            if self.reset_after_step:
                self._network.look_for_silence()
            if self.check_finite:
                overview.assert_finite(self._network)

    def flush(self) -> None:
        """Puts into ``.grad`` what ``fold_steps`` still keeps back; :meth:`step` does so by itself."""
        self._network.flush()

    def _end_sequence(self) -> None:
        self._network.restart(ended_by_step=True)
        self._session.supervision.begin(self._num_steps, None)

    def _check_captured(self) -> None:
        if self._session.captures:
            return
        reasons = []
        if not self.model.training:
            reasons.append("the model is in eval() mode")
        if self._session.clock < 0:
            reasons.append("no time step ran in training mode with gradients enabled since the last reset")
        else:
            reasons.append("loss.backward() did not reach a neuron or readout at a supervised step")
            if not any(traces.edges for _, traces in self._network.layers()):
                reasons.append(
                    "no synapse that the learner knows feeds a neuron (a raw parameter in place of a layer?)"
                )
        raise NoGradientCapturedError(
            "step() was called, but no synapse received a gradient of the rule since the last step: "
            f"{' and '.join(reasons)}. Nothing was updated. Run the model with model.train(), call loss.backward() on "
            "the outputs of supervised steps, then step()."
        )

    def _warn_of_resets_within_sequences(self) -> None:
        session = self._session
        session.single_step_updates = session.single_step_updates + 1 if session.clock == 0 else 0
        if session.single_step_updates == 3 and self._num_steps != 1:
            warn(
                "Each of the last three step() calls came after a single time step, and each reset the neurons and "
                "the traces. If your sequences have one time step, say so with num_steps=1. If you update at every "
                "time step of a longer sequence, build the learner with reset_after_step=False and call "
                "learner.reset() before each sequence."
            )

    def assert_finite(self) -> None:
        """Looks for NaN and infinity in traces and in the gradients of the model.

        Raises:
            NonFiniteError: Names the first place in the order input, membrane, gradient.
        """
        overview.assert_finite(self._network)

    # Sequences.

    def reset(self, mask: Tensor | None = None, *, num_steps: int | None = None, lengths: Tensor | None = None) -> None:
        """Begins a new sequence: clears the traces and the states of this model's neurons, and of no other model's.

        States that you carry in variables of your own (explicit snnTorch or Norse states) are yours to start afresh.

        Args:
            mask: Bool [B]: resets only these samples, within a running batch.
            num_steps: Length of the sequence to come; by default that given to the constructor.
            lengths: Integer [B], the length of each sample: ``supervise_last`` counts from each sample's own end, and
                steps past a sample's end teach nothing.

        Raises:
            StateError: If an argument is not valid or does not fit the running batch.
        """
        self._require_attached()
        if mask is not None:
            if num_steps is not None or lengths is not None:
                raise StateError(
                    "reset(mask) keeps the running sequence; num_steps and lengths begin a new one. Pass one or the "
                    "other."
                )
            self._network.reset_samples(checked_mask(mask))
            return
        if lengths is None and num_steps is None:
            num_steps = self._num_steps
        self._network.begin_sequence(num_steps, lengths, keep_target=False)

    def extend(self, num_steps: int | None) -> None:
        """Announces further steps of the running sequence, for streams that are trained piece by piece.

        Args:
            num_steps: How many steps come; None if that is not known.

        Raises:
            StateError: If the learner draws its supervised steps at random (``supervise_random``).
            NotAttachedError: After :meth:`detach`.
        """
        self._require_attached()
        self._session.supervision.extend(num_steps)

    def verify(self, inputs: Any, loss_fn: Callable[..., Tensor | None], **options: Any) -> Verification:
        """Compares this model's gradients on one batch with a slow, independent computation; print the result.

        Options are those of :func:`stllr_plugin.verify.check.verify_with`. Everything stays as it was.
        """
        from stllr_plugin.verify.check import verify_with  # seldom needed

        settings = {"rule": self._plan.rule, "layer_rules": self._plan.rules, "attached": self.attached}
        settings |= {"supervise_last": self.supervision.last, "learning_signal": self.learning_signal}
        settings |= {"exclude": [name for name, _ in self._plan.excluded]}
        return verify_with(STLLRLearner, self.model, inputs, loss_fn, **{**settings, **options})

    def __repr__(self) -> str:
        """Settings and counts, on one line."""
        kind = "no optimizer" if self._inner is None else type(self._inner).__name__
        return (
            f"STLLRLearner({type(self.model).__name__}, {kind}, {len(self._network.synapses)} synapses, "
            f"{len(self._network.neurons)} neurons, learning_signal={self.learning_signal!r}, rule={self._plan.rule})"
        )

    # Checkpoints.

    def __copy__(self) -> STLLRLearner:
        """Raises StateError: a learner belongs to its model."""
        raise _not_copied("copied")

    def __deepcopy__(self, memo: dict[int, Any]) -> STLLRLearner:
        """Raises StateError: a learner belongs to its model."""
        raise _not_copied("copied")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises StateError: a learner belongs to its model."""
        raise _not_copied("pickled")

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and, under "stllr", rules and feedback matrices; traces belong to a sequence."""
        inner: dict[str, Any] = {"state": {}, "param_groups": []} if self._inner is None else self._inner.state_dict()
        return {**inner, _STATE_KEY: {**self._described(), **self._signal.state_dict()}}

    def _described(self) -> dict[str, Any]:
        return {
            "rule": self._plan.rule.describe(),
            "layer_rules": {name: rule.describe() for name, rule in self._plan.rules.items()},
            "learning_signal": self.learning_signal,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave; a plain optimizer's state works too.

        Warns if the saved rule differs from this learner's, which stays in force.

        Raises:
            RuleError: If it is no such state, the learning signal differs, or feedback matrices name neurons that this
                model does not have.
        """
        state, own = split_state(state_dict, _STATE_KEY, self.learning_signal)
        if own is not None:
            self._signal.check_state(own)
        if self._inner is not None:
            load_optimizer(self._inner, state)
        if own is None:
            return
        mine = self._described()
        for what in ("rule", "layer_rules"):
            if own[what] != mine[what]:
                warn(f"The checkpoint was made with {what} {own[what]}; this learner goes on with {mine[what]}.")
        self._signal.load_state_dict(own)


def _not_copied(how: str) -> StateError:
    return StateError(
        f"An STLLRLearner cannot be {how}, since it is attached to its model. Save learner.state_dict() and the "
        "model's; for a second model, copy the model, call stllr_plugin.remove_hooks(copy), and build a learner for it."
    )


def _replace_others(model: nn.Module) -> None:
    """Detaches learners that the model carries already, as where a notebook's cell runs twice."""
    others = attached_to(model)
    for other in others:
        other.detach()
        other.reset_kept_states()  # of its sequence, which nobody will go on with
    if others:
        warn(
            f"This {type(model).__name__}, or a part of it, was attached to another STLLRLearner, which is detached "
            "now: the new one takes its place. To take a learner off without a new one, call its detach() or "
            "stllr_plugin.detach(model)."
        )


def _check_signal(plan: Plan, optimizer: Optimizer | None, fold_steps: int | None) -> None:
    kind: type[LearningSignal] = SIGNALS[plan.learning_signal]
    if kind.needs_optimizer and optimizer is None:
        raise RuleError(
            f'learning_signal="{plan.learning_signal}" trains a classifier per layer with an optimizer like yours: '
            'pass the optimizer, or use "local_random", whose classifiers stay as they are.'
        )
    if fold_steps is None or fold_steps == 1:
        return
    if kind.at_each_step:
        raise RuleError(f'fold_steps is for learning_signal="bp"; found {plan.learning_signal!r}. Leave it out.')
    if optimizer is None:
        raise RuleError(
            "fold_steps keeps gradients back until step(), so the learner must know it: pass the optimizer, and call "
            "step() of the learner."
        )


def _make_signal(plan: Plan, session: Session, seed: int | None) -> LearningSignal:
    name, module = ("", None) if plan.output is None else plan.output
    hidden = [] if plan.output is None else hidden_neurons(plan)
    with_time = frozenset(name for name, module, adapter in plan.neurons if adapter.is_sequence(module))
    seed = torch.initial_seed() if seed is None else seed
    kind: type[LearningSignal] = SIGNALS[plan.learning_signal]
    named = plan.output_named
    return kind(SignalSetup(session, plan.learning_signal, name, module, hidden, seed, with_time, named))
