"""What a learner is told, checked before anything is changed: its settings, and the state that it is to load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stllr_plugin.errors import AttachmentError, RuleError, StateError
from stllr_plugin.facade import OptimizerFacade
from stllr_plugin.rule import STLLRRule


def check_settings(
    optimizer: Any,
    counts: Mapping[str, Any],
    switches: Mapping[str, Any],
    product_dtype: Any,
    feedback_seed: Any,
    learning_signal: Any,
) -> None:
    """Checks what is said of optimizer, steps and signal.

    Args:
        optimizer: The optimizer, or None.
        counts: By name, numbers of time steps, each of which may be None.
        switches: By name, what is on or off.
        product_dtype: In which the weights' gradients are multiplied.
        feedback_seed: Seed of the feedback matrices, or None.
        learning_signal: Name of the learning signal, or None.

    Raises:
        RuleError: If a number, a switch, the dtype, the seed or the name is not valid.
        AttachmentError: If the optimizer is none.
    """
    for name, value in counts.items():
        if value is not None:
            check_count(name, value)
    for name, value in switches.items():
        check_switch(name, value)
    if counts["supervise_last"] is not None and counts["supervise_random"] is not None:
        raise RuleError("supervise_last and supervise_random exclude each other; pass one of them.")
    if isinstance(optimizer, OptimizerFacade):
        raise AttachmentError(["optimizer is an STLLRLearner itself; pass the optimizer that it wraps."])
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise AttachmentError([f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer (or None)."])
    if product_dtype not in (None, torch.bfloat16):
        raise RuleError(
            f"product_dtype={product_dtype!r}: expected torch.bfloat16, or None for at least float32 (in float16 "
            "small gradients vanish)."
        )
    if feedback_seed is not None and (isinstance(feedback_seed, bool) or not isinstance(feedback_seed, int)):
        raise RuleError(f"feedback_seed={feedback_seed!r}: expected an integer, or None for torch.initial_seed().")
    if learning_signal is not None and (not isinstance(learning_signal, str) or not learning_signal):
        raise RuleError(f"learning_signal={learning_signal!r}: expected a name, such as 'bp' or 'dfa', or None.")


def check_count(name: str, value: Any) -> None:
    """Raises RuleError if a value is no positive number of time steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RuleError(f"{name}={value!r}: expected a positive number of time steps, or None.")


def check_switch(name: str, value: Any) -> None:
    """Raises RuleError if a value is neither True nor False: the text "no" would count as yes."""
    if not isinstance(value, bool):
        raise RuleError(f"{name}={value!r}: expected True or False.")


def checked_patterns(exclude: Any) -> tuple[str, ...]:
    """The patterns of module names to leave alone.

    Raises:
        RuleError: If one is no text.
    """
    if isinstance(exclude, str):
        return (exclude,)
    found = tuple(exclude) if isinstance(exclude, Iterable) and not isinstance(exclude, (bytes, nn.Module)) else None
    wrong = exclude if found is None else next((pattern for pattern in found if not isinstance(pattern, str)), None)
    if found is None or not all(isinstance(pattern, str) for pattern in found):
        hint = " The name of a module is what model.named_modules() says." if isinstance(wrong, nn.Module) else ""
        raise RuleError(
            f"exclude takes a pattern of module names, or several: exclude='encoder.*' or exclude=['fc1', 'norm*']; "
            f"found {_shown(wrong)}.{hint}"
        )
    return found


def checked_layer_rules(layer_rules: Any) -> dict[str, str | STLLRRule]:
    """Rules by pattern of module names.

    Raises:
        RuleError: If it is no dictionary, or a key is no text.
    """
    if layer_rules is None:
        return {}
    if not isinstance(layer_rules, Mapping):
        raise RuleError(
            "layer_rules takes a dictionary from patterns of module names to rules, such as {'fc1': 'shd'}; found "
            f"{_shown(layer_rules)}."
        )
    wrong = next((key for key in layer_rules if not isinstance(key, str)), "")
    if not isinstance(wrong, str):
        raise RuleError(f"layer_rules: a key must be a pattern of module names, a text; found {_shown(wrong)}.")
    return dict(layer_rules)


def checked_mask(mask: Any) -> Tensor:
    """A mask of samples, bool [B].

    Raises:
        StateError: If it is none.
    """
    try:
        found = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"mask must be a bool tensor [B]; found {_shown(mask)}.") from error
    if found.dim() != 1 or found.dtype != torch.bool:
        raise StateError(f"mask must be a bool tensor [B]; found {found.dtype} of shape {tuple(found.shape)}.")
    return found


def split_state(state_dict: Any, key: str, learning_signal: str) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The optimizer's part and the learner's own part of a state that is to be loaded.

    Args:
        state_dict: What the user gave.
        key: Under which the learner's own part is.
        learning_signal: That of the learner.

    Raises:
        RuleError: If it is not the state of an optimizer or of a learner, or that of another learning signal.
    """
    if not isinstance(state_dict, Mapping):
        raise RuleError(f"load_state_dict() takes what state_dict() gave, a dictionary; found {_shown(state_dict)}.")
    state = dict(state_dict)
    own = state.pop(key, None)
    if not isinstance(state.get("state"), Mapping) or not isinstance(state.get("param_groups"), (list, tuple)):
        raise RuleError(
            "load_state_dict() takes what state_dict() of a learner or of an optimizer gave, with 'state' and "
            f"'param_groups'; found a dictionary with {[str(name) for name in state_dict]}. The state of a model is "
            "loaded with model.load_state_dict()."
        )
    if own is None:
        return state, None
    missing = _missing(own, {"learning_signal": str, "rule": Mapping, "layer_rules": Mapping})
    if missing:
        raise RuleError(f"load_state_dict(): {key!r} is not what a learner's state_dict() puts there; {missing}.")
    if own["learning_signal"] != learning_signal:
        raise RuleError(
            f"The checkpoint was made with learning_signal={own['learning_signal']!r}, this learner has "
            f"{learning_signal!r}."
        )
    return state, own


def check_parameters(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Checks that an optimizer updates something of the model.

    Raises:
        AttachmentError: If it does not.
    """
    if optimizer is None:
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {id(parameter) for parameter in model.parameters()}
    if held and not any(id(parameter) in own for parameter in held):
        raise AttachmentError(
            [
                f"the optimizer ({type(optimizer).__name__}) holds {len(held)} parameters, none of which is of this "
                f"model ({type(model).__name__}), so that step() would update nothing of it. Build the optimizer from "
                "model.parameters() after the model was made, copied or loaded for the last time; or pass no "
                "optimizer, and call your own one's step()."
            ]
        )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state.

    Raises:
        RuleError: If the optimizer cannot take it.
    """
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RuleError(
            f"load_state_dict(): the state does not fit this {type(optimizer).__name__} ({error}). Build the optimizer "
            "with the same parameters and groups as the one whose state was saved."
        ) from error


def _missing(own: Any, wanted: Mapping[str, type]) -> str:
    if not isinstance(own, Mapping):
        return f"found {_shown(own)}"
    wrong = [name for name, kind in wanted.items() if not isinstance(own.get(name), kind)]
    return f"{', '.join(map(repr, wrong))} is not there, or of another kind" if wrong else ""


def _shown(value: Any) -> str:
    """A value for messages: what it is, and what it holds if that is short."""
    text = repr(value)
    kind = type(value).__name__
    return kind if isinstance(value, nn.Module) or len(text) > 60 else f"{text} ({kind})"
