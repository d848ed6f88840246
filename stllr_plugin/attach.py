"""The check before attaching: looks at the whole model, collects every problem, and changes nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from stllr_plugin.activations import resolve_psi
from stllr_plugin.errors import AttachmentError, RuleError, STLLRWarning
from stllr_plugin.hooks import OrphanHook
from stllr_plugin.neurons import NeuronAdapter, StateKeeper, find_adapter, find_keeper, find_refusal
from stllr_plugin.neurons.surrogates import other_surrogate, surrogate_name, surrogate_problem
from stllr_plugin.registry import SIGNALS
from stllr_plugin.rule import STLLRRule, resolve_rule
from stllr_plugin.synapses import Synapse, find_synapse

# Layers of torch with weights in a form that the rule does not have.
_REFUSED_LAYERS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RNNBase, "its recurrence runs inside one call; use a recurrent spiking neuron"),
    (nn.RNNCellBase, "its units are not spiking neurons; use a recurrent spiking neuron"),
    (nn.MultiheadAttention, "its weights multiply each other's outputs; use nn.Linear projections"),
    (nn.Bilinear, "its output is not linear in one input; use nn.Linear"),
    (nn.Embedding, "its input is an index; use nn.Linear on a one-hot input"),
    (nn.EmbeddingBag, "its input is an index; use nn.Linear on a one-hot input"),
)


@dataclass
class Plan:
    """What attaching will do.

    Attributes:
        synapses: (name, module, type) of each synapse.
        neurons: (name, module, adapter) of each neuron.
        lifts: (name, module) of containers that loop over time.
        recurrences: (name, module) of containers that feed their output back.
        rules: Rule chosen by name pattern, by synapse or neuron name.
        rule: The rule of everything else.
        learning_signal: The learning signal.
        output: Name and module whose output the loss sees; for signals that reach hidden layers directly.
        output_named: Whether the user has named it.
        other_parameters: Names of trainable parameters that are neither synaptic weights nor biases of synapses, nor in
            a module that is left alone.
        excluded: (name, module) of modules left alone on request.
        keepers: (name, module, kind) of modules that keep a state and are no neurons.
        exclude: The patterns of what is left alone.
    """

    rule: STLLRRule
    synapses: list[tuple[str, nn.Module, Synapse]] = field(default_factory=list)
    neurons: list[tuple[str, nn.Module, NeuronAdapter]] = field(default_factory=list)
    lifts: list[tuple[str, nn.Module]] = field(default_factory=list)
    recurrences: list[tuple[str, nn.Module]] = field(default_factory=list)
    rules: dict[str, STLLRRule] = field(default_factory=dict)
    learning_signal: str = "bp"
    output: tuple[str, nn.Module] | None = None
    output_named: bool = False
    other_parameters: list[str] = field(default_factory=list)
    excluded: list[tuple[str, nn.Module]] = field(default_factory=list)
    keepers: list[tuple[str, nn.Module, StateKeeper]] = field(default_factory=list)
    exclude: tuple[str, ...] = ()

    def parts(self) -> dict[str, nn.Module]:
        """All modules that attaching treats in some way, by name."""
        lists: tuple[Any, ...] = (self.synapses, self.neurons, self.lifts, self.recurrences, self.excluded)
        return {name: module for found in (*lists, self.keepers) for name, module, *_ in found}


def plan_attachment(
    model: nn.Module,
    rule: str | STLLRRule,
    layer_rules: dict[str, str | STLLRRule],
    learning_signal: str | None,
    output: str | None,
    exclude: tuple[str, ...],
) -> Plan:
    """Checks everything and returns the plan.

    Raises:
        AttachmentError: With one text per problem, if there is any.
        RuleError: If the rule itself is not valid.
    """
    plan = Plan(resolve_rule(rule), exclude=exclude)
    if not isinstance(model, nn.Module):
        raise AttachmentError([f"model is a {type(model).__name__}, not a torch.nn.Module."])
    problems = _wrapper_problems(model)
    _discover(model, exclude, plan, problems)
    _check_attached(model, problems)
    _assign_rules(plan, layer_rules, problems)
    _check_rules(plan, problems)
    plan.learning_signal = learning_signal or plan.rule.learning_signal or "bp"
    _check_signals(plan, layer_rules, problems)
    _find_output(model, plan, plan.learning_signal, output, problems)
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name, _ in model.named_modules()):
            problems.append(f"exclude={pattern!r} matches no module of the model; remove or correct the pattern.")
    if problems:
        raise AttachmentError(problems)
    _list_other_parameters(model, plan)
    return plan


def changes_since(plan: Plan, model: nn.Module) -> list[str]:
    """What attaching would treat in another way now, since modules were replaced, added or taken away."""
    now = Plan(plan.rule, exclude=plan.exclude)
    problems: list[str] = []
    _discover(model, plan.exclude, now, problems)
    before, after = plan.parts(), now.parts()
    changes = []
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        if one is None:
            changes.append(f"{name!r} ({type(other).__name__}) is new")
        elif other is None:
            changes.append(f"{name!r} ({type(one).__name__}) is gone")
        elif one is not other:
            changes.append(f"{name!r} ({type(one).__name__}) is another {type(other).__name__}")
    kinds = [{name: type(kind) for name, _, kind in (*one.synapses, *one.neurons)} for one in (plan, now)]
    changes += [
        f"{name!r} became another kind of layer"
        for name in kinds[0]
        if kinds[0][name] != kinds[1].get(name, kinds[0][name])
    ]
    return changes or problems


def _wrapper_problems(model: nn.Module) -> list[str]:
    """Wrappers around the model that hide it or copy it."""
    problems: list[str] = []
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        kind = type(module).__name__
        if isinstance(module, nn.DataParallel):
            problems.append(
                f"{where} is a DataParallel wrapper: its replicas share one learner and lose their states. Pass the "
                "bare model and use DistributedDataParallel."
            )
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel"):
            problems.append(
                f"{where} is a {kind} wrapper. Attach to the bare model first, then wrap it: "
                "STLLRLearner(model.module, ...)."
            )
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            problems.append(
                f"{where} is compiled already. Attach to the bare model first, then call torch.compile(model)."
            )
        if "ScriptModule" in kind:
            problems.append(
                f"{where} is a TorchScript module, which has no Python hooks. Attach to the original nn.Module."
            )
    return problems


def _discover(model: nn.Module, exclude: tuple[str, ...], plan: Plan, problems: list[str]) -> None:
    covered: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in covered:
            continue
        where = f"{name!r} ({type(module).__name__})"
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            plan.excluded.append((name, module))
            covered.update(id(child) for child in module.modules())
            continue
        adapter = find_adapter(module)
        if adapter is not None:
            problems.extend(f"Neuron {where}: {problem}." for problem in adapter.problems(module))
            plan.neurons.append((name, module, adapter))
            continue
        refusal = find_refusal(module)
        if refusal is not None:
            problems.append(f"{_noun(module)} {where}: {refusal}. Or leave it out with exclude=[{name!r}].")
            covered.update(id(child) for child in module.modules())
            continue
        refused_layer = next((reason for kind, reason in _REFUSED_LAYERS if isinstance(module, kind)), None)
        if refused_layer is not None:
            problems.append(f"Layer {where}: {refused_layer}. Or leave it out with exclude=[{name!r}].")
            covered.update(id(child) for child in module.modules())
            continue
        keeper = find_keeper(module)
        if keeper is not None:
            plan.keepers.append((name, module, keeper))
        synapse = find_synapse(module)
        if synapse is not None:
            problem = synapse.problem(module)
            if problem is not None:
                problems.append(f"Synapse {where}: {problem}.")
            plan.synapses.append((name, module, synapse))
        elif type(module).__module__.startswith("norse."):
            if type(module).__name__ == "Lift":
                plan.lifts.append((name, module))
            elif type(module).__name__ == "RecurrentSequential":
                plan.recurrences.append((name, module))
    if not plan.neurons and not problems:
        problems.append(
            f"no spiking neuron of snnTorch, Norse or SpikingJelly was found in this {type(model).__name__}. The "
            "learner needs at least one, for example snntorch.Leaky or norse.torch.LIFCell; CONTRIBUTING.md shows how "
            "to add an adapter for others."
        )


def _noun(module: nn.Module) -> str:
    """What to call a module that is refused: some libraries have layers of their own with the classes of torch's."""
    kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
    is_layer = any(
        kind.__module__.startswith("torch.nn.modules.") or kind.__module__.endswith(".layer") for kind in kinds
    )
    return "Layer" if is_layer else "Neuron"


