"""The attached network: its sites, how a sequence begins, and what is known of the model as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stllr_plugin.attach import Plan, changes_since
from stllr_plugin.calls import SynapseSite
from stllr_plugin.errors import StateError
from stllr_plugin.nn import SequenceDropout
from stllr_plugin.own_weights import OwnWeightSite
from stllr_plugin.rule import STLLRRule
from stllr_plugin.session import Session, several_processes
from stllr_plugin.signals import LearningSignal
from stllr_plugin.silence import Silence
from stllr_plugin.sites.excluded import ExclusionHook
from stllr_plugin.sites.kept import KeptStateSite
from stllr_plugin.sites.lift import LiftGuard, RecurrenceCut
from stllr_plugin.sites.model import ModelSite
from stllr_plugin.sites.neuron import NeuronSite
from stllr_plugin.sites.synapse import ModuleSite
from stllr_plugin.traces import EdgeTraces, NeuronTraces

_IGNORED = "_ddp_params_and_buffers_to_ignore"


class StateCarrier(Protocol):
    """Whoever carries states of the running sequence outside of the neurons, and must hear of resets."""

    def restart(self) -> None:
        """Goes back to the states of the beginning."""

    def refuse_single_samples(self) -> None:
        """Raises StateError if single samples cannot be reset."""

    def reset_samples(self, mask: Tensor) -> None:
        """Resets the samples in ``mask``, bool [B]."""


class Network:
    """What is attached to a model.

    Attributes:
        plan: What attaching found.
        session: What all parts of the learner share.
        signal: The learning signal.
        synapses: The synapses of the model, as the learner sees them.
        neurons: Its neurons.
        attached: Whether the hooks are in place.
        carrier: Whoever carries states outside of the neurons while a sequence runs.
        window_checks: Whether the model can run on several time steps at once, by kind of input: the reason if not.
        windowed_runs: How often that was asked.
        has_optimizer: Whether the learner updates the weights.
        run_notes: How ``run()`` ran last, for the report.
    """

    def __init__(self, plan: Plan, session: Session, signal: LearningSignal) -> None:
        """See the class. Nothing is attached yet, since making a site may fail, in an adapter of the user's own."""
        self.plan = plan
        self.session = session
        self.model = session.model
        self.signal = signal
        self.attached = False
        self.carrier: weakref.ref[StateCarrier] | None = None
        self.window_checks: dict[Any, str | None] = {}
        self.windowed_runs = 0
        self.run_notes: str | None = None
        self.has_optimizer = False
        self._silence = Silence()
        self._handles: list[Any] = []
        self._ignored_before: list[str] | None = None
        modules = [
            ModuleSite(session, name, module, kind, plan.rules.get(name)) for name, module, kind in plan.synapses
        ]
        self.synapses: list[SynapseSite] = [*modules]
        self.neurons: list[NeuronSite] = []
        for name, module, adapter in plan.neurons:
            own = [
                OwnWeightSite(session, name, module, weight, plan.rules.get(f"{name}.{weight}"))
                for weight in adapter.weight_names
            ]
            self.synapses += own
            parts = {id(part) for part in module.modules()}
            inner: list[SynapseSite] = [site for site in modules if id(site.module) in parts]
            rule = plan.rules.get(name, plan.rule)
            self.neurons.append(NeuronSite(session, name, module, adapter, rule, own, inner, signal))
        self._modules = modules
        self._kept = [KeptStateSite(session, name, module, keeper) for name, module, keeper in plan.keepers]
        self._modules_seen: list[tuple[str, nn.Module, type]] = []
        session.look_at_model = self._look
        self._with_time = {neuron.name for neuron in self.neurons if neuron.takes_sequences}

    # On and off.

    def attach(self) -> None:
        """Registers all hooks."""
        for synapse in self._modules:
            self._handles += synapse.attach()
        for neuron in self.neurons:
            self._handles += neuron.attach()
        self._handles += [site.module.register_forward_pre_hook(site) for site in self._kept]
        for name, module in self.plan.lifts:
            self._handles.append(module.register_forward_pre_hook(LiftGuard(self.session, name)))
        for name, module in self.plan.recurrences:
            self._handles.append(module.register_forward_pre_hook(RecurrenceCut(self.session, name), with_kwargs=True))
        for name, module in self.plan.excluded:
            self._handles.append(module.register_forward_hook(ExclusionHook(self.session, name)))
        self._handles += self.signal.attach()
        self._handles += ModelSite(self.session, self.model).attach()
        self._keep_ddp_off_states()
        self.attached = True
        self.session.owner = self
        self._modules_seen = self._modules_now()

    def _modules_now(self) -> list[tuple[str, nn.Module, type]]:
        return [(name, module, type(module)) for name, module in self.model.named_modules()]

    def _keep_ddp_off_states(self) -> None:
        """Tells a later DistributedDataParallel(model) to leave hidden states out of its buffer broadcast."""
        names = [
            f"{neuron.name}.{buffer}"
            for neuron in self.neurons
            for buffer in neuron.adapter.state_buffers(neuron.module)
        ]
        self._ignored_before = getattr(self.model, _IGNORED, None)
        if names:
            self.model.__dict__[_IGNORED] = [*(self._ignored_before or []), *names]

    def detach(self) -> None:
        """Takes everything off the model again, which is then bit for bit what it was; harmless where it is off."""
        if not self.attached:
            return
        self.flush()
        for handle in self._handles:
            handle.remove()
        for site in self.synapses:
            site.begin()
        for layer in self._modules:
            layer.detach()
        for neuron in self.neurons:
            neuron.detach()
        for kept in self._kept:
            kept.release()
        self.signal.restart()
        if self._ignored_before is None:
            self.model.__dict__.pop(_IGNORED, None)
        else:
            self.model.__dict__[_IGNORED] = self._ignored_before
        self._handles.clear()
        self.session.enabled = self.attached = False
        self.session.release()

    def _look(self) -> None:
        """Compares the plan with the model as it is now, once per sequence.

        Raises:
            StateError: If a layer or neuron was replaced, added or taken away.
        """
        if not self.attached:
            return
        if not self.ended_by_step:
            self.look_for_silence()  # in a sequence whose successor began without a reset
        seen = self._modules_now()
        if seen != self._modules_seen:
            changes = changes_since(self.plan, self.model)
            output = self.plan.output
            if output is not None and dict(self.model.named_modules()).get(output[0]) is not output[1]:
                changes.append(f"the output module {output[0]!r} is another one")
            if changes:
                raise StateError(
                    f"The model was changed while the learner was attached: {'; '.join(changes)}. What is new would "
                    "train by other gradients. Call learner.detach(), and attach a new STLLRLearner after the change."
                )
            self._modules_seen = seen
        weights = {id(p): site for site in self._modules for p in site.synapse.trainable(site.module)}
        self.session.weights = weights

    # Sequences.

    @property
    def ended_by_step(self) -> bool:
        """Whether an update ends the sequence, so that gradients may come until then."""
        return self.has_optimizer and self.session.reset_after_step

    def begin_sequence(
        self, num_steps: int | None, lengths: Tensor | None, *, keep_target: bool, last: int | None = None
    ) -> None:
        """Begins a sequence: fresh traces, and fresh states of this model's neurons.

        Args:
            num_steps: Its length, if known.
            lengths: Length of each sample, integer [B].
            keep_target: Whether the target that was set is for the sequence to come.
            last: Number of supervised steps at its end, where that is not the learner's.
        """
        self.session.watch.check()
        self.flush()
        if not self.ended_by_step:
            self.look_for_silence()
        self.session.supervision.begin(num_steps, lengths, last)
        self.restart(ended_by_step=False, keep_target=keep_target)

    def restart(self, *, ended_by_step: bool, keep_target: bool = False) -> None:
        """Resets traces and states; the sequence itself is begun by the caller."""
        self.session.kept.tell()
        for neuron in self.neurons:
            neuron.reset(None, ended_by_step)
        for kept in self._kept:
            kept.reset(None)
        if (carrier := self._running_carrier()) is not None:
            carrier.restart()
        self.signal.restart(keep_target=keep_target)
        for site in self.synapses:
            site.begin()
        for module in self.model.modules():
            if isinstance(module, SequenceDropout):
                module.reset_mask()

    def look_for_silence(self) -> None:
        """Warns of layers that have got no gradient; to be called once per sequence, when all have had their chance."""
        edges = [edge for _, traces in self.layers() for edge in traces.edges.values()]
        self._silence.look(self.synapses, edges, tell=self.signal.reaches_layers)

    def reset_samples(self, mask: Tensor) -> None:
        """Resets the samples in ``mask``, bool [B], within the running sequence."""
        carrier = self._running_carrier()
        if carrier is not None:
            carrier.refuse_single_samples()
        for neuron in self.neurons:
            neuron.reset(mask, ended_by_step=False)
        for kept in self._kept:
            kept.reset(mask)
        if carrier is not None:
            carrier.reset_samples(mask)

    def _running_carrier(self) -> StateCarrier | None:
        return None if self.carrier is None else self.carrier()

    def reset_kept_states(self) -> None:
        """Resets the states that this model's neurons keep themselves, and nothing else."""
        for neuron in self.neurons:
            neuron.adapter.reset_states(neuron.module, None)
        for kept in self._kept:
            kept.reset(None)

    # Gradients that wait (fold_steps).

    def flush(self) -> None:
        """Puts into ``.grad`` what still waits."""
        with torch.enable_grad():
            for edge in self.waiting_edges():
                call = edge.waiting.call  # type: ignore[union-attr]
                assert call is not None
                gradient = edge.gradient_of_waiting()
                weight = call.trained_weight() if call.site.owned else call.site.current_weight()
                if weight.requires_grad:
                    torch.autograd.backward([weight], [gradient])

    def complete(self) -> None:
        """As :meth:`flush`, where a sequence has been run for the user, whichever of its steps had a loss.

        Processes that train together would not average this: there ``step()`` speaks.
        """
        if self.session.fold_steps > 1 and not several_processes():
            self.flush()

    def waiting_edges(self) -> list[EdgeTraces]:
        """Edges whose gradients of the last steps have not been multiplied yet."""
        edges = [edge for _, traces in self.layers() for edge in traces.edges.values()]
        return [edge for edge in edges if edge.waiting is not None and edge.waiting.call is not None]

    def discard_waiting(self) -> None:
        """Forgets them."""
        for edge in self.waiting_edges():
            edge.waiting.discard()  # type: ignore[union-attr]

    # What is known of the model.

    def layers(self) -> Iterator[tuple[NeuronSite, NeuronTraces]]:
        """Each neuron, with the traces of each layer that it serves."""
        for neuron in self.neurons:
            for traces in neuron.layers.all:
                yield neuron, traces

    def edges(self) -> Iterator[tuple[NeuronSite, NeuronTraces, EdgeTraces, STLLRRule]]:
        """The edges seen so far, each with its rule."""
        for neuron, traces in self.layers():
            for edge in traces.edges.values():
                yield neuron, traces, edge, neuron.rule_for(edge.site.rule)

    @property
    def synaptic_parameters(self) -> set[int]:
        """Ids of the parameters behind the synapses' weights."""
        found = {id(p) for _, module, synapse in self.plan.synapses for p in synapse.trainable(module)}
        for neuron in self.neurons:
            for name in neuron.adapter.weight_names:
                originals = (name, f"{name}_orig", f"parametrizations.{name}.")
                found.update(id(p) for key, p in neuron.module.named_parameters() if key.startswith(originals))
        return found

    @property
    def has_kept_states(self) -> bool:
        """Whether modules other than neurons keep states from step to step."""
        kept = any(not isinstance(site.module, SequenceDropout) for site in self._kept)
        return kept or bool(self.plan.recurrences)

    @property
    def keeps_time(self) -> bool:
        """Whether the model takes and returns a time dimension, [1, batch, ...] at each step."""
        return bool(self._with_time or self.plan.lifts)

    @property
    def single_step_neurons(self) -> list[str]:
        """Neurons that take one time step per call, in a model that takes whole sequences; those in a Lift aside."""
        lifted = {id(child) for _, lift in self.plan.lifts for child in lift.modules()}
        return [
            neuron.name
            for neuron in self.neurons
            if self.keeps_time and neuron.name not in self._with_time and id(neuron.module) not in lifted
        ]

    def find_module(self, name: str) -> nn.Module | None:
        """A module of the model by name."""
        return dict(self.model.named_modules()).get(name)
