"""Which neurons are known by heart."""

from __future__ import annotations

from torch import nn

from stllr_plugin.responses.known import Knowledge
from stllr_plugin.responses.leaky import LeakyKnowledge
from stllr_plugin.responses.norse_cells import CellKnowledge

# By the root package and the name of the class: both are the library's own, never a subclass.
_KNOWN: dict[tuple[str, str], Knowledge] = {
    **{("snntorch", name): LeakyKnowledge() for name in ("Leaky", "RLeaky")},
    **{
        ("norse", name): CellKnowledge()
        for name in ("LIFCell", "LIFRecurrentCell", "LIFBoxCell", "LICell", "LIBoxCell")
    },
}


def find_knowledge(module: nn.Module) -> Knowledge | None:
    """What is known by heart of a module's kind; None if nothing is."""
    kind = type(module)
    return _KNOWN.get((kind.__module__.partition(".")[0], kind.__name__))
