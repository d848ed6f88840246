"""An optimizer that stands in front of another one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class OptimizerFacade(Optimizer):
    """Is the inner optimizer to everything that takes one: same groups, same state, same defaults.

    Learning-rate schedulers, GradScaler and Lightning read and write ``param_groups`` and ``state``; both are the inner
    optimizer's own objects at every moment, also after it loaded a checkpoint.

    Args:
        inner: The optimizer behind the facade; None makes one without parameters.
    """

    def __init__(self, inner: Optimizer | None) -> None:
        """See the class."""
        self._inner: Optimizer | None = None
        self._own: dict[str, Any] = {}  # without an inner optimizer; a wrapper that copies attributes shares it
        # torch refuses an optimizer without parameters.
        placeholder: list[dict[str, Any]] = [{"params": [torch.zeros(0)]}]
        groups = placeholder if inner is None else inner.param_groups
        super().__init__(groups, {} if inner is None else inner.defaults)
        self._inner = inner
        if inner is None:
            self.param_groups = []

    @property
    def optimizer(self) -> Optimizer | None:
        """The inner optimizer, which updates the weights."""
        return self._inner

    def _groups_are_seen(self) -> None:
        """Called before somebody gets the groups."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the inner optimizer."""
        self._groups_are_seen()
        return self._own["groups"] if self._inner is None else self._inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self._inner is None:
            self._own["groups"] = groups
        else:
            self._inner.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """That of the inner optimizer."""
        return self._own["state"] if self._inner is None else self._inner.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        if self._inner is None:
            self._own["state"] = state
        else:
            self._inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the inner optimizer."""
        return self._own["defaults"] if self._inner is None else self._inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        if self._inner is None:
            self._own["defaults"] = defaults
        else:
            self._inner.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the inner optimizer."""
        if self._inner is None:
            super().add_param_group(param_group)
        else:
            self._inner.add_param_group(param_group)
