"""What the catalogue says of one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.support.setup import Setup

Build = Callable[[torch.dtype], Setup]

COLUMNS = ("per-step backward", "one backward", "DDP", "autocast", "torch.compile", "deepcopy")
EXACT, APPROXIMATE, REFUSED, UNTOUCHED = "exact", "approximate", "refused", "left alone"


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        name: The class, as its library exports it, or the option.
        support: One of the four words above.
        why: Why it is approximate, refused or left alone. Attaching says the same where it refuses.
        note: What else is to know.
        build: A network around it; the checks of all columns run on it.
        cases: The cases of the oracle that it is compared with: names in tests/cases or tests/spikingjelly.
        twin: A network without the class that has the same gradients, parameter by parameter.
        without: Columns that are not claimed, and why.
        refused: For refused ones: the module to attach to.
        says: What the refusal says, where that is not ``why``.
        runs: For refused ones: whether it attaches and is refused when it runs, on the network of ``build``.
        alone: For those left alone: the module and the arguments of a call, if it has any.
        quick: Whether the default tests compile it; the others are compiled by ``make slow``.
        tolerance: Relative, where it is not that of float64.
    """

    name: str
    support: str
    why: str = ""
    note: str = ""
    build: Build | None = None
    cases: tuple[str, ...] = ()
    twin: Build | None = None
    without: Mapping[str, str] = field(default_factory=dict)
    refused: Callable[[], nn.Module] | None = None
    says: str = ""
    runs: bool = False
    alone: Callable[[], tuple[nn.Module, tuple[object, ...]]] | None = None
    quick: bool = False
    tolerance: float = 1e-8
