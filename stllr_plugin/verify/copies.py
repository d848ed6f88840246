"""Copies of the user's model, and random state put back: a verification leaves no mark on what it looks at."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin.hooks import remove_hooks
from stllr_plugin.neurons import find_adapter, find_keeper
from stllr_plugin.verify.parametrized import separate
from stllr_plugin.verify.result import VerificationError


def fresh_copy(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy at the start of a sequence: in training mode, without gradients and without a learner's hooks.

    Args:
        model: The user's model, attached or not, also in the middle of a sequence.
        dtype: What floating-point parameters and buffers become; None leaves them.

    Raises:
        VerificationError: If the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors((module.__dict__, module._buffers, module._parameters)):
            if tensor.grad_fn is not None:  # torch refuses to copy those, such as states in mid-sequence
                memo[id(tensor)] = tensor.detach().clone()
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user's own modules hold
        raise VerificationError(
            f"The model ({type(model).__name__}) cannot be copied, and verify() works on copies: copy.deepcopy raises "
            f"{type(error).__name__}: {error}. Keep what cannot be copied outside of the model, or call "
            "learner.reset() before."
        ) from error
    separate(model, twin)
    remove_hooks(twin)
    twin.zero_grad(set_to_none=True)
    if not twin.training:
        twin.train()
    for module in twin.modules():
        if (adapter := find_adapter(module)) is not None:
            adapter.reset_states(module, None)
        elif (keeper := find_keeper(module)) is not None:
            keeper.reset(module, None)
    return twin if dtype is None else twin.to(dtype)


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors in nested containers; not within other objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 6 and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth + 1)
    elif depth < 6 and isinstance(value, (list, tuple, set)) or type(value).__name__ == "deque":
        for item in value:
            yield from _tensors(item, depth + 1)


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Puts all random generators back at the end; yields a function that does so at any time.

    Those of torch on the processor and the model's devices, of Python, and of numpy where it is loaded.
    """
    cpu, python = torch.get_rng_state(), random.getstate()
    devices = {p.device for p in (*model.parameters(), *model.buffers()) if p.device.type != "cpu"}
    others = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]
    numpy: Any = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()

    def put_back() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        for device, state in others:
            torch.get_device_module(device).set_rng_state(state, device)
        if legacy is not None:
            numpy.random.set_state(legacy)

    try:
        yield put_back
    finally:
        put_back()
