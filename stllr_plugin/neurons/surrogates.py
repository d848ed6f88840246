"""Whether a neuron's own surrogate can serve the rule, and what to call it in a message.

psi says how near a neuron is to spiking, so a derivative serves if it is a bump around the threshold: the same for the
same v, finite, never negative, largest at the threshold, and small far away from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Where membranes live: everything here must be finite and not negative. The steps are binary fractions, 0 included.
_NEAR = 4.0
# On both sides of the threshold, for derivatives that jump there.
_AT_THRESHOLD = (-1e-3, 0.0, 1e-3)
# Wide bumps have to end somewhere. A value that is not finite so far out tells nothing.
_FAR = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
# The largest derivative may exceed the one at the threshold by a tenth: bumps need not be exactly centred.
_OFF_CENTRE = 1.1
# "Small far away": below half of the derivative at the threshold.
_FALL = 0.5


def surrogate_problem(spike_function: Callable[[Tensor], Tensor], device: torch.device | None = None) -> str | None:
    """What makes a spike function useless as psi or for carrying a learning signal, or None if it serves.

    Args:
        spike_function: The spike function of v = membrane - threshold.
        device: Where its parameters are; the CPU by default.
    """
    near = torch.linspace(-_NEAR, _NEAR, 33)
    v = torch.cat((near, torch.tensor(_AT_THRESHOLD), -torch.tensor(_FAR), torch.tensor(_FAR))).to(device)
    cuda = [v.device] if v.device.type == "cuda" else []
    try:
        # The probes of a random surrogate must not shift the user's random numbers.
        with torch.random.fork_rng(devices=cuda):
            first, second = _derivative(spike_function, v), _derivative(spike_function, v)
    except Exception as error:  # the libraries' own surrogates raise errors of any kind
        return f"it raises {type(error).__name__}: {error}"
    if first is None or second is None:
        return "it has no surrogate derivative"
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        return "its derivative is random: it differs from call to call"
    sizes = (len(near), len(_AT_THRESHOLD), len(_FAR), len(_FAR))
    at_near, at_threshold, below, above = first.cpu().split(sizes)
    return (
        _problem_near(near, at_near)
        or _problem_of_peak(near, at_near, at_threshold.max().item())
        or _problem_far(-torch.tensor(_FAR), below, at_threshold.max().item())
        or _problem_far(torch.tensor(_FAR), above, at_threshold.max().item())
    )


def _derivative(spike_function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor | None:
    with torch.enable_grad():
        leaf = v.clone().requires_grad_()
        spikes = spike_function(leaf)
        if not spikes.requires_grad:
            return None
        (derivative,) = torch.autograd.grad(spikes.sum(), leaf)
    return derivative.detach()


def _problem_near(v: Tensor, derivative: Tensor) -> str | None:
    if not derivative.isfinite().all():
        return f"its derivative is not finite at v = {v[~derivative.isfinite()][0].item():g}"
    if (derivative < 0).any():
        return f"its derivative is negative at v = {v[derivative < 0][0].item():g}"
    if not derivative.any():
        return "its derivative is zero everywhere near the threshold"
    return None


def _problem_of_peak(v: Tensor, derivative: Tensor, at_threshold: float) -> str | None:
    largest = derivative.max().item()
    if largest <= _OFF_CENTRE * at_threshold:
        return None
    where = v[derivative.argmax()].item()
    return f"its derivative is largest at v = {where:g} ({largest:.3g}) and not at the threshold ({at_threshold:.3g})"


def _problem_far(v: Tensor, derivative: Tensor, at_threshold: float) -> str | None:
    known = derivative.isfinite()
    if not known.any() or derivative[known][-1] < _FALL * at_threshold:
        return None
    last = derivative[known][-1].item()
    return f"its derivative does not fall off: {at_threshold:.3g} at the threshold, {last:.3g} at v = {v[known][-1]:g}"


def surrogate_name(module: nn.Module, spike_function: Callable[..., Any]) -> str:
    """What a user would call the surrogate of this neuron, for messages.

    Args:
        module: The neuron.
        spike_function: Its spike function, as the adapter gives it.
    """
    method = getattr(getattr(module, "p", None), "method", None)
    if isinstance(method, str) and _library(module) == "norse":
        return f'method="{method}"'
    if getattr(module, "surrogate_disable", False) and _library(module) == "snntorch":
        return "surrogate_disable=True"
    return _function_name(spike_function)


def other_surrogate(module: nn.Module) -> str:
    """A surrogate that serves, in the words of the neuron's library."""
    return {
        "snntorch": "spike_grad=snntorch.surrogate.atan() or snntorch.surrogate.fast_sigmoid()",
        "norse": 'method="super"',
        "spikingjelly": "surrogate_function=surrogate.ATan() or surrogate.Sigmoid()",
    }.get(_library(module), 'stllr_plugin.surrogates.SurrogateSpike("dspike")')


def _library(module: nn.Module) -> str:
    """The neuron library that the module or one of its base classes comes from, or an empty string."""
    roots = [kind.__module__.partition(".")[0] for kind in type(module).__mro__]
    return next((root for root in roots if root in ("snntorch", "norse", "spikingjelly")), "")


def _function_name(function: Any) -> str:
    if isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return f"{_qualified(owner)}.apply"  # an autograd function, without the factory that gives it its parameters
    if inspect.isfunction(function) and "<locals>" in function.__qualname__:
        factory = f"{_qualified(function).partition('.<locals>')[0]}"
        settings = {name: _setting(value) for name, value in inspect.getclosurevars(function).nonlocals.items()}
        return f"{factory}({', '.join(f'{name}={value}' for name, value in settings.items() if value is not None)})"
    if inspect.isroutine(function) or isinstance(function, type):
        return _qualified(function)
    return _qualified(type(function))


def _qualified(named: Any) -> str:
    module = getattr(named, "__module__", None)
    name: str = getattr(named, "__qualname__", None) or type(named).__qualname__
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


def _setting(value: Any) -> str | None:
    """A number, text or function as one would write it; None for anything else."""
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return f"{value.item():g}"
    return getattr(value, "__name__", None)
