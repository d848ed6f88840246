"""Hooks and checks that ``online`` and ``two_pass`` share: both run backward passes from within the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stllr_plugin.errors import StateError
from stllr_plugin.hooks import Hook, eager
from stllr_plugin.network import Network
from stllr_plugin.session import several_processes


def refuse_several_processes(what: str) -> None:
    """Raises StateError where several processes train together."""
    if several_processes():
        raise StateError(
            f"{what} runs backward passes inside the forward pass, where DistributedDataParallel does not average "
            "gradients. With several processes call loss.backward() at each step outside of forward, under no_sync() "
            "for all but the last."
        )


def refuse_disabled(network: Network, what: str) -> None:
    """Raises StateError if the rule is switched off."""
    if not network.session.enabled:
        raise StateError(f"{what} trains with the rule, but the learner is disabled; call learner.enable() first.")


def refuse_no_value(loss: Any, what: str) -> None:
    """Raises StateError if a loss is no tensor of one value."""
    if not isinstance(loss, Tensor):
        raise StateError(f"{what}: loss_fn returned a {type(loss).__name__}; return the loss as a tensor of one value.")
    if loss.numel() != 1:
        raise StateError(
            f"{what}: loss_fn returned a tensor of shape {tuple(loss.shape)}; return one value, such as its mean()."
        )
    if loss.is_complex():
        raise StateError(f"{what}: loss_fn returned a complex number; return a real one, such as its abs().")


def checked_loss(loss: Any, what: str) -> Tensor:
    """A loss that backward can start from.

    Raises:
        StateError: If it is none.
    """
    refuse_no_value(loss, what)
    if not loss.requires_grad:
        raise StateError(
            f"{what}: the loss that loss_fn returned is not made from the outputs that it was given, or it was "
            "detached; no gradient can come from it."
        )
    return loss  # type: ignore[no-any-return]


def refuse_no_function(function: Any, name: str, what: str) -> None:
    """Raises StateError if an argument cannot be called, or is a class of modules."""
    if not callable(function):
        raise StateError(f"{what}: {name} must be a function; found {function!r}.")
    if isinstance(function, type) and issubclass(function, nn.Module):
        raise StateError(f"{what}: {name} is the class {function.__name__} itself; pass an instance of it.")


def refuse_other_network(network: Network, net: Any, what: str) -> None:
    """Raises StateError if a module that is to be called is neither the attached model nor a wrapper of it."""
    refuse_no_function(net, "the model", what)
    if isinstance(net, nn.Module) and not any(module is network.model for module in net.modules()):
        raise StateError(
            f"{what} was given a {type(net).__name__} that is not the attached {type(network.model).__name__}, nor a "
            "wrapper of it. Pass the model that the learner was built for."
        )


class StepAction(Hook):
    """Calls a function with (module, args, output); what it returns replaces the output."""

    refuses = False

    def __init__(self, act: Callable[[nn.Module, Any, Any], Any]) -> None:
        """Args: the function."""
        super().__init__("output")
        self.act = act

    @eager
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """See the class."""
        return self.act(module, args, output)