def _check_attached(model: nn.Module, problems: list[str]) -> None:
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not getattr(hook, "name", None):
                continue  # a hook of others, or ours on the model as a whole: those on its parts say more
            if isinstance(hook, OrphanHook):
                problems.append(
                    f"module {name!r} is part of a copy of an attached model; call stllr_plugin.remove_hooks(model) "
                    "first."
                )
                return


def _assign_rules(plan: Plan, layer_rules: dict[str, str | STLLRRule], problems: list[str]) -> None:
    names = [name for name, *_ in plan.synapses] + [name for name, *_ in plan.neurons]
    names += [f"{name}.{weight}" for name, _, adapter in plan.neurons for weight in adapter.weight_names]
    for pattern, wanted in layer_rules.items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            problems.append(f"layer_rules pattern {pattern!r} matches no synapse and no neuron; the model has {names}.")
        try:
            rule = resolve_rule(wanted)
        except RuleError as error:
            problems.append(f"layer_rules[{pattern!r}]: {error}")
            continue
        for name in matched:
            plan.rules.setdefault(name, rule)


def _check_rules(plan: Plan, problems: list[str]) -> None:
    """Where a rule relies on a neuron's own surrogate, that surrogate must serve."""
    # Probed where the model is; a model on "meta" has no numbers to probe with.
    weights = (p.device for _, module, _ in plan.synapses for p in module.parameters())
    device = next((device for device in weights if device.type != "meta"), None)
    for name, module, adapter in plan.neurons:
        if adapter.problems(module):
            continue
        own = [one for key, one in plan.rules.items() if key.startswith(f"{name}.")]  # of the neuron's own weights
        rule = plan.rules.get(name, plan.rule)
        if "leak" in [one.lambda_pre for one in (rule, *own)] and adapter.leak(module) is None:
            problems.append(
                f"Neuron {name!r} ({type(module).__name__}): the rule has lambda_pre='leak', but this layer has no "
                f"single leak. Pass a number, for example with layer_rules={{{name!r}: ...}}."
            )
        if not adapter.spiking:
            continue
        no_psi = any(resolve_psi(one.psi) is None for one in (rule, *own))
        if not no_psi and rule.propagate == "psi":
            continue
        spike_function = adapter.spike_function(module)
        problem = surrogate_problem(spike_function, device)
        if problem is not None:
            what = "psi=None" if no_psi else 'propagate="surrogate"'
            problems.append(
                f"Neuron {name!r} ({type(module).__name__}): {what} uses the neuron's own surrogate, "
                f"{surrogate_name(module, spike_function)}, which cannot serve: {problem}. Give the neuron another, "
                f'e.g. {other_surrogate(module)}, or the rule a psi of its own: psi="triangle" with propagate="psi".'
            )


