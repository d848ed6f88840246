"""The hooks that a learner puts on synapses and neurons, and what each does around one call.

The model keeps its classes, its forward methods, its parameters and its state_dict. A hook does something only while
the learner is enabled, the module is in training mode and gradients are enabled; otherwise the model runs as if nothing
were attached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stllr_plugin.activations import Psi, resolve_psi
from stllr_plugin.errors import CheckpointingError, NotAttachedError, SequenceInputError, StateError
from stllr_plugin.graft import (
    PostFactor,
    SpikeGraft,
    StateGraft,
    StepRecord,
    SynapseCall,
    SynapticInput,
    Tag,
    find_calls,
)
from stllr_plugin.neurons.base import Installation, NeuronAdapter, NeuronStep
from stllr_plugin.rule import STLLRRule
from stllr_plugin.synapses import Synapse, linear_weight_gradient
from stllr_plugin.traces import EdgeTraces, NeuronTraces, PostTrace

if TYPE_CHECKING:
    from stllr_plugin.learner import STLLRLearner


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes torch.compile call a function instead of tracing it.

    ``torch.compiler.disable`` does that, but imports the whole compiler at once; this waits until somebody compiles.
    """
    disabled: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # the mark that torch.compiler.disable leaves
    return call


class Hook:
    """Base of all hooks, so that ours can be told from others'.

    A deep copy (or pickle) of an attached model must not train with other gradients in silence, and must not feed this
    learner. Its hooks become :class:`OrphanHook`.
    """

    # Whether what is left of this hook on a copy refuses training; one of a module's two hooks is enough.
    refuses = True

    def __init__(self, name: str) -> None:
        """Args: the name of the module."""
        self.name = name

    def __deepcopy__(self, memo: dict[int, Any]) -> OrphanHook:
        """See the class."""
        return OrphanHook(self.name, self.refuses)

    def __reduce__(self) -> Any:
        """See the class."""
        return (OrphanHook, (self.name, self.refuses))


