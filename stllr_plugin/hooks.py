"""What all hooks of the learner share, and what becomes of them on a copy of the model.

A hook does something only while the learner is enabled, the module is in training mode and gradients are enabled;
otherwise the model runs as if nothing were attached. Those of synapses and neurons are in :mod:`stllr_plugin.sites`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
from torch import nn

from stllr_plugin.errors import CheckpointingError, NotAttachedError


def _callback() -> Any:
    """What dynamo makes of the frames that follow; None where nothing that it compiled runs."""
    return _get_callback() if _get_callback is not None else True


# A private function of torch, without which all goes the longer way.
_get_callback = getattr(
    getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None), "get_eval_frame_callback", None
)


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes torch.compile call a function instead of tracing it.

    ``torch.compiler.disable`` does that, but imports the whole compiler at once; this waits until torch itself has.
    """
    disabled: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules or _callback() is None:
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
            # Where a graph has broken just before, dynamo would compile this frame anew for each hook, up to its limit.
            # By its code, since a function that held itself would outlive all that it holds.
            importlib.import_module("torch._dynamo.decorators").skip_code(sys._getframe().f_code)
        return disabled(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # the mark that it leaves
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
        NotAttachedError: If the model is attached to a learner, or is no module.
    """
    if not isinstance(model, nn.Module):
        raise NotAttachedError(f"remove_hooks() takes the model, a torch module; found {type(model).__name__}.")
    removed = 0
    for name, module in model.named_modules():
        _remove_own_methods(module)
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
                elif isinstance(hook, Hook) and hook.name:
                    raise NotAttachedError(
                        f"Module {name!r} is attached to an STLLRLearner; use learner.detach() or "
                        "stllr_plugin.detach(model)."
                    )
    return removed


def _remove_own_methods(module: nn.Module) -> None:
    """Where a method was stood in for, a copy holds its class's own method itself, which says nothing."""
    for name, value in list(module.__dict__.items()):
        function = getattr(value, "__func__", None)
        if function is not None and getattr(value, "__self__", None) is module:
            if getattr(type(module), name, None) is function:
                del module.__dict__[name]


class Attached(Protocol):
    """What is attached to a model, as far as one must know it to take it off."""

    def detach(self) -> None:
        """Takes it off."""

    def flush(self) -> None:
        """Brings in the gradients that wait."""

    def reset_kept_states(self) -> None:
        """Resets the states that the model's neurons keep."""


def attached_to(model: nn.Module) -> list[Attached]:
    """What is attached to a model or to parts of it."""
    found: dict[int, Attached] = {}
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if isinstance(hook, Hook):
                session = getattr(hook, "session", getattr(getattr(hook, "site", None), "session", None))
                owner = getattr(session, "owner", None)
                if owner is not None:
                    found[id(owner)] = owner
    return list(found.values())


def detach(model: nn.Module) -> int:
    """Takes every learner off a model, also where nobody holds the learner any more, as after a cell that ran twice.

    The model is then bit for bit what it was. A copy of an attached model loses what copying left behind.

    Args:
        model: The model, or one that contains it.

    Returns:
        Number of learners that were attached.

    Raises:
        NotAttachedError: If it is no module.
    """
    if not isinstance(model, nn.Module):
        raise NotAttachedError(f"detach() takes the model, a torch module; found {type(model).__name__}.")
    found = attached_to(model)
    for owner in found:
        owner.detach()
    remove_hooks(model)
    return len(found)


def refuse_recomputation(name: str) -> None:
    """Raises CheckpointingError if a forward hook runs inside a backward pass."""
    # A forward hook that runs inside a backward pass means activation checkpointing: traces would advance twice.
    if torch._C._current_graph_task_id() != -1:
        raise CheckpointingError(
            f"Module {name!r} runs again inside the backward pass (activation checkpointing). That would advance the "
            "traces twice. Remove the checkpointing: with S-TLLR memory does not grow with the number of time steps, "
            "so it saves nothing."
        )
