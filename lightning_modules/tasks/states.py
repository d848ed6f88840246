"""Hidden states of spiking networks: find the neurons, reset them, name their buffers.

A network passes here without an attached learner as well (evaluation, plain backpropagation through time), so these
helpers look at nothing but the modules below the one they are given: other networks in the process keep their states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import Tensor, nn

from stllr_plugin.neurons import find_keeper
from stllr_plugin.neurons.base import reset_rows


def reset_states(network: nn.Module, besides: Collection[str] = ()) -> None:
    """Put every neuron below ``network`` back to rest, ready for a new batch of sequences.

    A module that has a method ``reset_states`` is asked to reset itself; a snnTorch neuron is reset through
    ``reset_mem``, a module of SpikingJelly through ``reset`` (its neurons, and whatever else keeps a memory), a dropout
    mask that lasts a sequence through ``reset_mask``. (``snntorch.utils.reset`` is not used: it reaches every neuron of
    the same class in the process and misses nested ones.)

    Args:
        network: Any module. Modules without states are left alone.
        besides: Names of modules that somebody else resets, unless they have a ``reset_states``.
    """
    for name, module in network.named_modules():
        if name in besides and not callable(getattr(module, "reset_states", None)):
            continue
        if _keeps_memories(module):
            module.reset()
            continue
        for method in ("reset_states", "reset_mem", "reset_mask"):
            reset = getattr(module, method, None)
            if callable(reset):
                reset()
                break


def detach_states(network: nn.Module) -> None:
    """Cut every state below ``network`` from its graph and keep its value, as between windows of truncated BPTT.

    A module that has a method ``detach_states`` does it itself; elsewhere states are the buffers that are left out of
    the ``state_dict``, as in snnTorch.

    Args:
        network: Any module. Modules without states are left alone.
    """
    for module in network.modules():
        detach = getattr(module, "detach_states", None)
        if callable(detach):
            detach()
        elif _keeps_memories(module):
            module.detach()  # type: ignore[operator]
        else:
            for name in getattr(module, "_non_persistent_buffers_set", ()):
                state = module._buffers[name]
                if state is not None:
                    module._buffers[name] = state.detach()


def reset_samples(network: nn.Module, mask: Tensor) -> None:
    """Put the states of some samples of a batch back to rest, and leave those of the others.

    States of another batch size are left alone: they start anew with the next batch.

    Args:
        network: Any module. Modules without states are left alone.
        mask: Which samples, [B] bool.

    Raises:
        TypeError: If a module resets its states itself (``reset_states``), but for all samples only.
    """
    for name, module in network.named_modules():
        keeper = find_keeper(module)
        own = getattr(module, "reset_samples", None)
        if keeper is not None:
            keeper.reset(module, mask)
        elif callable(own):
            own(mask)
        elif callable(getattr(module, "reset_states", None)):
            raise TypeError(
                f"Module {name!r} ({type(module).__name__}) keeps a state that it can only reset for the whole batch, "
                "but here single samples begin a new recording. Give it a method reset_samples(mask), mask: [B] bool."
            )
        else:
            for buffer in getattr(module, "_non_persistent_buffers_set", ()):
                state = module._buffers[buffer]
                if state is not None and state.dim() and state.shape[0] == mask.shape[0]:
                    module._buffers[buffer] = reset_rows(state, mask)


def keep_states(network: nn.Module) -> Callable[[], None]:
    """Notes every state below ``network``, to come back to it after something else has run through the network.

    Args:
        network: Any module.

    Returns:
        Puts the states back. A module that looks after its states itself (a method ``reset_states`` and no
        :class:`stllr_plugin.neurons.StateKeeper` that knows it) starts anew instead.
    """
    back: list[Callable[[], Any]] = []
    for module in network.modules():
        keeper = find_keeper(module)
        if keeper is not None:
            back.append(partial(keeper.restore, module, keeper.save(module)))
        elif callable(getattr(module, "reset_states", None)):
            back.append(module.reset_states)  # type: ignore[arg-type]
        else:
            # The very tensors: neurons replace their states, and the learner knows them by their place in memory.
            names = getattr(module, "_non_persistent_buffers_set", ())
            back += [partial(module._buffers.__setitem__, name, module._buffers[name]) for name in names]

    def restore() -> None:
        for step in back:
            step()

    return restore


def hidden_buffer_names(network: nn.Module, prefix: str = "") -> list[str]:
    """Names of the buffers that hold a state of the running sequence.

    snnTorch keeps membranes in buffers that are left out of the ``state_dict``; so does every module that follows the
    same habit. Distributed training must not broadcast them: each process has its own sequences.

    Args:
        network: The module to search.
        prefix: Put before each name, with a dot.

    Returns:
        Dotted buffer names in the order of ``network.named_modules()``.
    """
    names = []
    for path, module in network.named_modules(prefix=prefix):
        hidden = sorted(getattr(module, "_non_persistent_buffers_set", ()))
        names += [f"{path}.{name}" if path else name for name in hidden]
    return names


def spiking_modules(network: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The neurons of a network that emit spikes, by name.

    A module counts as a neuron when it says so (attribute ``is_spiking``), or when it is a snnTorch neuron, a Norse
    cell with an activation or a SpikingJelly node with a threshold. No library is imported for the test.

    Args:
        network: The module to search.
        skip: ``fnmatch`` patterns of module names to leave out, such as ``("*readout*",)``.

    Returns:
        Module name to module, in the order of ``network.named_modules()``.
    """
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if any(fnmatch(name, pattern) for pattern in skip):
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue  # the cell inside a wrapper that is already listed
        declared = getattr(module, "is_spiking", None)
        if declared if declared is not None else _looks_spiking(module):
            found[name] = module
    return found


def _origins(module: nn.Module) -> set[str]:
    return {cls.__module__.partition(".")[0] for cls in type(module).__mro__}


def _keeps_memories(module: nn.Module) -> bool:
    return "spikingjelly" in _origins(module) and hasattr(module, "_memories")


def _looks_spiking(module: nn.Module) -> bool:
    origins = _origins(module)
    if "snntorch" in origins:
        return hasattr(module, "fire") and hasattr(module, "reset_mem")
    if "norse" in origins:
        # Leaky integrators (LICell and friends) have an activation too, but nothing in them compares with a threshold.
        return hasattr(module, "activation") and hasattr(getattr(module, "p", None), "v_th")
    if "spikingjelly" in origins:
        return hasattr(module, "surrogate_function") and hasattr(module, "v_threshold")
    return False


def spikes_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The spike tensor in what a neuron returned: the output itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output