def _check_signals(plan: Plan, layer_rules: dict[str, str | STLLRRule], problems: list[str]) -> None:
    """A network has one learning signal; a layer's rule may not ask for another."""
    for pattern, wanted in layer_rules.items():
        try:
            signal = resolve_rule(wanted).learning_signal
        except RuleError:
            continue  # reported already
        if signal is not None and signal != plan.learning_signal:
            problems.append(
                f"layer_rules[{pattern!r}] comes with learning_signal={signal!r}, but the network has "
                f"{plan.learning_signal!r}, and there is one for all layers. Choose it with learning_signal=, or pass "
                "the layer's rule with learning_signal=None."
            )


def _find_output(model: nn.Module, plan: Plan, signal: str, output: str | None, problems: list[str]) -> None:
    if not isinstance(signal, str) or signal not in SIGNALS:
        problems.append(f"learning_signal={signal!r} is not known; use one of {', '.join(SIGNALS)}.")
        return
    modules = dict(model.named_modules())
    if output is not None:
        if not isinstance(output, str) or output not in modules:
            problems.append(
                f"output={output!r} is no module of the model; it has {[name for name in modules if name]}."
            )
            return
        plan.output, plan.output_named = (output, modules[output]), True
        return
    # By default the last synapse or neuron in the order of registration is what the loss sees.
    found = [(name, module) for name, module, _ in plan.synapses] + [(name, module) for name, module, _ in plan.neurons]
    inside = {id(child) for _, neuron, _ in plan.neurons for child in neuron.modules() if child is not neuron}
    ordered = [name for name in modules if any(name == known for known, _ in found) and id(modules[name]) not in inside]
    if ordered:
        plan.output = (ordered[-1], modules[ordered[-1]])
        if SIGNALS[signal].direct and not hidden_neurons(plan):
            problems.append(
                f"learning_signal={signal!r} is for hidden neurons, but besides "
                f"{ordered[-1]!r}, taken for the output because it is registered last, there is none. Name the module "
                "that the loss sees with output=."
            )


def hidden_neurons(plan: Plan) -> list[str]:
    """Names of the spiking neurons outside of the output module."""
    assert plan.output is not None
    inside = {id(child) for child in plan.output[1].modules()}
    return [name for name, module, adapter in plan.neurons if adapter.spiking and id(module) not in inside]


def _list_other_parameters(model: nn.Module, plan: Plan) -> None:
    known: set[int] = set()
    for _, module, synapse in plan.synapses:
        known.update(id(parameter) for parameter in synapse.trainable(module))
        bias = module._parameters.get("bias")
        if bias is not None:
            known.add(id(bias))
        if parametrize.is_parametrized(module):
            known.update(id(parameter) for parameter in module.parameters())
    for _, module, adapter in plan.neurons:
        for weight in adapter.weight_names:
            known.add(id(getattr(module, weight)))
            if parametrize.is_parametrized(module, weight):
                originals: nn.Module = module.parametrizations[weight]  # type: ignore[index, assignment]
                known.update(id(parameter) for parameter in originals.parameters())
            known.add(id(module._parameters.get(f"{weight}_orig")))  # torch's pruning
    plan.other_parameters = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in known and not _is_part(name, plan.excluded)
    ]


def _is_part(name: str, modules: list[tuple[str, nn.Module]]) -> bool:
    return any(not module or name.startswith(f"{module}.") for module, _ in modules)


def warn(message: str) -> None:
    """Issues a warning of the package's own category, pointing at the caller's code."""
    warnings.warn(message, STLLRWarning, stacklevel=3)