class OrphanHook(Hook):
    """What is left of a hook on a copy of an attached model: it refuses training, and lets evaluation pass."""

    def __init__(self, name: str, refuses: bool) -> None:
        """Args: the name of the module, and whether this hook is the one that refuses."""
        super().__init__(name)
        self.refuses = refuses

    @eager
    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Raises NotAttachedError in training mode with gradients enabled."""
        if self.refuses and module.training and torch.is_grad_enabled():
            raise NotAttachedError(
                f"Module {self.name!r} belongs to a copy of a model that is attached to an STLLRLearner. Training the "
                "copy would use other gradients. Attach a learner to the copy, or call "
                "stllr_plugin.remove_hooks(copy) to train it without."
            )


def remove_hooks(model: nn.Module) -> int:
    """Removes what copying an attached model left behind, so that the copy trains with ordinary gradients.

    Args:
        model: A deep copy (or unpickled copy) of a model that was attached to a learner. An attached model itself is
            refused: use ``learner.detach()``.

    Returns:
        Number of hooks removed.

    Raises:
        NotAttachedError: If the model is attached to a learner.
    """
    removed = 0
    for name, module in model.named_modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, OrphanHook):
                    del hooks[key]
                    for flags in (
                        module._forward_pre_hooks_with_kwargs,
                        module._forward_hooks_with_kwargs,
                        module._forward_hooks_always_called,
                    ):
                        flags.pop(key, None)
                    removed += 1
                elif isinstance(hook, Hook):
                    raise NotAttachedError(f"Module {name!r} is attached to an STLLRLearner; use learner.detach().")
    return removed


def _refuse_recomputation(name: str) -> None:
    # A forward hook that runs inside a backward pass means activation checkpointing: traces would advance twice.
    if torch._C._current_graph_task_id() != -1:
        raise CheckpointingError(
            f"Module {name!r} runs again inside the backward pass (activation checkpointing). That would advance the "
            "traces twice. Remove the checkpointing: with S-TLLR memory does not grow with the number of time steps, "
            "so it saves nothing."
        )


class SynapseSite:
    """A synapse of the attached model: one weight, and its calls.

    Attributes:
        name: Module name (of a neuron's own weight: ``"<neuron>.<weight name>"``).
        learner: The learner.
        rule: Rule chosen for this synapse by name, or None to use the rule of the neuron that it feeds.
    """

    def __init__(self, learner: STLLRLearner, name: str, rule: STLLRRule | None) -> None:
        """See the class."""
        self.learner = learner
        self.name = name
        self.rule = rule

    def tag(self, x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """Marks the output of one call."""
        learner = self.learner
        call = SynapseCall(self, x.detach(), weight, learner.next_order(), output.shape, learner.supervision.clock)
        return Tag.apply(call, output, weight)  # type: ignore[no-any-return]

    def weight_gradient(self, call: SynapseCall, x: Tensor, g: Tensor) -> Tensor:
        """Gradient of the weight for an input (or its trace) and an output gradient, computed in at least float32."""
        weight = call.weight
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        return self._weight_gradient(x.to(dtype), g.to(dtype), weight.shape).to(weight.dtype)

    def _weight_gradient(self, x: Tensor, g: Tensor, weight_shape: torch.Size) -> Tensor:
        raise NotImplementedError


class OwnWeightSite(SynapseSite):
    """A weight that a neuron module holds itself and uses through ``linear`` (Norse's recurrent cells)."""

    def _weight_gradient(self, x: Tensor, g: Tensor, weight_shape: torch.Size) -> Tensor:
        return linear_weight_gradient(x, g)


class ModuleSite(SynapseSite):
    """A synapse that is a module: Linear, a convolution, or a registered type."""

    def __init__(
        self, learner: STLLRLearner, name: str, module: nn.Module, synapse: Synapse, rule: STLLRRule | None
    ) -> None:
        """See the class."""
        super().__init__(learner, name, rule)
        self.module = module
        self.synapse = synapse
        self._open: list[tuple[Tensor, Tensor, list[nn.Parameter]] | None] = []

    def attach(self) -> list[Any]:
        """Registers the hooks; returns their handles."""
        return [
            self.module.register_forward_pre_hook(_BeforeSynapse(self), with_kwargs=True),
            self.module.register_forward_hook(_AfterSynapse(self), always_call=True),
        ]

    def _weight_gradient(self, x: Tensor, g: Tensor, weight_shape: torch.Size) -> Tensor:
        return self.synapse.weight_gradient(self.module, x, g, weight_shape)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the weight out of the graph for the call that follows."""
        parameters = self.synapse.trainable(self.module) if self.learner.is_recording(self.module) else []
        if not parameters:
            self._open.append(None)
            return
        _refuse_recomputation(self.name)
        x = args[0] if args else kwargs[self.synapse.input_name]
        # A parametrized weight is computed here within the graph of its originals, which the gradient then flows on to.
        weight = getattr(self.module, self.synapse.weight_name)
        for parameter in parameters:
            parameter.requires_grad_(False)
        self._open.append((x, weight, parameters))

    def after(self, output: Any) -> Tensor | None:
        """Gives the weight back and marks the output; also runs when the forward pass raised."""
        opened = self._open.pop() if self._open else None
        if opened is None:
            return None
        x, weight, parameters = opened
        for parameter in parameters:
            parameter.requires_grad_(True)
        return self.tag(x, output, weight) if isinstance(output, Tensor) else None


class _BeforeSynapse(Hook):
    def __init__(self, site: ModuleSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.site.before(args, kwargs)


class _AfterSynapse(Hook):
    refuses = False

    def __init__(self, site: ModuleSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return self.site.after(output)


class _OwnWeights(TorchFunctionMode):
    """While a neuron runs: intercepts its ``linear`` calls on its own weights and tags their outputs."""

    def __init__(self, site: NeuronSite) -> None:
        super().__init__()
        self.site = site

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and len(args) >= 2:
            for own in self.site.own_weights:
                weight = getattr(self.site.module, own.name.rpartition(".")[2])
                if args[1] is weight:
                    output = func(args[0], weight.detach(), *args[2:], **(kwargs or {}))
                    if weight.requires_grad:
                        output = own.tag(args[0], output, weight)
                    self.site.installation.tap.currents.append(output)
                    return output
        return func(*args, **(kwargs or {}))


@dataclass(slots=True)
class _OpenStep:
    """What the hook before a neuron's forward leaves for the one after it."""

    new_sequence: bool
    incoming: Tensor | None
    mode: _OwnWeights | None


class NeuronSite:
    """A neuron of the attached model: reads each step, advances the traces, and grafts the rule onto the outputs.

    Attributes:
        name: Module name.
        module: The neuron.
        adapter: What is known about its kind.
        rule: The neuron's rule: its own by name, else the learner's.
        own_weights: Sites of weights that the module holds itself.
        sequences: Traces by the set of synapses that feed the neuron (more than one where a module serves several
            layers).
    """

    def __init__(
        self,
        learner: STLLRLearner,
        name: str,
        module: nn.Module,
        adapter: NeuronAdapter,
        rule: STLLRRule,
        own_weights: list[OwnWeightSite],
    ) -> None:
        """See the class."""
        self.learner = learner
        self.name = name
        self.module = module
        self.adapter = adapter
        self.rule = rule
        self.own_weights = own_weights
        self.sequences: dict[tuple[tuple[int, int], ...], NeuronTraces] = {}
        self.installation: Installation = Installation(None)  # type: ignore[arg-type]
        self._open: list[_OpenStep | None] = []

    def attach(self) -> list[Any]:
        """Installs the tap and registers the hooks; returns their handles."""
        self.installation = self.adapter.install(self.module)
        return [
            self.module.register_forward_pre_hook(_BeforeNeuron(self), with_kwargs=True),
            self.module.register_forward_hook(_AfterNeuron(self), always_call=True),
        ]

    def detach(self) -> None:
        """Takes the tap out and cuts states that the module keeps off the graph."""
        self.installation.uninstall()
        self.installation.tap.clear()
        for name in self.adapter.state_buffers(self.module):
            buffer = self.module._buffers.get(name)
            if buffer is not None and buffer.requires_grad:
                self.module._buffers[name] = buffer.detach()

    # -- around one call
    # ------------------------------------------------------------------------------------------------

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts the incoming states off the graph of the past and opens the tap."""
        if not self.learner.is_recording(self.module):
            self._open.append(None)
            return None
        _refuse_recomputation(self.name)
        if args and isinstance(args[0], Tensor) and args[0].is_sparse:
            raise StateError(f"Neuron {self.name!r} received a sparse tensor; pass x.to_dense().")
        self._check_buffers_untouched()
        args, kwargs, membrane = self.adapter.detach_states(self.module, args, kwargs)
        # New states that are all zero begin a sequence. Reading values waits for the device, so it is done only where
        # the state is not the one that the last step returned.
        known = any(traces.last_membrane is not None for traces in self.sequences.values())
        returned = any(traces.returned(membrane) for traces in self.sequences.values())
        fresh = membrane is None or (known and not returned and not bool(membrane.any()))
        mode = None
        if self.own_weights:
            mode = _OwnWeights(self)
            mode.__enter__()  # type: ignore[no-untyped-call]
        self._open.append(_OpenStep(fresh, membrane, mode))
        self.installation.tap.clear()
        self.installation.tap.open = True
        return args, kwargs

    def after(self, output: Any) -> Any:
        """Advances the traces and grafts the rule onto spikes and states; also runs when the forward pass raised."""
        opened = self._open.pop() if self._open else None
        if opened is None:
            return None
        tap = self.installation.tap
        tap.open = False
        if opened.mode is not None:
            opened.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            if output is None:
                return None
            step = self.adapter.read_step(self.module, tap, output)
            if step.membrane is None or (self.adapter.spiking and step.threshold_distance is None):
                raise StateError(
                    f"Neuron {self.name!r} ({type(self.module).__name__}) ran without deciding about spikes where the "
                    "learner looks (does a subclass bypass `fire` or `activation`?)."
                )
            return self._advance(step, output, opened)
        finally:
            tap.clear()

    def _advance(self, step: NeuronStep, output: Any, opened: _OpenStep) -> Any:
        learner, supervision = self.learner, self.learner.supervision
        membrane = step.membrane
        assert membrane is not None
        calls = find_calls(membrane.grad_fn, membrane.shape) if membrane.grad_fn is not None else []
        groups = _group(calls)
        traces = self.sequences.setdefault(tuple(groups), NeuronTraces())
        self._follow_sequence(traces, opened)
        index = traces.steps
        if supervision.num_steps is not None and index >= supervision.num_steps:
            raise StateError(
                f"Neuron {self.name!r} runs step {index + 1} of a sequence announced with "
                f"num_steps={supervision.num_steps}. Call learner.reset() before a new sequence, or announce its "
                "length with learner.reset(num_steps=...)."
            )
        traces.steps = index + 1
        supervision.clock = index
        with_graph = supervision.needs_graph(index)

        inputs = []
        for key, members in groups.items():
            call = members[0][1]
            edge = traces.edges.get(key)
            if edge is None:
                edge = traces.edges[key] = EdgeTraces(learner.edge_name(call.site.name, self.name, key[1]))
            rule = call.site.rule or self.rule
            for _, member, _ in members:
                member.consumed = True
            trace = edge.advance(call.x, rule.lambda_pre)
            inputs.append(SynapticInput(call, [(node, identity) for node, _, identity in members], trace, rule))

        posts, psi_carries = self._advance_posts(step, traces, inputs, with_graph)
        if not with_graph:
            result = self.adapter.replace(self.module, output, torch.Tensor.detach)
        else:
            record = StepRecord(
                index, supervision, learner, _edge(membrane) if calls else None, [], inputs, posts, psi_carries
            )
            result = self._graft(record, step, output)
        traces.remember(self._returned_membrane(result))
        return result

    def _follow_sequence(self, traces: NeuronTraces, opened: _OpenStep) -> None:
        """Starts the traces afresh where a new sequence is evident; refuses a state that outlived a reset by step()."""
        same = traces.returned(opened.incoming)
        if traces.ended_by_step:
            traces.ended_by_step = False
            if same:
                raise StateError(
                    f"Neuron {self.name!r} continues from the state before optimizer.step(), but step() ended the "
                    "sequence and reset the traces. If you update within a sequence, build the learner with "
                    "reset_after_step=False and call learner.reset() where a sequence begins."
                )
        if opened.new_sequence and not same:
            traces.restart()

    def _advance_posts(
        self, step: NeuronStep, traces: NeuronTraces, inputs: list[SynapticInput], with_graph: bool
    ) -> tuple[dict[STLLRRule, PostFactor], Tensor | None]:
        """Computes psi(v[t]) and moves the postsynaptic traces on, once per distinct psi and decay."""
        if step.threshold_distance is None:
            return {}, None
        v = step.threshold_distance.detach()
        values: dict[Psi | None, Tensor] = {}

        def psi_of(rule: STLLRRule) -> Tensor:
            psi = resolve_psi(rule.psi)
            if psi not in values:
                values[psi] = self._psi(psi, v)
            return values[psi]

        posts: dict[STLLRRule, PostFactor] = {}
        before: dict[tuple[Psi | None, float], Tensor | None] = {}
        for rule in dict.fromkeys(synaptic.rule for synaptic in inputs):
            previous = None
            if rule.alpha_post != 0.0:
                key = (resolve_psi(rule.psi), rule.lambda_post)
                if key not in before:
                    before[key] = traces.posts.setdefault(key, PostTrace(*key)).advance(psi_of(rule))
                previous = before[key]
            if with_graph:
                posts[rule] = PostFactor(psi_of(rule), previous)
        carries = psi_of(self.rule) if with_graph and self.rule.propagate == "psi" else None
        return posts, carries

    def _psi(self, psi: Psi | None, v: Tensor) -> Tensor:
        if psi is None:
            return self.adapter.surrogate_derivative(self.module, v)
        with torch.no_grad():
            value = psi(v)
        if not isinstance(value, Tensor) or value.shape != v.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StateError(
                f"Neuron {self.name!r}: psi returned {found} for v of shape {tuple(v.shape)}; it must map a tensor "
                "element by element."
            )
        return value.detach()

    def _graft(self, record: StepRecord, step: NeuronStep, output: Any) -> Any:
        """Replaces spikes and states in the output (and in the module's buffers) by their grafted versions."""
        weights = [synaptic.call.weight for synaptic in record.inputs]
        new: dict[int, Tensor] = {}
        spikes = step.spikes
        if spikes is not None:
            if record.psi_carries is not None:
                v = step.threshold_distance
                grafted = SpikeGraft.apply(record, spikes.detach(), v, *weights)
            else:
                grafted = SpikeGraft.apply(record, spikes, None, *weights)
            new[id(spikes)] = self.learner.signal.hidden(self, grafted)

        states: dict[int, Tensor] = {}

        def collect(tensor: Tensor) -> Tensor:
            if tensor is not spikes and tensor.requires_grad and tensor.grad_fn is not None:
                states.setdefault(id(tensor), tensor)
            return tensor

        self.adapter.replace(self.module, output, collect)
        if states:
            kept = list(states.values())
            record.states = [
                record.membrane if record.membrane is not None and tensor is step.membrane else _edge(tensor)
                for tensor in kept
            ]
            for before, after in zip(kept, StateGraft.apply(record, len(kept), *kept, *weights), strict=True):
                new[id(before)] = after
        return self.adapter.replace(self.module, output, lambda tensor: new.get(id(tensor), tensor))

    # -- states that the module keeps
    # -----------------------------------------------------------------------------------

    def _returned_membrane(self, result: Any) -> Tensor | None:
        names = self.adapter.state_buffers(self.module)
        if names:
            return self.module._buffers["mem"]
        state = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        return getattr(state, "v", None)

    def _check_buffers_untouched(self) -> None:
        """Notices that somebody wrote into a hidden state between two steps, as DDP's buffer broadcast does."""
        if not self.learner.distributed or not self.adapter.state_buffers(self.module):
            return
        membrane = self.module._buffers.get("mem")
        for traces in self.sequences.values():
            last = traces.last_membrane
            if (
                membrane is not None
                and last is not None
                and membrane.data_ptr() == last[0].data_ptr()
                and membrane._version != last[1]
            ):
                raise StateError(
                    f"The hidden state of neuron {self.name!r} was overwritten between two time steps. "
                    "DistributedDataParallel copies the buffers of rank 0, membranes included, to all ranks at each "
                    "forward: attach the learner before wrapping the model, or wrap it with broadcast_buffers=False."
                )

    def reset(self, mask: Tensor | None, ended_by_step: bool) -> None:
        """Resets traces and the states that the module keeps; with a mask [B], those samples only."""
        for traces in self.sequences.values():
            if mask is None:
                traces.restart()
                traces.ended_by_step = ended_by_step and not self._keeps_state()
            else:
                traces.clear_samples(mask)
        self.adapter.reset_states(self.module, mask)
        if mask is not None or self._keeps_state():
            for traces in self.sequences.values():
                traces.last_membrane = None

    def _keeps_state(self) -> bool:
        return bool(getattr(self.module, "init_hidden", False))


class _BeforeNeuron(Hook):
    def __init__(self, site: NeuronSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.site.before(args, kwargs)


class _AfterNeuron(Hook):
    refuses = False

    def __init__(self, site: NeuronSite) -> None:
        super().__init__(site.name)
        self.site = site

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.site.after(output)


class LiftGuard(Hook):
    """Before a ``norse.torch.Lift``: refuses several time steps in one call."""

    def __init__(self, learner: STLLRLearner, name: str) -> None:
        """See the class."""
        super().__init__(name)
        self.learner = learner

    @eager
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raises SequenceInputError for T > 1 in training mode."""
        x = args[0][0] if isinstance(args[0], tuple) else args[0]
        if self.learner.is_recording(module) and x.shape[0] > 1:
            raise SequenceInputError(
                f"Lift {self.name!r} received {x.shape[0]} time steps in one call. An online rule needs one: feed "
                "slices x[t : t + 1] and carry the state."
            )


def _group(
    calls: list[tuple[Any, SynapseCall, bool]],
) -> dict[tuple[int, int], list[tuple[Any, SynapseCall, bool]]]:
    """Sorts the calls of one step by synapse; calls of one synapse on the same input share a trace and count once."""
    groups: dict[tuple[int, int], list[tuple[Any, SynapseCall, bool]]] = {}
    seen: dict[int, list[SynapseCall]] = {}
    for node, call, identity in calls:
        firsts = seen.setdefault(id(call.site), [])
        number = next((n for n, first in enumerate(firsts) if _same_tensor(first.x, call.x)), None)
        if number is None:
            number = len(firsts)
            firsts.append(call)
        groups.setdefault((id(call.site), number), []).append((node, call, identity))
    return groups


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _edge(tensor: Tensor) -> GradientEdge:
    return get_gradient_edge(tensor)
