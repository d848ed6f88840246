"""Sites: the places in a model where the learner sits, and what it does around one call of a synapse or of a neuron."""

from stllr_plugin.sites.excluded import ExclusionHook
from stllr_plugin.sites.kept import KeptStateSite
from stllr_plugin.sites.lift import LiftGuard, RecurrenceCut
from stllr_plugin.sites.model import ModelSite
from stllr_plugin.sites.neuron import NeuronSite
from stllr_plugin.sites.synapse import ModuleSite, OwnWeightSite, SynapseSite

__all__ = [
    "ExclusionHook",
    "KeptStateSite",
    "LiftGuard",
    "ModelSite",
    "ModuleSite",
    "NeuronSite",
    "OwnWeightSite",
    "RecurrenceCut",
    "SynapseSite",
]
