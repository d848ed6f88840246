"""Every public class of the three libraries, and their options: what is supported, and the network that shows it."""

from __future__ import annotations

from tests.support.entry import Entry
from tests.support.jelly_classes import JELLY
from tests.support.norse_classes import NORSE, NORSE_MODULES
from tests.support.options import JELLY_OPTIONS, NORSE_OPTIONS, SNNTORCH_OPTIONS
from tests.support.snntorch_classes import SNNTORCH

TABLES: dict[str, tuple[Entry, ...]] = {
    "snnTorch 1.0": SNNTORCH,
    "Norse 1.1": NORSE,
    "Norse 1.1, in modules that `norse.torch` does not export": NORSE_MODULES,
    "SpikingJelly 2.0, `activation_based.neuron`": JELLY,
    "Options of snnTorch": SNNTORCH_OPTIONS,
    "Options of Norse": NORSE_OPTIONS,
    "Options of SpikingJelly": JELLY_OPTIONS,
}
LIBRARIES = {
    "snnTorch 1.0": "snntorch",
    "Norse 1.1": "norse",
    "Norse 1.1, in modules that `norse.torch` does not export": "norse",
    "SpikingJelly 2.0, `activation_based.neuron`": "spikingjelly",
    "Options of snnTorch": "snntorch",
    "Options of Norse": "norse",
    "Options of SpikingJelly": "spikingjelly",
}


def entries(library: str | None = None) -> dict[str, Entry]:
    """All rows by "table: name", or those of one library."""
    return {
        f"{LIBRARIES[table]}: {entry.name}": entry
        for table, rows in TABLES.items()
        for entry in rows
        if library in (None, LIBRARIES[table])
    }
