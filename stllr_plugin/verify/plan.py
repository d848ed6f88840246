"""Whether the learner that is attached knows the model as it is now."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from stllr_plugin.hooks import Hook
from stllr_plugin.neurons import find_adapter
from stllr_plugin.synapses import find_synapse
from stllr_plugin.verify.result import Row


def layers_without_hooks(model: nn.Module, exclude: tuple[str, ...]) -> list[Row]:
    """Synapses and neurons on which the learner has placed nothing: they came into the model after it had attached.

    Args:
        model: The model that the learner is attached to.
        exclude: Patterns of modules that it leaves alone.
    """
    hidden: set[int] = set()
    rows = []
    for name, module in model.named_modules():
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            hidden.update(id(child) for child in module.modules())
        if id(module) in hidden:
            continue
        kind = find_synapse(module)
        if find_adapter(module) is None and (kind is None or not kind.trainable(module)):
            continue
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not any(isinstance(hook, Hook) for hook in hooks):
            advice = (
                f"this {type(module).__name__} is not known to the learner: it came into the model after the learner "
                "had attached, and follows no rule. Build the learner anew: learner.detach(), then STLLRLearner(...)"
            )
            rows.append(Row("model", name, None, "FAILED", advice))
    return rows
